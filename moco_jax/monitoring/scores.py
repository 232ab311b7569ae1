"""Scores that a run gives itself: kNN where there are labels, and the spread of features."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moco_jax.data.labelled_views import KeptViews
from moco_jax.data.sources import Source
from moco_jax.data.sources.labels import listed
from moco_jax.data.views import recipes
from moco_jax.evaluation import features, knn
from moco_jax.evaluation.classes import Matched, match_sources
from moco_jax.method.info_nce import spread
from moco_jax.monitoring.signals import effective_rank
from moco_jax.parallel import mesh as mesh_lib

RAW_PIXELS_SIDE = 64
RANKED = (
    1024  # features at most of which the effective rank is taken: it costs the cube of their number
)
# Features at least, if there are so many images, of which spread and effective rank are taken: of
# one query alone a spread is 0, and a rank is never above their number.
VARIED = 512
FEW, NEAREST = 10, 6  # queries whose neighbours are handed over, and how many of each
SAMPLE = 1000  # searched images whose features are handed over

# Scores features float32 `[M, D]` of the images of indices int64 `[M]`: numbers by name.
Classify = Callable[[np.ndarray, np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Neighbours and features that an encoder gives to some of a monitor's images.

    Attributes:
        queries: int64 `[Q]`, the few whose neighbours are looked for, indices; damaged ones are
            left out.
        nearest: int64 `[Q, K]`, of each the nearest searched images by cosine, nearest first,
            indices.
        sample: int64 `[P]`, searched images, evenly spread, indices.
        features: float32 `[P, D]`, theirs.
    """

    queries: np.ndarray
    nearest: np.ndarray
    sample: np.ndarray
    features: np.ndarray


def evenly(count: int, most: int) -> np.ndarray:
    """Spread places int64 `[min(count, most)]` evenly over a row of `count`."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


@dataclasses.dataclass
class Monitor:
    """Scores an encoder by the neighbours of some images among others.

    Attributes:
        bank, bank_indices: the images that are searched.
        queries, query_indices: the images that are classified.
        recipe: for the evaluation view.
        encode: from variables and uint8 images to features.
        mesh, batch_size, workers, k, temperature: as in the config.
        pool: as `encode`, to pooled features; None where `encode` makes those.
        kept: views that are made once.
    """

    bank: Source
    bank_indices: np.ndarray
    queries: Source
    query_indices: np.ndarray
    recipe: recipes.Recipe
    encode: features.Encode
    mesh: Mesh
    batch_size: int
    workers: int
    k: int
    temperature: float
    pool: features.Encode | None = None
    kept: KeptViews = dataclasses.field(default_factory=KeptViews)
    _remarks: list[str] = dataclasses.field(default_factory=list)
    _announced: int = 0

    def features(
        self, encode, query_indices: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return bank features `[N, D]` and indices `[N]`, then the same of queries `[M]`.

        `query_indices`: which queries; all that are classified where None.
        """
        common = (self.batch_size, self.workers, self.mesh, encode)
        bank = features.extract(self.bank, self.recipe, self.bank_indices, *common, views=self.kept)
        return *bank, *self._of_queries(encode, query_indices)

    def _of_queries(
        self, encode, query_indices: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return features `[M, D]` and indices `[M]` of queries, as `features` does."""
        chosen = self.query_indices if query_indices is None else query_indices
        common = (self.batch_size, self.workers, self.mesh, encode)
        return features.extract(self.queries, self.recipe, chosen, *common, views=self.kept)

    def score(self, encode, also: Classify | None = None) -> tuple[dict[str, float], Snapshot]:
        """Score the features that `encode` makes; `also`: another score of the queries' features.

        Returns the numbers, and what was found on the way. The numbers are `knn` (share of queries
        classified rightly) if there are labels of two classes or more, `feature_spread` (0..1), and
        `effective_rank` of features that are finite; the latter two are of the queries, and where
        these are few of searched images too. What has no label has no vote and is not classified;
        `new_remarks` says so. There are no numbers where no query can be decoded.
        """
        bank, bank_indices, queries, query_indices = self.features(encode)
        if not len(query_indices):
            self._remark("no score: none of the query images can be decoded")
            rows = np.zeros((0, NEAREST), np.int64)
            return {}, _snapshot(bank, bank_indices, query_indices, rows)
        more = bank[evenly(len(bank), max(VARIED - len(queries), 0))]
        unit = knn.unit(np.concatenate([queries, more]))
        result = {"feature_spread": float(spread(jnp.asarray(unit)))}
        if also is not None:
            result |= also(queries, query_indices)
        if np.isfinite(unit).all():
            result["effective_rank"] = effective_rank(unit[:: -(-len(unit) // RANKED)])
        few = np.flatnonzero(np.isin(query_indices, self.shown_queries))
        matched = self.matched(bank_indices, query_indices)
        if matched is None or not self._can_score(matched):
            rows = knn.nearest(bank, queries[few], NEAREST)[1]
        else:
            self._count_left_out(matched)
            searched, asked = matched.train >= 0, matched.test >= 0
            cosines, rows = knn.nearest(bank[searched], queries[asked], max(self.k, NEAREST))
            grid = knn.votes(cosines, matched.train[searched][rows], [self.k], [self.temperature])
            result["knn"] = float(np.mean(grid[self.k, self.temperature] == matched.test[asked]))
            if searched.all() and asked.all():
                rows = rows[few]
            else:
                rows = knn.nearest(bank, queries[few], NEAREST)[1]
        return result, _snapshot(bank, bank_indices, query_indices[few], rows)

    def matched(self, bank_indices: np.ndarray, query_indices: np.ndarray) -> Matched | None:
        """Number the classes of searched images and queries alike; None without labels."""
        return match_sources(self.bank, bank_indices, self.queries, query_indices)

    def _can_score(self, matched: Matched) -> bool:
        """Return whether labels tell good features from bad; if not, keep why for `new_remarks`."""
        known = np.unique(matched.train[matched.train >= 0])
        if len(known) < 2:
            self._remark(f"no kNN: all labels are of one class, {matched.called[known[0]]!r}")
        elif not np.isin(matched.test, known).any():
            self._remark("no kNN: no query image belongs to a class of the searched images")
        else:
            return True
        return False

    def _count_left_out(self, matched: Matched) -> None:
        """Keep for `new_remarks` how many images a score leaves out."""
        for about, numbers, whole in (
            ("searched images", matched.train, len(self.bank_indices)),
            ("images to be classified", matched.test, len(self.query_indices)),
        ):
            without, damaged = int((numbers < 0).sum()), whole - len(numbers)
            counted = {"without a label": without, "damaged": damaged}
            parts = [f"{count:,} {why}" for why, count in counted.items() if count]
            if parts:
                self._remark(f"kNN leaves out, of {whole:,} {about}: {', '.join(parts)}")
        lost = np.isin(matched.test, matched.unlearnt)
        if lost.any():
            names = listed([matched.called[number] for number in matched.unlearnt.tolist()])
            asked = int((matched.test >= 0).sum())
            self._remark(
                f"kNN counts {int(lost.sum()):,} of {asked:,} images as wrong, as none of their "
                f"class is searched: {names}"
            )

    def _remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)

    def new_remarks(self) -> list[str]:
        """Return new lines on the labels that scores were made with; each is returned once."""
        new, self._announced = self._remarks[self._announced :], len(self._remarks)
        return new

    @property
    def shown_queries(self) -> np.ndarray:
        """The queries int64 `[Q]` whose neighbours are handed over; they never change."""
        return self.query_indices[evenly(len(self.query_indices), FEW)]

    def find_neighbours(self, variables: Mapping[str, Any]) -> Snapshot:
        """Find neighbours by the encoder with these variables, without a score."""
        bank, bank_indices, queries, kept = self.features(
            lambda images: self.encode(variables, images), self.shown_queries
        )
        return _snapshot(bank, bank_indices, kept, knn.nearest(bank, queries, NEAREST)[1])

    def measure(
        self, variables: Mapping[str, Any], probe: Classify | None = None
    ) -> tuple[dict[str, float], Snapshot]:
        """Score the encoder with these variables; also return its neighbours and features.

        `probe`: from pooled features of queries and their indices to scores, which join the others.
        """

        def encode(images: jax.Array) -> jax.Array:
            return self.encode(variables, images)

        pool = self.pool
        if probe is None or pool is None:
            return self.score(encode, probe)
        numbers, found = self.score(encode)
        if numbers:
            numbers |= probe(*self._of_queries(lambda images: pool(variables, images)))
        return numbers, found

    def raw_pixels(self) -> dict[str, float]:
        """Score the pixels themselves, scaled to -1..1; empty for images too large to be cheap."""
        if self.recipe.image_size > RAW_PIXELS_SIDE:
            return {}
        flatten = jax.jit(
            lambda images: images.reshape(len(images), -1) / 127.5 - 1,
            out_shardings=mesh_lib.replicated(self.mesh),
        )
        return self.score(flatten)[0]


def _snapshot(
    bank: np.ndarray, bank_indices: np.ndarray, queries: np.ndarray, rows: np.ndarray
) -> Snapshot:
    some = evenly(len(bank), SAMPLE)
    return Snapshot(queries, bank_indices[rows[:, :NEAREST]], bank_indices[some], bank[some])
