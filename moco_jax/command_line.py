"""What the command lines share: reading flags, help, ending with one line, and telling JAX and TensorFlow how to start."""

import errno
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import NoReturn

import jax
import tensorflow as tf
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from moco_jax import config as config_lib
from moco_jax import files, number_flags, recipe_files, xla_flags
from moco_jax import settings as settings_lib
from moco_jax.errors import TRY_AGAIN, Busy, LockLost, UserError
from moco_jax.text import printable

flags.DEFINE_bool("debug", False, "Show where in the program an error comes from.")

# `--config.epochs=2.0` is 2, as in a recipe file; 2.5 is refused, not cut.
config_flags.register_flag_parser_for_type(int, number_flags.NumberParser(int))

SETTINGS = tuple(settings_lib.SETTINGS)
HELP = {"-h", "-help", "--help"}


def start(main: Callable[[list[str]], None], settings: Iterable[str] = SETTINGS) -> None:
    """Run `main` of a command line with the flags read; errors that a user can mend end it with one line.

    `settings`: the names that `--config.NAME` may have.

    `--help` prints the docstring of the module of `main`, which has examples, the flags, and the
    settings where there is a `--config`.
    """

    if HELP & set(sys.argv[1:]):
        print(help_text(main, settings))
        return
    app.run(partial(guarded, main), flags_parser=partial(parse, settings=settings))


def guarded(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Call `main(argv)`; what a user can mend, what passes by itself, and Ctrl-C end the program with one line."""
    # Before anything asks JAX for its devices.
    xla_flags.set_up()
    try:
        main(argv)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except LockLost as error:
        print(f"error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(TRY_AGAIN)  # at once: threads that save would go on while Python ends
    except Busy as error:
        if "--debug" in sys.argv:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(TRY_AGAIN)
    except (UserError, OSError) as error:
        fail(error)
    except tf.errors.OpError as error:
        said = files.said_of_bucket(error)
        if not said:
            raise
        fail(error, said)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0]
        fail(error, f"the devices have too little memory; a smaller batch takes less: {said}")


def help_text(main: Callable, settings: Iterable[str] = SETTINGS) -> str:
    """What `--help` prints: what the command does, its flags with defaults, and its `settings`."""
    texts = [(main.__globals__["__doc__"] or "").strip(), "", "flags:"]
    ours = {
        flag.name: flag
        for module, found in flags.FLAGS.flags_by_module_dict().items()
        if module.startswith("moco_jax") or module == sys.argv[0]
        for flag in found
    }
    for name, flag in sorted(ours.items()):
        default = "" if flag.default in (None, "", [], False) else f" (default {flag.default_as_str})"  # fmt: skip
        texts.append(f"  --{name}: {' '.join(flag.help.split())}{default}")
    if "config" in ours:
        first = next(name for name in settings if name.rpartition(".")[2] in SETTINGS)
        prefix = first.rpartition(".")[0]
        texts += [
            "",
            f"settings, as --config.{prefix and prefix + '.'}NAME=VALUE; a recipe changes some of the defaults:",
        ]
        texts += settings_lib.overview()
    return "\n".join(texts)


def fail(error: object, said: str = "") -> NoReturn:
    """End with one line and status 2: `said`, or else what `error` says; with --debug its trace comes too."""
    if isinstance(error, BaseException) and "--debug" in sys.argv:
        raise error
    # The last resort for what a message quotes: whatever it is, it stays one line, and prints.
    print(f"error: {printable(said or str(error))}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str], settings: Iterable[str] = SETTINGS) -> list[str]:
    """Read the command line, recipes by name or file; anything wrong with it ends the program with one line."""
    try:
        config_lib.check_names(argv[1:], settings)
        return flags.FLAGS([argv[0], *map(recipe_files.resolve, argv[1:])])
    except (UserError, flags.Error) as error:
        # A config file that raises is reported by its library with the whole traceback as text.
        fail(error, " ".join(str(error).split()).rpartition("UserError: ")[2])
    except Exception as error:  # a recipe is a program of the user's own, and may end in any way
        fail(error, f"{_recipe(argv)} cannot be read: {type(error).__name__}: {error}")


def _recipe(argv: list[str]) -> str:
    """The word of a command line that names its recipe or file of flags."""
    words = (word for word in argv[1:] if word.lstrip("-").startswith(("config=", "flagfile=")))
    return next(words, "the command line")


def refuse_words(argv: list[str]) -> None:
    """End with one line where a word of the command line is no flag."""
    if len(argv) > 1:
        fail(f"{argv[1]!r} is no flag; settings are given as --config.NAME=VALUE")


def set_up(config: ConfigDict, own: bool = True) -> None:
    """Quiet logs, TensorFlow off the GPUs, and what JAX must know before it looks for devices.

    `own`: whether `config` is that of this command, and not of a run that it reads: that run's
    `compilation_cache` may be a folder of another machine, and is then done without.

    Raises:
        UserError: `compilation_cache` can be no folder to write to.
    """
    logging.set_verbosity(logging.WARNING)
    tf.config.set_visible_devices([], "GPU")
    given = os.environ.get("XLA_FLAGS", "")
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true"
    if config.cpu_devices > 0 and "host_platform_device_count" not in given:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    wrong = _wrong_with_cache(config.compilation_cache)
    if wrong and own:
        raise UserError(
            f"compilation_cache={config.compilation_cache} is no folder that can be written "
            f"({wrong}); give one of yours, or '' for none"
        )
    if config.compilation_cache and not wrong:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _wrong_with_cache(place: str) -> str:
    """Why programs cannot be kept in `place`, which is made where it is not there; '' if they can."""
    try:
        if not place or files.is_remote(files.absolute(place)):
            return ""
        os.makedirs(place, exist_ok=True)
    except (UserError, OSError) as error:
        return getattr(error, "strerror", None) or str(error)
    return "" if os.access(place, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
