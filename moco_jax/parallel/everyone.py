"""What each process has to say, told to all of them; every process must make each of these calls.

They may come minutes apart: words go through JAX's coordination service, as arrays through devices
may not wait so long. `hosts.py` has what process 0 alone says.
"""

import contextlib
import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the only way to the service, which Orbax takes too
from jax.experimental import multihost_utils

from moco_jax.base.errors import UserError

WAIT = 7 * 24 * 3600 * 1000  # milliseconds for the slowest process; JAX ends all when one is lost

_calls = itertools.count()


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


def gather(value: Any) -> list[Any]:
    """Return the `value` of each process, made of JSON, in their order; tuples become lists."""
    own = json.dumps(value)
    if is_alone():
        return [json.loads(own)]
    client = distributed.global_state.client
    assert client is not None  # several processes have joined
    call = f"moco_jax/everyone/{next(_calls)}"
    client.key_value_set(f"{call}/{jax.process_index()}", own)
    every = range(jax.process_count())
    return [json.loads(client.blocking_key_value_get(f"{call}/{n}", WAIT)) for n in every]


def gather_arrays(own: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each process, in their order, with any types of numbers and shapes."""
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


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Raise on every process what the block raises on any, where a user can mend it.

    The first process's error is the one that all raise. Within the block no process may wait for
    another.

    Raises:
        UserError: the error, with the process that it comes from where there are several.
    """
    error: UserError | OSError | None = None
    try:
        yield
    except (UserError, OSError) as raised:
        error = raised
    if not is_alone():
        said = gather(None if error is None else str(error))
        failed = [(number, text) for number, text in enumerate(said) if text is not None]
        if failed:
            number, text = failed[0]
            raise UserError(f"process {number}: {text}") from error
    if error is not None:
        raise error
