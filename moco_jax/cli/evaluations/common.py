"""What the evaluations' command lines share: the run and its encoders, the images that flags name, numbers, progress."""

import dataclasses
from typing import Any

import jax
from absl import flags
from etils import epath
from jax.sharding import Mesh

from moco_jax.base.console import Console
from moco_jax.cli import number_flags
from moco_jax.data.views import recipes
from moco_jax.evaluation import published
from moco_jax.evaluation.images import Report, Subject, open_subject
from moco_jax.evaluation.resume import Trainings, digest
from moco_jax.inference import trained_encoder
from moco_jax.parallel import hosts

FEATURES = flags.DEFINE_enum(
    "features", None, ["backbone", "output"],
    "Pooled features, or those after the head. Left out: for knn as the run's monitor has it, for linear 'backbone'.",
)  # fmt: skip
DATASET = flags.DEFINE_string("dataset", "", "Other images than the run's: as --config.dataset.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where they are: as --config.data_dir.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", "", "What is learnt from; the run's own if empty.")
TEST_SPLIT = flags.DEFINE_string(
    "test_split", "", "What is tested on; if empty the run's eval_split, or else a tenth of the training images."
)  # fmt: skip
TEST_DATA_DIR = flags.DEFINE_string("test_data_dir", "", "Where images to test on are, if apart.")
EPOCHS = number_flags.DEFINE_whole(
    "epochs", 0, "Of a training; 0 for the protocol's own.", 0, 10**6
)
BATCH_SIZE = number_flags.DEFINE_whole(
    "batch_size", 0, "Of a training; 0 for the protocol's own.", 0, 2**20
)
AUGMENT = flags.DEFINE_enum(
    "augment", "linear", list(recipes.RECIPES), "Training crops; 'linear' is the papers'."
)

Encoders = dict[str, trained_encoder.Trained]


@dataclasses.dataclass(frozen=True)
class Task:
    """What an evaluation is asked for.

    Attributes:
        encoders: under the names that tables give them; 'trained' is there always.
        which: 'query' or 'key' encoder.
        folder: where results are kept.
        console: where a person reads.
        report: shows how far it is.
        trainings: where they are kept until the evaluation has ended.
    """

    encoders: Encoders
    which: str
    folder: epath.Path
    console: Console
    report: Report
    trainings: Trainings

    @property
    def found(self) -> trained_encoder.Trained:
        """The encoder that was trained."""
        return self.encoders["trained"]


def open_images(task: Task, features: str) -> Subject:
    """The labelled images that the flags name; what will be done with which encoder is told."""
    config, found = task.found.config, task.found
    subject = open_subject(
        config, str(task.folder / "index"), dataset=DATASET.value, data_dir=DATA_DIR.value, train_split=TRAIN_SPLIT.value,
        test_split=TEST_SPLIT.value, test_data_dir=TEST_DATA_DIR.value,
    )  # fmt: skip
    hosts.require_agreement({
        "training images": digest((subject.train.indices, subject.train.classes)),
        "test images": digest((subject.test.indices, subject.test.classes)),
    })  # fmt: skip
    train, test = (len(images.indices) for images in (subject.train, subject.test))
    when = f"step {found.step}" if config.dataset else "of a file"
    assumed = " (ImageNet's are assumed)" if {"mean", "std"} & set(found.assumed) else ""
    task.console.facts({
        "encoder": f"{config.arch}, {task.which}, {when}, features: {features}",
        "its images": f"{config.image_size} pixels, mean {tuple(config.mean)}, std {tuple(config.std)}{assumed}",
        "training images": f"{train:,} of {subject.train.about}, {subject.classes} classes",
        "test images": f"{test:,} of {subject.test.about}",
        "devices": devices(subject.mesh),
    })  # fmt: skip
    for remark in (*found.remarks, *subject.remarks):
        task.console.line(remark)
    return subject


def devices(mesh: Mesh) -> str:
    """`8 x TPU v4 on 2 host(s)`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} on {jax.process_count()} host(s)"


def about(task: Task, subject: Subject, name: str, features: str) -> dict[str, Any]:
    """What a file of results says beside them; what is left out, and published, is told."""
    for part in (subject.train, subject.test):
        damaged = subject.damaged.get(part.about, 0)
        if damaged:
            whole = len(part.indices)
            task.console.line(
                f"{part.about}: {damaged:,} of {whole:,} images cannot be decoded and are left out"
            )
    known = published.of(name, task.found.config) if subject.own else None
    if known:
        task.console.line(f"published: {known[0]} % ({known[1]})")
    return {
        "features": features, "train": subject.train.about, "train_images": len(subject.train.indices),
        "test": subject.test.about, "test_images": len(subject.test.indices),
        "left_out": subject.left_out(),
        "published": known and {"percent": known[0], "source": known[1]},
    }  # fmt: skip


def percent(share: float) -> str:
    """`61.42 %`."""
    return f"{100 * share:.2f} %"
