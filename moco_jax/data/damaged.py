"""The list of images that a run could not decode."""

import logging

from moco_jax.base.errors import UserError


class DamagedImages:
    """Collects the names of images that could not be decoded, and ends a run at too many."""

    def __init__(self, limit: int):
        """Tolerate at most `limit` different damaged images."""
        self.limit = limit
        self.names: dict[str, None] = {}

    def add(self, name: str) -> None:
        """Count and name a damaged image; raises UserError with the list above the limit."""
        if name in self.names:
            return
        self.names[name] = None
        logging.warning("damaged image %d, replaced by the next: %s", len(self.names), name)
        if len(self.names) > self.limit:
            raise UserError(
                f"more than max_bad_images={self.limit} damaged images; mend or remove them, or"
                f" raise the limit: {', '.join(self.names)}"
            )
