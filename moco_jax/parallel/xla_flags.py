"""XLA's flags that this project sets before JAX starts, beside those of the user.

On CPUs XLA hands single convolutions to a fusion library (YNNPACK) that is many times slower at
their gradients than XLA's own code: with jaxlib 0.10.1 about 1,000 ms beside 70 for a 3x3 kernel of
64 channels (32 px, 64 images, two cores). The same library is good at reductions, so it is switched
off for single convolutions alone.
"""

import contextlib
import importlib.util
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_NAME = "xla_cpu_experimental_ynn_fusion_type"
_FLAG = f"--{_NAME}=-individual_convolution"
# How the flag and its value stand in a library that knows them.
_MARKS = (_NAME.encode(), b"LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION")
# What a program is compiled with on CPUs that runs once, as the one that draws the first weights:
# LLVM's light passes take 3 s of CPU where its default takes 21 (ten kernels of random numbers),
# for the same values to the bit at the same speed.
RUNS_ONCE = {"xla_backend_optimization_level": 1}
_SMALLEST = 1 << 20  # bytes; jaxlib's other libraries are stubs of some kilobytes


def jaxlib_knows() -> bool:
    """Return whether the installed jaxlib has the flag; an unknown one would end the process.

    The compiled library is searched for the flag's name, as no call of jaxlib lists its flags.
    """
    found = importlib.util.find_spec("jaxlib")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for path in Path(folder).iterdir():
            if path.suffix in (".so", ".dylib", ".dll", ".pyd") and _contains_marks(path):
                return True
    return False


def _contains_marks(path: Path) -> bool:
    if path.stat().st_size < _SMALLEST:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(mark) >= 0 for mark in _MARKS)


def with_fast_convolutions(given: str) -> str:
    """Return the flags `given` in XLA_FLAGS with the one for fast convolutions added.

    `given` comes back as it is where it has that flag itself, where it names a file of flags, and
    where jaxlib does not know the flag.
    """
    names_a_file = bool(given.strip()) and not given.lstrip().startswith("-")
    if names_a_file or _NAME in given or not jaxlib_knows():
        return given
    return f"{given} {_FLAG}".strip()


def set_up() -> None:
    """Set XLA_FLAGS for this process and those that it starts.

    JAX reads the variable when it first looks for devices, so this comes before.
    """
    flags = with_fast_convolutions(os.environ.get("XLA_FLAGS", ""))
    if flags:
        os.environ["XLA_FLAGS"] = flags


@contextlib.contextmanager
def while_jax_starts() -> Iterator[None]:
    """Set XLA_FLAGS within the block alone, in which JAX is made to look for its devices.

    For a program that is not ours: another library in it (TensorFlow, torch_xla) may read XLA_FLAGS
    later, and ends the process where it does not know one of them. Where JAX has started before,
    nothing changes.
    """
    before = os.environ.get("XLA_FLAGS")
    set_up()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = before
