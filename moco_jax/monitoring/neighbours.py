"""The picture of nearest neighbours, `neighbours.png`: before training and now.

It is drawn anew at each score. What was found before training is kept in `neighbours.json`, without
any pixels, for a run that is stopped and goes on.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from moco_jax.base import figures, files
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.data import labelled_views
from moco_jax.data.sources import Source, labels
from moco_jax.data.views.recipes import Recipe
from moco_jax.monitoring.run_log import Writers
from moco_jax.monitoring.scores import Monitor, Snapshot
from moco_jax.parallel import hosts

Nearest = dict[int, list[int]]  # index of a query -> those of its nearest, nearest first
Images = dict[int, np.ndarray]  # index -> uint8 `[S, S, C]`


class Picture:
    """Draws `neighbours.png` of a run, and shows it on TensorBoard.

    The host that writes records draws; others know what was found as well.

    Attributes:
        path: the PNG.
        before: what was found before training; None where it is not known.
        drawn: whether the PNG is there, drawn by this run now or earlier.
    """

    def __init__(
        self,
        place: epath.Path,
        monitor: Monitor,
        console: Console,
        log: Writers,
        start: int,
        last: int,
    ):
        """Open the picture of a run, and read what an earlier part of the run found.

        Args:
            place: the workdir.
            monitor: finds the neighbours.
            console: told where the picture fails.
            log: takes the picture to TensorBoard.
            start: the step after which the run begins, or goes on.
            last: the last step of the run as it is planned.
        """
        self.path, self._kept = place / "neighbours.png", place / "neighbours.json"
        self.monitor, self.console, self.log, self.last = monitor, console, log, last
        self._query_images: Images = {}
        self._bank_images: Images = {}
        self._broken = False
        self.before = self._read() if start else None

    def begin(self, snapshot: Snapshot) -> None:
        """Keep the neighbours before training, for the pictures that follow."""
        self.before = _nearest(snapshot)
        self._try(self._keep, self.before)

    def renew(self, step: int, snapshot: Snapshot) -> None:
        """Draw the neighbours after `step`; those at step 0 are kept as well."""
        if step == 0:
            self.begin(snapshot)
        if len(snapshot.queries):
            self._try(self._draw, step, _nearest(snapshot))

    @property
    def drawn(self) -> bool:
        """Whether the picture is there, and no drawing of it failed."""
        return not self._broken and self.path.exists()

    def _try(self, do: Callable, *arguments: Any) -> None:
        if not self.log.writes or self._broken:
            return
        try:
            do(*arguments)
        except Exception as error:  # a picture is not worth a run
            self._broken = True
            self.console.line(f"{self.path.name} fails and is left out from here on: {error!r}")

    def complete(
        self,
        last: int,
        snapshot: Snapshot | None,
        now: Callable[[], Mapping[str, Any]],
        first: Callable[[], Mapping[str, Any]],
    ) -> Snapshot:
        """Draw the last picture of a run, with both its columns; every host must call this.

        Args:
            last: the step at which the run has ended; before that of the plan if it was stopped.
            snapshot: at the last step; None where there was no score.
            now: gives the variables of the encoder at the end.
            first: those before training; a UserError says why they are gone.

        Returns:
            what was found at the last step.
        """
        known = hosts.broadcast(self.before is not None)
        if not known:
            try:
                self.begin(self.monitor.find_neighbours(first()))
            except UserError as error:
                self.console.line(f"{error}; the picture shows the encoder after training alone")
        drawn_as_last, self.last = last == self.last, last
        if snapshot is None or not known or not drawn_as_last:
            snapshot = snapshot or self.monitor.find_neighbours(now())
            self.renew(self.last, snapshot)
        return snapshot

    def _keep(self, nearest: Nearest) -> None:
        kept = {"names": self._names(nearest), "nearest": nearest}
        files.write(self._kept, json.dumps(kept).encode())

    def _draw(self, step: int, nearest: Nearest) -> None:
        now = "after" if step == self.last else f"step {step:,}" if step else "before training"
        columns = {now: nearest}
        if step and self.before and nearest.keys() <= self.before.keys():
            columns = {"before training": {q: self.before[q] for q in nearest}, **columns}
        bank, queries = self.monitor.bank, self.monitor.queries
        rows = {title: np.asarray([*found.values()]) for title, found in columns.items()}
        asked = np.asarray([*nearest])
        searched = np.unique(np.concatenate([found.ravel() for found in rows.values()]))
        # Queries, and neighbours that were drawn last time, are not decoded again.
        self._query_images = self._images(queries, asked, self._query_images)
        self._bank_images = self._images(bank, searched, self._bank_images)
        matched, right = self.monitor.matched(searched, asked), None
        if matched is not None:
            truth = np.ma.masked_equal(matched.test[:, None], labels.MISSING)
            found = np.ma.masked_equal(matched.train, labels.MISSING)
            right = {t: found[np.searchsorted(searched, f)] == truth for t, f in rows.items()}
        figures.neighbours(
            self.path,
            np.stack([self._query_images[q] for q in nearest]),
            {
                t: np.stack([[self._bank_images[i] for i in row] for row in f.tolist()])
                for t, f in rows.items()
            },
            right,
        )
        self.log.picture(step, "neighbours", self.path)

    def _images(self, source: Source, indices: np.ndarray, known: Images) -> Images:
        new = np.asarray([i for i in indices.tolist() if i not in known], np.int64)
        if len(new):
            made = views(source, self.monitor.recipe, new, self.monitor.workers)
            known = known | dict(zip(new.tolist(), made, strict=True))
        return {i: known[i] for i in indices.tolist()}

    def _names(self, nearest: Nearest) -> list[list[str]]:
        """List for each query its name and those of its neighbours."""
        asked, found = np.asarray([*nearest], np.int64), np.asarray([*nearest.values()], np.int64)
        called = self.monitor.bank.names(found.ravel())
        width = found.shape[-1]
        return [
            [name, *called[row * width : (row + 1) * width]]
            for row, name in enumerate(self.monitor.queries.names(asked))
        ]

    def _read(self) -> Nearest | None:
        """Read what an earlier part of the run kept; None if nothing, or of other images."""
        if not self._kept.exists():
            return None
        try:
            kept = json.loads(self._kept.read_text())
            nearest = {
                int(query): list(map(int, found)) for query, found in kept["nearest"].items()
            }
            same = (
                nearest.keys() <= set(self.monitor.shown_queries.tolist())
                and self._names(nearest) == kept["names"]
            )
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            OSError,
        ):
            same = False
        if same:
            return nearest
        self.console.line(
            f"{self._kept} is damaged or of other images: until the run ends its picture has no "
            "column 'before training'"
        )
        return None


def _nearest(snapshot: Snapshot) -> Nearest:
    return dict(zip(snapshot.queries.tolist(), snapshot.nearest.tolist(), strict=True))


def views(source: Source, recipe: Recipe, indices: np.ndarray, workers: int) -> np.ndarray:
    """Make the evaluation views uint8 `[N, S, S, C]` of the images `indices` int `[N]`."""
    batches = labelled_views.evaluation_batches(source, recipe, indices[:, None], workers)
    return np.concatenate([batch["image"] for batch in batches])
