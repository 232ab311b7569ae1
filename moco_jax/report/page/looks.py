"""The page's heavy parts: view pairs once, neighbours and map at new checkpoints, and why one is left out."""

import dataclasses
import time
from collections.abc import Callable

from moco_jax.base.text import printable
from moco_jax.report.page import embedding, images
from moco_jax.report.page.embedding import Embedding
from moco_jax.report.page.images import Pair
from moco_jax.report.page.run import Run

SHARE = 20  # while it is watched, looking takes at most one part in so many of the time


@dataclasses.dataclass
class Look:
    """What was seen of one run.

    Attributes:
        pairs: its view pairs; empty where they are left out.
        embedding: of its last checkpoint that was looked at; None where there is none.
        missing: what is left out and why, a line each.
    """

    pairs: list[Pair] = dataclasses.field(default_factory=list)
    embedding: Embedding | None = None
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


def reason(error: Exception) -> str:
    """What `error` says, on one line; its kind too where it is none that is raised on purpose."""
    said = " ".join(str(error).split())
    if not said or not isinstance(error, ValueError | OSError):
        said = f"{type(error).__name__} {said}".strip()
    return printable(said[:300])


class Looks:
    """Looks at runs, and remembers."""

    def __init__(self, limit: int, report: Callable[[str], None]):
        """`limit`: images that a map shows at most, 0 for neither map nor neighbours; `report`: shows how far it is."""
        self.limit, self.report = limit, report
        self._known: dict[str, Look] = {}
        self._next: dict[str, float] = {}

    def at(self, run: Run) -> Look:
        """What is to be seen of `run` now; another look only at a new checkpoint, and not too soon after the last."""
        key = str(run.place)
        known = self._known.setdefault(key, Look())
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

    def _views(self, known: Look, run: Run) -> None:
        known.pairs = images.view_pairs(run)

    def _embedding(self, known: Look, run: Run) -> None:
        step = run.checkpoint()
        assert step is not None
        known.embedding = embedding.look(run, step, self.limit, self.report)

    def _try(self, known: Look, run: Run, part: str, look: Callable[[Look, Run], None]) -> None:
        """Look, or say why not: images may be gone or damaged, a checkpoint may go while it is read.

        A page without a part is better than none, whatever it is that fails.
        """
        called = {"views": "view pairs", "map": "neighbours and map"}[part]
        known.missing.pop(part, None)
        try:
            look(known, run)
        except Exception as error:
            known.missing[part] = f"{run.name}: {called}, as {reason(error)}"
