"""Renews the page's slow parts: view pairs once, neighbours and map at new checkpoints.

Where a part cannot be made, it says why.
"""

import dataclasses
import time
from collections.abc import Callable

from moco_jax.base.text import printable
from moco_jax.report.page import embedding, images
from moco_jax.report.page.embedding import Embedding
from moco_jax.report.page.images import Pair
from moco_jax.report.page.run import Run

SHARE = 20  # while the page is watched, renewing takes at most 1 / SHARE of the time


@dataclasses.dataclass
class SlowParts:
    """The slow parts of the page on one run.

    Attributes:
        pairs: its view pairs; empty where they are left out.
        embedding: of the last checkpoint that was encoded; None where there is none.
        missing: part -> what is left out and why, a line.
    """

    pairs: list[Pair] = dataclasses.field(default_factory=list)
    embedding: Embedding | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


def reason(error: Exception) -> str:
    """Return the text of `error`, on one line, with its type where it was not raised on purpose."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, ValueError | OSError):
        text = f"{type(error).__name__} {text}".strip()
    return printable(text[:300])


class Renewal:
    """Makes the slow parts of pages on runs, and keeps them until they are out of date."""

    def __init__(self, limit: int, report: Callable[[str], None]):
        """Make maps of at most `limit` images; 0: neither map nor neighbours.

        `report` is called with a line on how far it is.
        """
        self.limit, self.report = limit, report
        self._known: dict[str, SlowParts] = {}
        self._next: dict[str, float] = {}

    def at(self, run: Run) -> SlowParts:
        """Return the slow parts of the page on `run`, renewed at a new checkpoint.

        They are not renewed again too soon after the last time.
        """
        key = str(run.place)
        known = self._known.setdefault(key, SlowParts())
        if not known.pairs and "views" not in known.missing:
            self._try(known, run, "views", self._views)
        step, now = run.checkpoint(), time.monotonic()
        if not self.limit:
            return known
        if step is None:
            known.missing["map"] = f"{run.name}: neighbours and map, as there is no checkpoint"
        elif (known.embedding is None or known.embedding.step != step) and now >= self._next.get(
            key, 0
        ):
            self._try(known, run, "map", self._embedding)
            self._next[key] = time.monotonic() + SHARE * (time.monotonic() - now)
        return known

    def _views(self, known: SlowParts, run: Run) -> None:
        known.pairs = images.view_pairs(run)

    def _embedding(self, known: SlowParts, run: Run) -> None:
        step = run.checkpoint()
        assert step is not None
        known.embedding = embedding.look(run, step, self.limit, self.report)

    def _try(
        self, known: SlowParts, run: Run, part: str, look: Callable[[SlowParts, Run], None]
    ) -> None:
        """Renew a section with `look`, or note why it is missing.

        Images may be gone or damaged, and a checkpoint may go while it is read. A page without a
        part is better than none, whatever it is that fails.
        """
        called = {"views": "view pairs", "map": "neighbours and map"}[part]
        known.missing.pop(part, None)
        try:
            look(known, run)
        except Exception as error:
            known.missing[part] = f"{run.name}: {called}, as {reason(error)}"
