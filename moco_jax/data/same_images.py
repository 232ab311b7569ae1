"""Makes sure that the hosts of one command see the same images, before they divide the work."""

import hashlib

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.data.sources import Source
from moco_jax.parallel import everyone

NAMES = 256  # images whose names are compared: a record is read for each


def names_digest(source: Source) -> str:
    """Return the SHA-256, in hexadecimal, of the number of images and the names of some of them."""
    some = np.unique(np.linspace(0, len(source) - 1, NAMES).round().astype(np.int64))
    names = "\n".join([str(len(source)), *source.names(some)])
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def require_same(source: Source) -> int:
    """Refuse hosts whose `source` differs, and return how many they are; every host calls this.

    Raises:
        UserError: they have other images; the same on every host.
    """
    if everyone.is_alone():
        return 1
    with everyone.failing_together():
        own = [len(source), names_digest(source)]
    said = everyone.gather(own)
    differing = [number for number, other in enumerate(said) if other != said[0]]
    if differing:
        first = differing[0]
        numbers = f"process 0 has {said[0][0]:,}, process {first} has {said[first][0]:,}"
        others = " of other names" if said[0][0] == said[first][0] else ""
        raise UserError(
            f"the hosts see other images: {numbers}{others}; data_dir must hold the same on"
            " every host"
        )
    return len(said)
