"""A fingerprint of the images of a run: whether hosts, or a run and its checkpoint, have the same.

It is made of what a source knows without reading an image, and of nothing that says where the set
lies: a copy on another disk has the same fingerprint.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.data.sources import Source
from moco_jax.parallel import hosts

Fingerprint = Mapping[str, Any]
LENGTH = 32  # hexadecimal digits that are kept of a digest


def of(source: Source) -> dict[str, Any]:
    """Return the fingerprint of `source`, values of JSON; a million images take some 0.1 s.

    Returns:
        `images`, how many; `classes`, a digest of their names in the order of their numbers; and
        `names`, a digest of all that `source.identity()` gives, '' where it has no such method.
    """
    identity = getattr(source, "identity", None)
    known = [] if identity is None else identity()
    first = getattr(source, "known_classes", source.classes)
    return {
        "images": len(source),
        "names": "" if identity is None else _digest(known),
        "classes": _digest([_joined(first)]),
    }


def agreed(source: Source) -> dict[str, Any]:
    """Return the fingerprint of `source`, alike on all hosts; every host must call this.

    Hosts that saw other images would draw other batches, each in an order of its own.

    Raises:
        UserError: they see other images; on every host.
    """
    known = of(source)
    hosts.require_agreement(in_words(known), "data_dir must hold the same images on every host")
    return known


def _joined(words: Any) -> bytes:
    return "\n".join(words).encode("utf-8", "surrogateescape")


def _digest(parts: Any) -> str:
    """Return the start of the SHA-256 of `parts`, strings in lists, bytes or arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, list):
            part = _joined(part)
        whole: Any = part if isinstance(part, bytes) else np.ascontiguousarray(part)
        content = memoryview(whole)
        # The lengths keep what ends in one part from being taken for the start of the next.
        digest.update(f"{content.nbytes} ".encode())
        digest.update(content)
    return digest.hexdigest()[:LENGTH]


def in_words(found: Fingerprint) -> dict[str, Any]:
    """Name the facts of the fingerprint `found` as a message about hosts that differ should."""
    words = {"images": "images", "names": "names and sizes of images", "classes": "classes"}
    return {words[key]: value for key, value in found.items()}


def difference(old: Fingerprint, new: Fingerprint) -> str:
    """Say how the images of fingerprint `new` differ from those of `old`; '' where they do not."""
    if old.get("images") != new.get("images"):
        return f"{old.get('images')} images -> {new.get('images')} images"
    told = {
        "names": f"{new['images']} images as before, but of other names, order or sizes",
        "classes": "the classes have other names or another order",
    }
    return next((words for key, words in told.items() if old.get(key) != new.get(key)), "")
