"""Google Cloud Storage by the package gcsfs, asked as `retries` says, with many requests at once.

gcsfs tries again too, but after one to two seconds at the soonest, and it prints a trace for each
refusal. So its own tries are taken out. `STORAGE_EMULATOR_HOST` points it at another server.
"""

import asyncio
import inspect
import logging
import os
from typing import Any

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.storage import retries

CONNECT_SECONDS, SILENT_SECONDS = 20, 60  # after which a request counts as failed


def file_system(room: asyncio.Semaphore, connections: int) -> Any:
    """Make fsspec's file system for gs://, which has `room` for so many requests at once.

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

        async def _request(self, *args: Any, **kwargs: Any) -> Any:
            async def one() -> Any:
                async with room:
                    return await once(self, *args, **kwargs)

            return await retries.insist(one)

        async def _set_session(self) -> Any:
            if self._session is None and not getattr(self, "_use_client_cert", False):
                self.session_kwargs = {"connector": aiohttp.TCPConnector(limit=connections)}
            return await super()._set_session()

    patience = aiohttp.ClientTimeout(
        total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
    )
    token = {"token": "anon"} if os.environ.get("STORAGE_EMULATOR_HOST") else {}
    return Patient(use_listings_cache=False, requests_timeout=patience, **token)
