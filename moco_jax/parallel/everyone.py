"""What each process has to say, told to all of them; every process must make each of these calls.

They may come minutes apart: words go through JAX's coordination service, as arrays through devices
may not wait so long. `hosts.py` has what process 0 alone says.
"""

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # the only way to the service, which Orbax takes too

from moco_jax.base.errors import UserError

WAIT = 7 * 24 * 3600 * 1000  # milliseconds for the slowest process; JAX ends all when one is lost

_calls = itertools.count()


def gather(value: Any) -> list[Any]:
    """Return the `value` of each process, made of JSON, in their order; tuples become lists."""
    own = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(own)]
    client = distributed.global_state.client
    assert client is not None  # several processes have joined
    call = f"moco_jax/everyone/{next(_calls)}"
    client.key_value_set(f"{call}/{jax.process_index()}", own)
    every = range(jax.process_count())
    return [json.loads(client.blocking_key_value_get(f"{call}/{n}", WAIT)) for n in every]


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
    if jax.process_count() > 1:
        said = gather(None if error is None else str(error))
        failed = [(number, text) for number, text in enumerate(said) if text is not None]
        if failed:
            number, text = failed[0]
            raise UserError(f"process {number}: {text}") from error
    if error is not None:
        raise error
