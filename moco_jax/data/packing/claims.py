"""Whose folder it is: pack.json says which images its shards hold, and by which settings.

A packing that was cut off, and the other workers of one, find there what they have in common.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from etils import epath

from moco_jax.base import files, places
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.packing.plan import FORMATS, Plan
from moco_jax.data.sources import store
from moco_jax.data.sources.examples import PACK
from moco_jax.data.sources.pixels import RGB

_BLOCK = 4096  # names of images that are held at once
# What a pack.json that does not name them was made with.
_DEFAULTS = {
    "dataset": "folder",
    "split": "",
    "channels": 3,
    "white": 0.0,
    "max_pixels": RGB.max_pixels,
    "background": -1,
    "shorter_side": 0,
    "quality": 0,
}


def _facts(plan: Plan) -> dict:
    digest, source = hashlib.sha256(), plan.source
    numbers = source.labels(np.arange(len(source)))
    for start in range(0, len(source), _BLOCK):
        some = np.arange(start, min(start + _BLOCK, len(source)))
        for index, name in zip(some.tolist(), source.names(some), strict=True):
            label = "" if numbers is None else numbers[index]
            digest.update(f"{name}\t{label}\n".encode("utf-8", "surrogateescape"))
    return {
        "dataset": plan.dataset,
        "split": plan.split,
        "data_dir": places.real_names(plan.data_dir) if plan.data_dir else "",
        "images": len(source),
        "shards": plan.shards,
        "format": plan.format,
        "classes": list(source.classes),
        "names_sha256": digest.hexdigest(),
        "channels": source.decoding.channels,
        "white": source.decoding.white,
        "max_pixels": source.decoding.max_pixels,
        "background": source.decoding.background,
        "shorter_side": plan.rewriting.shorter_side,
        "quality": plan.rewriting.quality,
    }


def claim(plan: Plan) -> dict:
    """Mark `plan.out` as this packing's by pack.json, or refuse if it holds another's shards.

    Returns: the facts of this packing.
    """
    path, facts = os.path.join(plan.out, PACK), _facts(plan)
    with writing(plan.out):
        if not store.is_remote(plan.out):
            os.makedirs(plan.out, exist_ok=True)
        if not store.is_file(path):
            endings = tuple(f".{format.ending}" for format in FORMATS.values())
            there = store.listing(plan.out) if store.exists(plan.out) else []
            foreign = [n for n in there if n.endswith(endings)]
            if foreign and not store.is_file(path):  # another worker may have come meanwhile
                raise UserError(
                    f"out={printable(plan.out)} holds {printable(foreign[0])} and no pack.json that"
                    " says of what; give another --out"
                )
            with files.draft(epath.Path(path)) as draft:
                draft.write_text(json.dumps(facts, indent=2) + "\n")
    require_claim(plan, facts)
    return facts


def require_claim(plan: Plan, facts: dict) -> None:
    """Refuse to go on if pack.json says other `facts`: `plan.out` holds another packing."""
    path = os.path.join(plan.out, PACK)
    before = _DEFAULTS | _claimed(path)
    changed = [key for key in facts if before.get(key) != facts[key]]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} -> {facts[key]!r}"[:200] for key in changed)
        raise UserError(
            f"out={printable(plan.out)} holds shards of another packing ({listed}); give another"
            " --out, or what was given then"
        )


def _claimed(path: str) -> dict:
    """Read the facts of the packing whose pack.json is at `path`.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    try:
        facts = json.loads(store.read(path))
        if not isinstance(facts, dict):
            raise ValueError("it holds no facts by name")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{printable(path)} is damaged or cannot be read ({printable(str(error))}), so that"
            " nothing says what the shards beside it hold; give another --out, or remove them all"
        ) from error
    return facts


@contextmanager
def writing(path: str) -> Iterator[None]:
    """Turn errors of writing below `path` into a UserError."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise UserError(
            f"out={printable(path)} cannot be written ({printable(str(error))}); make room, or "
            "choose a folder that you may write to: finished shards are kept, and the same command "
            "goes on"
        ) from error
