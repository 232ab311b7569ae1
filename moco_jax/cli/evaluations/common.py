"""Shared by all evaluations: the task, opening the images, and the facts of a result."""

import dataclasses
from typing import Any

import jax
from absl import flags
from etils import epath
from jax.sharding import Mesh

from moco_jax.base import digests
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError, nearest_multiples
from moco_jax.evaluation import published
from moco_jax.evaluation.images import (
    EvaluationData,
    Report,
    open_evaluation_data,
    require_alike,
)
from moco_jax.evaluation.resume import Trainings
from moco_jax.inference import trained_encoder
from moco_jax.parallel import hosts

Encoders = dict[str, trained_encoder.TrainedEncoder]


@dataclasses.dataclass(frozen=True)
class Task:
    """The task of one evaluation: its encoders, its flags, and where its results go.

    Attributes:
        encoders: under the names that tables give them; 'trained' is there always.
        which: 'query' or 'key' encoder.
        folder: where results are kept.
        console: where a person reads.
        report: shows how far the evaluation is.
        trainings: keeps unfinished trainings until the evaluation has ended.
        given: the flags of the evaluation.
    """

    encoders: Encoders
    which: str
    folder: epath.Path
    console: Console
    report: Report
    trainings: Trainings
    given: flags.FlagValues

    @property
    def trained(self) -> trained_encoder.TrainedEncoder:
        """The encoder that was trained."""
        return self.encoders["trained"]


def require_fair(task: Task, features: str) -> None:
    """Refuse, before anything is computed, encoders that one table could not compare.

    Raises:
        UserError: one has no such `features`, or was trained on images that were read otherwise.
    """
    config = task.trained.config
    for name, one in task.encoders.items():
        if one.config is not config:
            require_alike(config, one.config, name)
        if features == "output" and not one.has_head:
            raise UserError(
                f"features='output' needs a head, and the weights of {name!r} have none; "
                "--features=backbone works"
            )


def open_images(task: Task, features: str) -> EvaluationData:
    """Open the labelled images that the flags name, and print what is evaluated on them."""
    config, trained, given = task.trained.config, task.trained, task.given
    require_fair(task, features)
    data = open_evaluation_data(
        config,
        str(task.folder / "index"),
        dataset=given.dataset,
        data_dir=given.data_dir,
        train_split=given.train_split,
        test_split=given.test_split,
        test_data_dir=given.test_data_dir,
    )
    hosts.require_agreement(
        {
            "training images": digests.of_tree((data.train.indices, data.train.classes)),
            "test images": digests.of_tree((data.test.indices, data.test.classes)),
        }
    )
    train, test = (len(images.indices) for images in (data.train, data.test))
    others = {
        name: f"{_origin(task, one)}, {_views(one)}"
        for name, one in task.encoders.items()
        if one.config is not config
    }
    task.console.facts(
        {
            "encoder": f"{_origin(task, trained)}, features: {features}",
            "its images": _views(trained),
            **others,
            "training images": f"{train:,} of {data.train.about}, {data.classes} classes",
            "test images": f"{test:,} of {data.test.about}",
            "devices": devices(data.mesh),
        }
    )
    of_encoders = [remark for one in task.encoders.values() for remark in one.remarks]
    for remark in (*dict.fromkeys(of_encoders), *data.remarks):
        task.console.line(remark)
    return data


def _origin(task: Task, one: trained_encoder.TrainedEncoder) -> str:
    """Say which encoder `one` is of its run or file, as `resnet18, query, step 400`."""
    if one.config.dataset:
        return f"{one.config.arch}, {task.which}, step {one.step}"
    return f"{one.config.arch}, {task.which if one is task.trained else 'query'}, of a file"


def _views(trained: trained_encoder.TrainedEncoder) -> str:
    config = trained.config
    assumed = " (ImageNet's are assumed)" if {"mean", "std"} & set(trained.assumed) else ""
    return (
        f"{config.image_size} pixels, mean {tuple(config.mean)}, std {tuple(config.std)}{assumed}"
    )


def devices(mesh: Mesh) -> str:
    """Name the devices, as `8 x TPU v4 on 2 host(s)`."""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind} on {jax.process_count()} host(s)"


def about(task: Task, data: EvaluationData, name: str, features: str) -> dict[str, Any]:
    """Collect the facts that stand beside the results of the evaluation `name` in its file.

    The console is told how many images are left out, and the published number where there is one.
    """
    for part in (data.train, data.test):
        damaged = data.damaged.get(part.about, 0)
        if damaged:
            whole = len(part.indices)
            task.console.line(
                f"{part.about}: {damaged:,} of {whole:,} images cannot be decoded and are left out"
            )
    known = published.of(name, task.trained.config) if data.own else None
    if known:
        task.console.line(f"published: {known[0]} % ({known[1]})")
    return {
        "features": features,
        "train": data.train.about,
        "train_images": len(data.train.indices),
        "test": data.test.about,
        "test_images": len(data.test.indices),
        "left_out": data.left_out(),
        "published": known and {"percent": known[0], "source": known[1]},
    }


def require_division(batch_size: int, devices: int) -> None:
    """Refuse a --batch_size of which the devices cannot have equal parts."""
    if batch_size % devices:
        works = nearest_multiples(batch_size, devices)
        raise UserError(
            f"--batch_size={batch_size} does not divide over {devices} devices; {works}"
        )


def percent(share: float) -> str:
    """Write a share in per cent, as `61.42 %`."""
    return f"{100 * share:.2f} %"
