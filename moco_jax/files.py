"""Writing a file whole or not at all, so that a run killed at any moment leaves no half of one."""

import os

from etils import epath


def write(path: epath.Path, content: bytes) -> None:
    """Put `content` at `path`; whoever reads it meanwhile, or after a crash, finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f"{path.name}.{os.getpid()}.part"
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
