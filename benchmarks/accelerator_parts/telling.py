"""What a measuring process and the command that started it say to each other, a line each."""

import json
import sys
from typing import Any

RESULT, READY = "RESULT ", "READY"


def given() -> dict[str, Any]:
    """Return what the command gave this process: its only argument, as JSON."""
    return json.loads(sys.argv[1])


def tell(**result: Any) -> None:
    """Hand one result over at once: whatever happens to this process, it is kept."""
    print(RESULT + json.dumps(result), flush=True)


def wait_for_turn() -> None:
    """Say that everything is compiled, and wait until nothing else uses the device."""
    print(READY, flush=True)
    sys.stdin.readline()


def require_accelerator(small: bool) -> None:
    """End this process where JAX has no accelerator, unless the form is the small one."""
    import jax

    if jax.default_backend() == "cpu" and not small:
        sys.exit("JAX found no accelerator here; --small tries everything on a CPU")
