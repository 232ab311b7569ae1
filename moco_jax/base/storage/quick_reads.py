"""Reads of gs:// by tensorstore, which take a fifth of gcsfs's CPU time; what fails is left to it.

Random batches are thousands of small reads, and there the time of this machine's cores is what
limits them. Everything else about a store, and every failure, stays with `bucket.py`.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

from moco_jax.base.storage import failures, gcs
from moco_jax.base.text import is_utf8

_MADE_IN = os.getpid()  # tensorstore's threads are not there in a process that is forked from it
_refused: set[str] = set()  # buckets that refuse the account that tensorstore finds


@functools.lru_cache
def _bucket(name: str, _server: str | None) -> Any:
    import tensorstore

    gcs.point_tensorstore()
    context = tensorstore.Context(
        {
            "gcs_request_concurrency": {"limit": gcs.IN_FLIGHT},
            # The fewest that it allows; more, and how long after, is what `retries` says.
            "gcs_request_retries": {"max_retries": 1, "initial_delay": "50ms"},
        }
    )
    return tensorstore.KvStore.open({"driver": "gcs", "bucket": name}, context=context).result()


def _parts(path: str) -> tuple[str, str, str]:
    """Return scheme, bucket and name of `path`."""
    scheme, _, rest = path.partition("://")
    bucket, _, name = rest.partition("/")
    return scheme, bucket, name


def _begin(path: str, begin: int | None, end: int | None) -> Any:
    scheme, bucket, name = _parts(path)
    if scheme not in ("gs", "gcs") or not name or bucket in _refused or not is_utf8(name):
        return None
    part = {}
    if begin is not None and end is not None:
        if end <= begin:
            return None
        part["byte_range"] = slice(begin, end)
    try:
        return _bucket(bucket, os.environ.get(gcs.EMULATOR)).read(name, **part)
    except ValueError:  # a name that is none to it
        return None


def read_many(
    paths: Sequence[str], begins: Sequence[int | None], ends: Sequence[int | None]
) -> list[Any]:
    """Read as `bucket.read_many` does; None for what is left to gcsfs.

    That is what is not in gs://, what ends before its part does, and what failed.
    """
    if os.getpid() != _MADE_IN:
        return [None] * len(paths)
    reads = [_begin(*asked) for asked in zip(paths, begins, ends, strict=True)]
    results: list[Any] = [None] * len(reads)
    for number, read in enumerate(reads):
        if read is None:
            continue
        try:
            answer = read.result(timeout=gcs.SILENT_SECONDS)
        except Exception as error:  # which gcsfs, asked for the same, gets over or reports
            if failures.is_refusal(error):
                _refused.add(_parts(paths[number])[1])
            continue
        there = answer.state == "value"
        results[number] = answer.value if there else failures.missing(paths[number])
    return results
