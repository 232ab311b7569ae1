"""Says why an image cannot be used: what its file or its decoder reports."""

from typing import Any

import numpy as np

from moco_jax.data.sources import Source
from moco_jax.data.sources.decode import refusal


def why(source: Source, index: int) -> str:
    """Say why image `index` is not decoded: not there, no file, or refused; '' if damaged."""
    record: Any = source.read(np.asarray([index]))[0]
    trouble = getattr(source, "trouble", None)
    if isinstance(record, bytes) and not record and trouble is not None:
        return trouble(index)
    return refusal(source, record)


def described(source: Source, index: int) -> str:
    """Name image `index`, which is not decoded, in one line, with the reason where it is known."""
    reason = why(source, index)
    return f"{source.name(index)}: {reason}" if reason else source.name(index)
