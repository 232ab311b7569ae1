"""Why an image cannot be used, for a person: what its file or its decoder says, where that is known."""

from typing import Any

import numpy as np

from moco_jax.data.sources import Source
from moco_jax.data.sources.decode import refusal


def why(source: Source, index: int) -> str:
    """Why image `index` of `source` is not decoded: it is not there, no file, or refused; '' where it is damaged."""
    record: Any = source.read(np.asarray([index]))[0]
    trouble = getattr(source, "trouble", None)
    if isinstance(record, bytes) and not record and trouble is not None:
        return trouble(index)
    return refusal(source, record)


def described(source: Source, index: int) -> str:
    """What to call image `index` of `source`, which is not decoded, and why where that is known, in one line."""
    found = why(source, index)
    return f"{source.name(index)}: {found}" if found else source.name(index)
