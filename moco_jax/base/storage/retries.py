"""Which failures of a store pass by themselves, and how long a caller waits for that.

A store that is asked by many answers some requests with 429 or 503, and cuts some connections.
Asked again a little later it answers. A refusal or a missing object stays as it is.
"""

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

TRIES = 11  # of one request; with the waits between them some 50 seconds
FIRST_WAIT, LONGEST_WAIT = 0.05, 32.0  # seconds
_PASSING = (408, 429)  # and all of 500 to 599
# Connections that are cut, by the names of the libraries that report them.
_CUT = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "requests.exceptions": ("ConnectionError", "Timeout", "ChunkedEncodingError"),
    "google.auth.exceptions": ("TransportError",),
}
T = TypeVar("T")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that `error` reports; None where it reports none."""
    for name in ("code", "status", "status_code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 100 <= int(value) < 600:
            return int(value)
    return None


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING or status >= 500
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    loaded = ((sys.modules[name], classes) for name, classes in _CUT.items() if name in sys.modules)
    return any(isinstance(error, getattr(module, c)) for module, cs in loaded for c in cs)


def wait(tried: int) -> float:
    """Return how many seconds to wait after `tried` failures: twice as long each time.

    By chance it is up to half shorter or longer, so that those who failed together do not all
    ask again together.
    """
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.5)


async def insist(request: Callable[[], Awaitable[T]]) -> T:
    """Make a `request`, and make it again while its failure is one that passes.

    Raises:
        Exception: the last failure, after `TRIES` of them, or the first that does not pass.
    """
    for tried in range(1, TRIES):
        try:
            return await request()
        except Exception as error:
            if not passes(error):
                raise
        await asyncio.sleep(wait(tried))
    return await request()
