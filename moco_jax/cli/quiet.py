"""Loads TensorFlow for a command, without its messages and without GPUs."""

import os
import sys
import tempfile


def load_tensorflow() -> None:
    """Import TensorFlow with its messages (C++ too) suppressed, and keep it off the GPUs.

    Where the import fails, what it wrote is shown.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as aside:
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            import tensorflow as tf
        except BaseException:
            os.dup2(kept, 2)
            aside.seek(0)
            sys.stderr.write(aside.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    tf.config.set_visible_devices([], "GPU")
