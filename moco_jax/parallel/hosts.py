"""What the processes of a run say to each other: how they agree, and how they fail together.

All of it goes through JAX's coordination service, where words may come hours apart: arrays through
devices may not wait so long.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import flax
import jax
import numpy as np
import optax
from jax._src import distributed
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moco_jax.base import digests
from moco_jax.base.errors import Busy, LockLost, UserError
from moco_jax.base.text import printable

T = TypeVar("T")

WAIT = 600  # seconds after which a process that waits for another asks again
SAME = "start all of them with one command and one version of the code"
_calls = itertools.count()  # of what processes say to each other; all count alike
_said: list[str] = []  # what process 0 has said and not yet deleted


def is_alone() -> bool:
    """Return whether this process is the only one; asks for no devices where none was joined."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Return whether this process is the one that speaks and writes for all."""
    return number() == 0


def number() -> int:
    """Return the number of this process, from 0."""
    return 0 if is_alone() else jax.process_index()


def count() -> int:
    """Return how many processes there are."""
    return 1 if is_alone() else jax.process_count()


def require_agreement(facts: Mapping[str, Any], remedy: str = SAME) -> None:
    """Refuse to go on unless every process of the run has the same `facts`, JSON values by name.

    `remedy`: what to do where they differ.

    Raises:
        UserError: the facts that differ, with those of two processes; on every process.
    """
    everyone = _gathered(dict(facts))
    line = ""
    for number, found in enumerate(everyone):
        names = sorted(n for n in facts if found.get(n) != everyone[0].get(n))
        if names:
            has = " and ".join(
                f"process {i} has {', '.join(f'{n}={everyone[i].get(n)!r}' for n in names)}"
                for i in (0, number)
            )
            line = f"the processes of this run differ in {', '.join(names)}: {has}; {remedy}"
            break
    line = broadcast(printable(line))
    if line:
        raise agreed(UserError(line))


def broadcast(value: T) -> T:
    """Return process 0's `value`, made of JSON, on every process; every process must call this.

    What the other processes give does not matter. Tuples arrive as lists.
    """
    if is_alone():
        return value
    key = f"moco_jax/said/{next(_calls)}"
    if jax.process_index() == 0:
        _client().key_value_set(key, json.dumps(value))
        _said.append(key)
        return json.loads(json.dumps(value))
    return json.loads(_waited_for(key))


def first(do: Callable[[], T]) -> T:
    """Have process 0 do a thing, and tell all how it went; every process must call this.

    Returns:
        what `do` returned there, made of JSON.

    Raises:
        UserError, Busy, OSError: what process 0 raised; on every process. Another error, a bug,
            is raised there, and ends the others by `failures`.
    """
    if is_alone():
        return do()
    result: Any = None
    error: Exception | None = None
    if jax.process_index() == 0:
        try:
            result = do()
        except (UserError, Busy, OSError) as raised:
            error = raised
    told, packed = broadcast((result, _packed(error)))
    if packed:
        raise agreed(error or _unpacked(packed))
    return told


def each(do: Callable[[], T]) -> T:
    """Return what `do` returns on this process; if it fails on one, all raise as `together` does.

    Every process must call this.
    """
    with together():
        return do()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise on every process what the block raises on any; every process must come here.

    No collective computation may be in the block: a process that has failed would not take part.

    Raises:
        UserError, Busy, OSError: of the first process that failed, which the line names unless all
            have failed alike. Other errors are as in `first`.
    """
    error: Exception | None = None
    try:
        yield
    except (UserError, Busy, OSError) as raised:
        error = raised
    if is_alone():
        if error is not None:
            raise error
        return
    failure = _first_failure(gather(_packed(error)))
    if failure:
        raise agreed(_unpacked(failure)) from error


def _first_failure(outcomes: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the first failure among all processes' `outcomes`, its line with its process."""
    number = next((n for n, packed in enumerate(outcomes) if packed), None)
    if number is None or all(packed == outcomes[0] for packed in outcomes):
        return outcomes[0]
    packed = outcomes[number] or {}
    return packed | {"line": f"process {number} of {len(outcomes)}: {packed['line']}"}


KINDS: dict[str, Callable[[str], Exception]] = {
    kind.__name__: kind for kind in (LockLost, Busy, UserError)
}


def _packed(error: Exception | None) -> dict[str, Any] | None:
    """Describe `error` as JSON, by which other processes raise one of the same kind."""
    if error is None:
        return None
    if isinstance(error, OSError):
        where = None if error.filename is None else printable(str(error.filename))
        line = error.strerror or str(error)
        return {"kind": "", "line": line, "number": error.errno, "where": where}
    kind = next(name for name in KINDS if any(c.__name__ == name for c in type(error).__mro__))
    return {"kind": kind, "line": str(error)}


def _unpacked(packed: Mapping[str, Any]) -> Exception:
    kind = KINDS.get(packed["kind"])
    if kind:
        return kind(packed["line"])
    if packed["number"] is None:  # one that a library made of words alone
        return OSError(packed["line"])
    return OSError(packed["number"], packed["line"], packed["where"])


def agreed(error: Exception) -> Exception:
    """Mark an `error` that every process raises, so that none has to be told of it."""
    error.agreed = True  # type: ignore[attr-defined]
    return error


def _gathered(value: Any) -> list[Any]:
    """Return the `value`, made of JSON, of every process on process 0; elsewhere just this one."""
    if is_alone():
        return [value]
    call, number = next(_calls), jax.process_index()
    key = f"moco_jax/own/{call}/"
    if number:
        _client().key_value_set(f"{key}{number}", json.dumps(value))
        return [value]
    others = [_waited_for(f"{key}{n}") for n in range(1, jax.process_count())]
    # All have come here, and have read whatever was said before.
    for read in _said:
        _client().key_value_delete(read)
    _said[:] = [key]  # those of this call, as a folder
    return [json.loads(text) for text in (json.dumps(value), *others)]


def gather(value: Any) -> list[Any]:
    """Return the `value` of each process, made of JSON, in their order; tuples become lists.

    Every process must call this.
    """
    return broadcast(_gathered(value)) if not is_alone() else [json.loads(json.dumps(value))]


def gather_arrays(own: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each process, in their order, with any types of numbers and shapes.

    Every process must call this.
    """
    if is_alone():
        return [dict(own)]
    written = io.BytesIO()
    np.savez(written, **own)  # type: ignore[arg-type]
    # As bytes, since JAX's arrays would have 32 bits a number.
    content = np.frombuffer(written.getbuffer(), np.uint8)
    lengths = gather(len(content))
    padded = np.pad(content, (0, max(lengths) - len(content)))
    sent = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    found = []
    for one, length in zip(sent, lengths, strict=True):
        with np.load(io.BytesIO(one[:length].tobytes())) as arrays:
            found.append({name: arrays[name] for name in arrays.files})
    return found


def _waited_for(key: str) -> str:
    """Return what a process has said, however long that takes: one that fails ends this one."""
    while True:
        try:
            return _client().blocking_key_value_get(key, WAIT * 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _client() -> Any:
    """Return the client of JAX's coordination service, for which there is no public name."""
    return distributed.global_state.client


class Board:
    """A place where each process shows one value, made of JSON, that process 0 looks at.

    Nobody waits for anybody.
    """

    def __init__(self, name: str):
        """Open the board of this `name`; those of one name are one."""
        self._folder = f"moco_jax/board/{name}/"
        self._own: Any = None

    def show(self, value: Any) -> None:
        """Show `value` in place of what this process has shown."""
        self._own = value
        if not is_alone():
            key = f"{self._folder}{jax.process_index()}"
            _client().key_value_set(key, json.dumps(value), True)

    def all(self) -> list[Any]:
        """Return what processes show at this moment."""
        if is_alone():
            return [] if self._own is None else [self._own]
        found = _client().key_value_dir_get(self._folder)
        return [json.loads(value) for _, value in sorted(found)]


def facts_of(config: ConfigDict) -> dict[str, Any]:
    """Collect what every host of a run must have alike: settings, code and library versions."""
    own = ("data_dir", "workers", "compilation_cache")
    versions = {m.__name__: m.__version__ for m in (flax, jax, optax)}
    settings = {k: v for k, v in config.to_dict().items() if k not in own}
    return {**settings, **versions, "code": code_digest()}


def code_digest() -> str:
    """Return the SHA-256 of this package's Python files, in hexadecimal."""
    package = Path(__file__).parents[1]
    return digests.of_files(sorted(package.rglob("*.py")))
