"""Google Cloud Storage by the package gcsfs, asked as `retries` says, with many requests at once.

gcsfs tries again too, but after one to two seconds at the soonest, and it prints a trace for each
refusal. So its own tries are taken out. `STORAGE_EMULATOR_HOST` points it at another server.
"""

import asyncio
import functools
import inspect
import io
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moco_jax.base import packages
from moco_jax.base.errors import Busy, UserError
from moco_jax.base.storage import failures, retries

CONNECT_SECONDS, SILENT_SECONDS = 20, 60  # after which a request counts as failed
IN_FLIGHT = 256  # requests at a time
EMULATOR = "STORAGE_EMULATOR_HOST"


class Whole(io.BytesIO):
    """A small file that is sent in one request when it is closed.

    gcsfs would take two, of which the second cannot be made again on every server.
    """

    def __init__(self, send: Callable[[bytes], Any]):
        """Have `send` called with the content."""
        super().__init__()
        self._send = send

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._send(content)


def _kinds() -> tuple[type, type]:
    """Return the class of file systems for gs://, and that for libraries beside this package.

    Raises:
        UserError: the package gcsfs is missing.
    """
    logging.getLogger("gcsfs").setLevel(logging.WARNING)  # it tells of its experiments
    try:
        import aiohttp
        from gcsfs import core
    except ImportError as error:
        raise UserError(
            f"gs:// needs the package gcsfs, which is not installed here;"
            f" {packages.how_to_have(['gcsfs'])}, or a folder of this machine"
        ) from error
    once = inspect.unwrap(core.GCSFileSystem._request)

    class Patient(core.GCSFileSystem):
        cachable = False

        def __init__(self, **options: Any):
            patience = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
            )
            fixed = {"use_listings_cache": False, "requests_timeout": patience}
            token = {"token": "anon"} if os.environ.get(EMULATOR) else {}
            super().__init__(**(fixed | token | options))
            self._room = asyncio.Semaphore(IN_FLIGHT)

        async def _request(self, *args: Any, **kwargs: Any) -> Any:
            async def one() -> Any:
                async with self._room:
                    return await once(self, *args, **kwargs)

            return await retries.insist(one)

        async def _set_session(self) -> Any:
            if self._session is None and not getattr(self, "_use_client_cert", False):
                self.session_kwargs = {"connector": aiohttp.TCPConnector(limit=IN_FLIGHT)}
            return await super()._set_session()

    class Lent(Patient):
        async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super()._request(method, path, *args, **kwargs)
            except Exception as error:
                found = failures.translate(error, _address(path, args, kwargs))
                if isinstance(found, UserError | Busy):
                    raise found from error
                raise  # gcsfs knows what it makes of it

        def _open(self, path: str, mode: str = "rb", *args: Any, **kwargs: Any) -> Any:
            if mode == "wb":
                return Whole(lambda content: self.pipe_file(path, content))
            return super()._open(path, mode, *args, **kwargs)

    return Patient, Lent


def _address(path: str, args: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return what gcsfs asks for by the `path` of a request, for messages."""
    bucket = re.search(r"(?:^|/)b/([^/?]+)", path)
    parts = [*args[:2]] if args else [bucket[1] if bucket else path]
    more = options.get("prefix") if len(parts) == 1 else None
    return "/".join(["gs:/", *parts, *([more.rstrip("/")] if more else [])])


def point_tensorstore() -> None:
    """Have tensorstore ask the server that `STORAGE_EMULATOR_HOST` names, if it names one."""
    if os.environ.get(EMULATOR):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ[EMULATOR])
        # Such a server wants no account, for which tensorstore would look, and complain.
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")


def file_system() -> Any:
    """Make fsspec's file system for gs://.

    Raises:
        UserError: the package gcsfs is missing.
    """
    return _kinds()[0]()


@functools.cache
def lend() -> None:
    """Have the libraries beside this package reach gs:// as it does: etils, and so Orbax.

    They ask fsspec for a file system, and get one that makes requests again as `retries` says and
    raises what `failures` says. Arrays go through tensorstore, which makes its requests again by
    itself; it is pointed at the server that `STORAGE_EMULATOR_HOST` names.

    Raises:
        UserError: the package gcsfs is missing.
    """
    _, lent = _kinds()
    import fsspec

    for scheme in ("gs", "gcs"):
        fsspec.register_implementation(scheme, lent, clobber=True)
    point_tensorstore()
