"""Dictionaries that queries are matched against: where keys are kept, and how they are renewed.

A dictionary is one class that keeps the protocol `Dictionary`, and one row of `DICTIONARIES`. It
knows arrays and devices, neither encoder nor loss.
"""

from moco_jax.method.dictionary.batch_keys import BatchKeys
from moco_jax.method.dictionary.memory_bank import BANK_ROWS, MemoryBank
from moco_jax.method.dictionary.protocol import Dictionary, Negatives, Sizes
from moco_jax.method.dictionary.queue import Queue

__all__ = [
    "BANK_ROWS",
    "DICTIONARIES",
    "BatchKeys",
    "Dictionary",
    "MemoryBank",
    "Negatives",
    "Queue",
    "Sizes",
]

# The values of the setting `dictionary`.
DICTIONARIES: dict[str, type[Dictionary]] = {
    "queue": Queue,
    "batch": BatchKeys,
    "memory_bank": MemoryBank,
}
