"""What an evaluation works on: labelled images to learn from and to be tested on, and features of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from moco_jax.base.errors import UserError
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.data.views import recipes
from moco_jax.encoders import Encoder
from moco_jax.evaluation import features
from moco_jax.evaluation.held_out import choose
from moco_jax.evaluation.labelled import Labelled, Part, labelled
from moco_jax.inference.trained_encoder import Trained
from moco_jax.parallel import mesh as mesh_lib

Report = Callable[[str], None]


@functools.cache
def _make_encode(
    encoder: Encoder, kind: str, mean: tuple[float, ...], std: tuple[float, ...], mesh: Mesh
) -> features.Encode:
    return features.make_encode(encoder, kind, mean, std, np.dtype("float32"), mesh)


@dataclasses.dataclass(frozen=True)
class Subject:
    """Images for an encoder, and how to go through them.

    Attributes:
        train, test: what is learnt from, and what is tested on.
        own: whether they are those that the run itself names.
        config: the settings of the run.
        recipe: for the evaluation view.
        mesh: the devices.
        remarks: what a person must know of the images, a line each.
        damaged: by what images are called, how many could not be decoded and were left out.
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
        """How many there are."""
        return max(self.train.number, self.test.number)

    def left_out(self) -> dict[str, dict[str, int]]:
        """How many images of each part no score counts: they have no label, or are damaged."""
        parts = {"train": self.train, "test": self.test}
        return {
            name: {"unlabelled": part.unlabelled, "damaged": self.damaged.get(part.about, 0)}
            for name, part in parts.items()
        }

    def encoder(self, found: Trained, kind: str) -> Callable[[Any], Any]:
        """From uint8 images `[B, S, S, C]` to features `[B, D]` on every device; `kind` as in `make_encode`."""
        config = self.config
        if kind == "output" and not found.has_head:
            raise UserError(
                "features='output' needs a head, and these weights have none; 'backbone' is what"
                " there is"
            )
        encode = _make_encode(found.encoder, kind, tuple(config.mean), tuple(config.std), self.mesh)
        variables = mesh_lib.to_every_device(self.mesh, found.variables)
        return lambda images: encode(variables, images)

    def stream(
        self,
        images: Labelled,
        encode: Callable[[Any], Any],
        report: Report,
        recipe: recipes.Recipe | None = None,
        crops: tuple[int, int] | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features float32 `[m, D]` and classes int64 `[m]` of `images`, a batch at a time, damaged ones left out.

        `recipe` and `crops`: views that are drawn, as in `features.stream`; None: the evaluation
        view.
        """
        config, done = self.config, 0
        for found, indices in features.stream(
            images.source,
            recipe or self.recipe,
            images.indices,
            config.eval_batch_size,
            config.workers,
            self.mesh,
            encode,
            crops,
        ):
            done += len(found)
            report(f"features of {images.about}: {done:,} of {len(images.indices):,}")
            yield found, images.classes_of(indices)
        if not done:
            raise UserError(
                f"none of the {len(images.indices):,} images of {images.about} can be decoded; "
                "give others"
            )
        self.damaged[images.about] = len(images.indices) - done

    def extract(self, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        """What `stream` yields for these arguments, whole: float32 `[M, D]` and int64 `[M]`."""
        found, classes = zip(*self.stream(*arguments, **named), strict=True)
        return np.concatenate(found), np.concatenate(classes)


def open_subject(
    config: ConfigDict,
    index_dir: str,
    *,
    dataset: str = "",
    data_dir: str = "",
    train_split: str = "",
    test_split: str = "",
    test_data_dir: str = "",
) -> Subject:
    """The images that these words name, the run's own where they are empty.

    Where nothing names images to be tested on, a tenth of the others is set apart, as the
    monitor does.

    Args:
        config: of the run.
        index_dir: where an index of records may be kept.
        dataset, data_dir, train_split: what is learnt from.
        test_split, test_data_dir: what is tested on.

    Raises:
        UserError: there are no such images, they have no labels, or a batch does not divide over
            the devices.
    """
    the_mesh, changed = mesh_lib.create_mesh(), config.copy_and_resolve_references()
    own = not any((dataset, data_dir, train_split, test_split, test_data_dir))
    if not (dataset or config.dataset):
        raise UserError(
            "weights in a file do not say of which images; --dataset=NAME does, with"
            " --data_dir=PLACE (docs/data.md)"
        )
    if config.eval_batch_size % the_mesh.size:
        raise UserError(
            f"eval_batch_size={config.eval_batch_size} of this run does not divide over"
            f" {the_mesh.size} devices"
        )
    same = dataset in ("", config.dataset)
    if not same:
        changed.dataset, changed.data_dir = dataset, ""
    changed.data_dir = data_dir or changed.data_dir
    has_splits = changed.dataset == "digits" or changed.dataset.startswith("tfds:")
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
    ours, theirs = Part(source, train, called), Part(queries or source, test, test_called)
    learnt, tested, remarks = labelled(ours, theirs)
    return Subject(
        train=learnt,
        test=tested,
        own=own,
        config=config,
        recipe=recipe_of(config),
        mesh=the_mesh,
        remarks=remarks,
    )
