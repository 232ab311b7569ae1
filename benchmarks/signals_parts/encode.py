"""Encodes the images of a run by its checkpoints; what is found is kept in a file for each.

So a measurement that is stopped goes on with the checkpoint at which it was.
"""

import dataclasses
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax.base import files
from moco_jax.base.errors import UserError
from moco_jax.evaluation import features, grid, knn
from moco_jax.inference.features import make_features
from moco_jax.monitoring.drawn_views import DrawnViews
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.training.assembly import RunSetup, build
from moco_jax.weights import workdir as weights

PROBE = grid.Grid(rates=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0), decays=(0.0, 1e-4), norms=(True,))
KINDS = ("backbone", "output")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint gives.

    Attributes:
        run, step: which.
        knn, probe: share of test images that neighbours, and a linear classifier, get right.
        still: kind -> unit features float32 `[M, D]` of test images in their evaluation view.
        views: kind -> unit features float32 `[N, Q, D]` of drawn views of training images.
        seconds: what took how long: 'evaluation views', 'drawn views', 'knn', 'probe'.
    """

    run: str
    step: int
    knn: float
    probe: float
    still: dict[str, np.ndarray]
    views: dict[str, np.ndarray]
    seconds: dict[str, float]


def steps_of(workdir: Path) -> list[int]:
    """List the steps of the checkpoints in `workdir`, ascending."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def checkpoints(workdir: Path, kept: Path) -> Iterator[Checkpoint]:
    """Yield what each checkpoint in `workdir` gives; files in the folder `kept` have it at once."""
    reader = None
    for step in steps_of(workdir):
        path = kept / f"{workdir.name}_{step:08}.npz"
        if not path.exists():
            reader = reader or _Reader(workdir)
            _write(path, reader.read(step))
        yield _read(path)


class _Reader:
    """Encodes the images of one run, by one checkpoint after the other."""

    def __init__(self, workdir: Path):
        """Open the images of the run in `workdir`."""
        config = weights.read_config(str(workdir))
        self.workdir, setup = workdir, build(config, str(workdir / "index"))
        self.dim = config.dim
        self.monitor = dataclasses.replace(setup.monitor, encode=_both(config, setup))
        self.drawn = DrawnViews.of(self.monitor)
        # Programs are compiled and views made before anything is timed.
        first = weights.variables(str(workdir), "query", steps_of(workdir)[0])
        self._still(first)
        self.drawn.features(first)

    def _still(self, variables: Any) -> tuple[np.ndarray, ...]:
        return self.monitor.features(lambda images: self.monitor.encode(variables, images))

    def read(self, step: int) -> Checkpoint:
        """Encode and score the checkpoint of `step`."""
        seconds: dict[str, float] = {}

        def timed(name: str, do: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            found = do()
            seconds[name] = time.perf_counter() - began
            return found

        variables = weights.variables(str(self.workdir), "query", step)
        bank, searched, asked, of = timed("evaluation views", lambda: self._still(variables))
        views = timed("drawn views", lambda: self.drawn.features(variables))
        classes = self.monitor.matched(searched, of)
        if classes is None:
            raise UserError(f"{self.workdir}: its images have no labels to compare with")
        known = bank[:, : -self.dim], classes.train, asked[:, : -self.dim], classes.test
        k, temperature = self.monitor.k, self.monitor.temperature
        named = timed("knn", lambda: knn.classify(*known[:3], k, temperature))
        return Checkpoint(
            run=self.workdir.name,
            step=step,
            knn=float(np.mean(named == classes.test)),
            probe=timed("probe", lambda: _probe(*known, self.monitor.mesh)),
            still=self._kinds(asked),
            views=self._kinds(views),
            seconds=seconds,
        )

    def _kinds(self, both: np.ndarray) -> dict[str, np.ndarray]:
        parts = both[..., : -self.dim], both[..., -self.dim :]
        return {
            k: p / np.linalg.norm(p, axis=-1, keepdims=True).clip(1e-12)
            for k, p in zip(KINDS, parts, strict=True)
        }


def _both(config: ConfigDict, setup: RunSetup) -> features.Encode:
    """Make the function from images to features of both kinds, one behind the other."""
    program = setup.program
    made = [
        make_features(program.encoder, kind, config.mean, config.std, program.dtype)
        for kind in KINDS
    ]
    return jax.jit(
        lambda variables, images: jnp.concatenate([f(variables, images) for f in made], -1),
        out_shardings=mesh_lib.replicated(program.mesh),
    )


def _probe(
    bank: np.ndarray, classes: np.ndarray, queries: np.ndarray, truth: np.ndarray, mesh: Mesh
) -> float:
    """Return the share of queries that the best of some linear classifiers gets right."""
    settings = grid.FitSettings(number=int(classes.max()) + 1)
    sets, quiet = [bank], lambda _: None
    return grid.search(sets, classes, queries, truth, PROBE, mesh, settings, quiet).test


def _write(path: Path, found: Checkpoint) -> None:
    arrays = {
        f"{what}/{kind}": getattr(found, what)[kind]
        for what in ("still", "views")
        for kind in KINDS
    }
    facts = {"run": found.run, "step": found.step, "knn": found.knn, "probe": found.probe}
    buffer = io.BytesIO()
    np.savez(buffer, facts=json.dumps(facts | {"seconds": found.seconds}), **arrays)
    files.write(epath.Path(path), buffer.getvalue())


def _read(path: Path) -> Checkpoint:
    with np.load(path) as found:
        parts = {
            what: {kind: found[f"{what}/{kind}"] for kind in KINDS} for what in ("still", "views")
        }
        return Checkpoint(**json.loads(str(found["facts"])), **parts)
