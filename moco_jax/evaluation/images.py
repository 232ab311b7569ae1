"""The images of an evaluation: labelled images to train on and to test on, and their features."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax.base.errors import UserError
from moco_jax.config import registry
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.data.sources import require_no_place
from moco_jax.data.views import recipes
from moco_jax.encoders import Encoder
from moco_jax.evaluation import features
from moco_jax.evaluation.held_out import choose
from moco_jax.evaluation.labelled import Labelled, Part, labelled
from moco_jax.inference.trained_encoder import TrainedEncoder
from moco_jax.parallel import mesh as mesh_lib

Report = Callable[[str], None]


@functools.cache
def _make_encode(
    encoder: Encoder, kind: str, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> features.Encode:
    return features.make_encode(encoder, kind, mean, std, np.dtype("float32"), mesh)


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Training and test images for an encoder, and the devices that compute their features.

    Attributes:
        train, test: the two sets of images.
        own: whether they are those that the run itself names.
        config: the settings of the run.
        recipe: for the evaluation view.
        mesh: the devices.
        remarks: what a person must know of the images, a line each.
        damaged: name of a set of images -> how many could not be decoded and were left out.
    """

    train: Labelled
    test: Labelled
    own: bool
    config: ConfigDict
    recipe: recipes.Recipe
    mesh: Mesh
    remarks: Sequence[str] = ()
    damaged: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return max(self.train.number, self.test.number)

    def left_out(self) -> dict[str, dict[str, int]]:
        """Count the images of each set that no score counts, without a label or damaged."""
        parts = {"train": self.train, "test": self.test}
        return {
            name: {"unlabelled": part.unlabelled, "damaged": self.damaged.get(part.about, 0)}
            for name, part in parts.items()
        }

    def seen_by(self, trained: TrainedEncoder) -> "EvaluationData":
        """Return the same images as `trained` is shown them: at its size, by its mean and std.

        Raises:
            UserError: it takes images of another number of channels.
        """
        if trained.config is self.config:
            return self
        if trained.config.channels != self.config.channels:
            raise UserError(
                f"images of {self.config.channels} channels are evaluated here, and an encoder "
                f"beside ({trained.config.arch}) takes {trained.config.channels}; leave it out, or "
                "evaluate it alone by --weights"
            )
        config = trained.config.copy_and_resolve_references()
        config.update({name: self.config[name] for name in ("eval_batch_size", "workers", "seed")})
        return dataclasses.replace(self, config=config, recipe=recipe_of(config))

    def encoder(self, trained: TrainedEncoder, kind: str) -> Callable[[Any], Any]:
        """Return a function from uint8 images `[B, S, S, C]` to features `[B, D]` on every device.

        `kind` as in `make_encode`.
        """
        config = self.config
        if kind == "output" and not trained.has_head:
            raise UserError(
                "features='output' needs a head, and these weights have none; features='backbone'"
                " works"
            )
        encode = _make_encode(
            trained.encoder, kind, tuple(config.mean), tuple(config.std), self.mesh
        )
        variables = mesh_lib.to_every_device(self.mesh, trained.variables)
        return lambda images: encode(variables, images)

    def stream(
        self,
        images: Labelled,
        encode: Callable[[Any], Any],
        report: Report,
        recipe: recipes.Recipe | None = None,
        crops: tuple[int, Sequence[int]] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Compute features float32 `[m, D]` and classes int64 `[m]` of `images`, batch by batch.

        Damaged images are left out. `recipe` and `crops`: views that are drawn, as in
        `features.stream`; None: the evaluation view.
        """
        config, done = self.config, 0
        for rows, indices in features.stream(
            images.source,
            recipe or self.recipe,
            images.indices,
            config.eval_batch_size,
            config.workers,
            self.mesh,
            encode,
            crops,
        ):
            done += len(rows)
            report(f"features of {images.about}: {done:,} of {len(images.indices):,}")
            yield rows, images.classes_of(indices)
        if not done:
            raise UserError(
                f"none of the {len(images.indices):,} images of {images.about} can be decoded; "
                "give others"
            )
        self.damaged[images.about] = len(images.indices) - done

    def extract(self, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        """Compute all that `stream` yields: float32 `[M, D]` and int64 `[M]`."""
        rows, classes = zip(*self.stream(*arguments, **named), strict=True)
        return np.concatenate(rows), np.concatenate(classes)


def open_evaluation_data(
    config: ConfigDict,
    index_dir: str,
    *,
    dataset: str = "",
    data_dir: str = "",
    train_split: str = "",
    test_split: str = "",
    test_data_dir: str = "",
) -> EvaluationData:
    """Open the images that the arguments name; empty arguments take the run's own.

    Where no argument names images to test on, a tenth of the others is set apart, as the monitor
    does.

    Args:
        config: of the run.
        index_dir: where an index of records may be kept.
        dataset, data_dir, train_split: the training images.
        test_split, test_data_dir: the test images.

    Raises:
        UserError: there are no such images, they have no labels, or a batch does not divide over
            the devices.
    """
    mesh = mesh_lib.create_mesh()
    own = not any((dataset, data_dir, train_split, test_split, test_data_dir))
    if not (dataset or config.dataset):
        raise UserError(
            "a file of weights does not say which images to evaluate; give them by --dataset=NAME"
            " and --data_dir=PLACE (docs/data.md)"
        )
    if config.eval_batch_size % mesh.size:
        raise UserError(
            f"eval_batch_size={config.eval_batch_size} of this run does not divide over"
            f" {mesh.size} devices; use a number of devices that divides it"
        )
    ours, theirs = _parts(
        config, index_dir, dataset, data_dir, train_split, test_split, test_data_dir
    )
    learnt, tested, remarks = labelled(ours, theirs)
    return EvaluationData(
        train=learnt,
        test=tested,
        own=own,
        config=config,
        recipe=recipe_of(config),
        mesh=mesh,
        remarks=remarks,
    )


def _parts(
    config: ConfigDict,
    index_dir: str,
    dataset: str,
    data_dir: str,
    train_split: str,
    test_split: str,
    test_data_dir: str,
) -> tuple[Part, Part]:
    """Open the training and the test images; arguments are those of `open_evaluation_data`."""
    changed = config.copy_and_resolve_references()
    same = dataset in ("", config.dataset)
    if not same:
        changed.dataset, changed.data_dir = dataset, ""
    for place in (data_dir, test_data_dir):
        require_no_place(changed.dataset, place)
    changed.data_dir = data_dir or changed.data_dir
    has_splits = registry.has_splits(changed.dataset)
    if not has_splits and (train_split or test_split):
        raise UserError(
            f"dataset={changed.dataset!r} has no splits; --data_dir and --test_data_dir tell its"
            " images apart"
        )
    train_split = train_split or (config.split if same else "train")
    if has_splits:
        test_split = test_split or (config.eval_split if same else "")
    source = open_images(changed, train_split, index_dir)
    place = changed.data_dir or changed.dataset
    called = f"{changed.dataset} ({train_split})" if has_splits else place
    queries, test_called = None, f"a tenth of {called}, set apart"
    if test_split or test_data_dir:
        changed.data_dir = test_data_dir or changed.data_dir
        queries = open_images(changed, test_split, index_dir)
        test_called = f"{changed.dataset} ({test_split})" if has_splits else test_data_dir
    train, test = choose(source, queries, 0, config.seed)
    return Part(source, train, called), Part(queries or source, test, test_called)
