"""Packs image files into shards, and pictures into smaller ones on the way if that is asked for.

A folder of a million small files reads slowly, a few large files do not. `plan.py` says which
images go into which shard, `claims.py` whose folder it is, `rewriting.py` what becomes of an image
on its way, `shards.py` writes them, and `effect.py` measures what smaller pictures change.
"""

from moco_jax.data.packing.plan import FORMATS, Plan, make_plan
from moco_jax.data.packing.shards import MANIFEST, damaged_names, example, missing, pack

__all__ = [
    "FORMATS",
    "MANIFEST",
    "Plan",
    "damaged_names",
    "example",
    "make_plan",
    "missing",
    "pack",
]
