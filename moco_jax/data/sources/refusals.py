"""Says why an image cannot be used: what its file or its decoder reports."""

from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.data.sources import Source, pixels


def refusal(source: Source, record: bytes) -> str:
    """Say why `source` refuses an image that is whole; '' if it is damaged.

    The image has other channels or bits than asked for, too many pixels, or needs a missing
    package.
    """
    try:
        pixels.pixels(source.encoded(record), source.decoding)
    except (pixels.Unfit, UserError) as error:
        return str(error)
    except Exception:  # libraries raise all kinds on damaged files
        return ""
    return ""


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


def none_is_sound(number: int, example: str) -> UserError:
    """Return the error that of `number` images, `example` being one, none can be decoded."""
    return UserError(f"none of the {number:,} images can be decoded; {example} is one of them")
