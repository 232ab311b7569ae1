"""`evaluate segmentation`: an FCN on the backbone, fine-tuned on labelled pixels.

MoCo v1, section 4.2.3 and appendix A.5.
"""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moco_jax.base import digests
from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli.evaluations.common import Task, devices, percent, require_division
from moco_jax.data.sources import reading
from moco_jax.data.sources.pixels import Decoding
from moco_jax.encoders.configured import compute_dtype
from moco_jax.encoders.resnet import ResNet
from moco_jax.evaluation import published
from moco_jax.evaluation.segmentation import data, fcn, scoring, training
from moco_jax.evaluation.segmentation.views import InputSettings
from moco_jax.inference.trained_encoder import TrainedEncoder
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib

# How many images of VOC (train_aug2012, val2012) and Cityscapes (train_fine, val) the paper trains
# and tests on.
PAPER = {(10_582, 1_449): "segmentation of VOC", (2_975, 500): "segmentation of Cityscapes"}


def run(task: Task) -> dict[str, Any]:
    """Print the IoU of each class with each encoder as a table, and return what is written."""
    config, console, mesh = task.trained.config, task.console, mesh_lib.create_mesh()
    folder = task.given.data_dir
    _backbone(task.trained)
    if not folder:
        raise UserError(
            "--data_dir=FOLDER is needed, a folder laid out as PASCAL VOC or Cityscapes "
            "(docs/evaluation.md)"
        )
    with reading(folder):
        chosen, changes = _protocol(task, data.is_cityscapes(folder), mesh.size)
        train, test = _images(task)
    _tell(task, chosen, train, test, mesh)
    if changes:
        console.line(f"not the protocol itself: {', '.join(changes)}")
    results, columns = [], []
    for name, trained in task.encoders.items():
        counts, losses = _counts(task, name, trained, chosen, train, test, mesh)
        each = scoring.intersection_over_union(counts)
        mean = float(np.nanmean(each))
        columns.append([*("-" if np.isnan(x) else percent(x) for x in each), percent(mean)])
        by_class = zip(test.classes, each, strict=True)
        results.append(
            {
                "encoder": name,
                "mean_iou": mean,
                "losses": losses,
                "confusion": counts.tolist(),
                "iou": {c: None if np.isnan(x) else float(x) for c, x in by_class},
            }
        )
    rows = list(zip([*test.classes, "mean"], *columns, strict=True))
    console.line("\n" + table(["IoU", *task.encoders], rows))
    paper = PAPER.get((len(train.pairs), len(test.pairs)))
    known = published.of(paper, config) if paper else None
    if known:
        console.line(f"published: mean {known[0]} % ({known[1]})")
    return dataclasses.asdict(chosen) | {
        "train": train.about,
        "train_images": len(train.pairs),
        "test": test.about,
        "test_images": len(test.pairs),
        "published": known and {"percent": known[0], "source": known[1]},
        "results": results,
    }


def _tell(
    task: Task, chosen: training.Protocol, train: data.Scenes, test: data.Scenes, mesh: Mesh
) -> None:
    """Make sure that all hosts have the same images, and print what will be done with them."""
    hosts.require_agreement(
        {
            "training images": digests.of_tree((train.sizes, train.classes)),
            "test images": digests.of_tree((test.sizes, test.classes)),
        }
    )
    arch, step, classes = task.trained.config.arch, task.trained.step, train.classes
    crops = f"{chosen.batch_size} crops, {chosen.crop} x {chosen.crop}"
    task.console.facts(
        {
            "encoder": f"{arch}, {task.which}, step {step}, all of it fine-tuned",
            "training images": f"{len(train.pairs):,} of {train.about}",
            "test images": f"{len(test.pairs):,} of {test.about}",
            "classes": f"{len(classes)}, {classes[0]} to {classes[-1]}",
            "training": f"{chosen.iterations:,} steps of {crops}",
            "devices": devices(mesh),
        }
    )


def _counts(
    task: Task,
    name: str,
    trained: TrainedEncoder,
    chosen: training.Protocol,
    train: data.Scenes,
    test: data.Scenes,
    mesh: Mesh,
) -> tuple[np.ndarray, list[float]]:
    """Fine-tune the encoder `trained`, and count classes on test images: confusion, losses."""
    config = task.trained.config
    inputs = InputSettings(tuple(config.mean), tuple(config.std), config.workers, config.seed)
    network = fcn.create(
        _backbone(trained), len(train.classes), compute_dtype(config.compute_dtype)
    )
    weights = {kind: trained.variables[kind]["backbone"] for kind in ("params", "batch_stats")}
    state = training.start(network, weights, config.channels, config.seed)
    kept = task.trainings.one(name, weights)
    variables, losses = training.fine_tune(
        network, state, train, chosen, mesh, inputs, task.report, kept
    )
    return scoring.score(network, variables, test, mesh, inputs, task.report), losses


def _backbone(trained: TrainedEncoder) -> ResNet:
    backbone = trained.encoder.backbone
    if not isinstance(backbone, ResNet):
        raise UserError(
            f"arch={trained.config.arch!r} has no stage to dilate; segmentation needs a ResNet, as "
            "arch='resnet50'"
        )
    return backbone


def _protocol(task: Task, cities: bool, devices: int) -> tuple[training.Protocol, list[str]]:
    """Return the paper's protocol as the flags change it, and each change in words."""
    full = training.CITYSCAPES if cities else training.VOC
    given: dict[str, Any] = {
        name: task.given[name].value
        for name in ("iterations", "rate", "crop", "batch_size")
        if task.given[name].value not in (0, getattr(full, name))
    }
    chosen = dataclasses.replace(full, **given)
    require_division(chosen.batch_size, devices)
    return chosen, [f"{n} {value:g} instead of {getattr(full, n):g}" for n, value in given.items()]


def _images(task: Task) -> tuple[data.Scenes, data.Scenes]:
    given, config = task.given, task.trained.config
    splits = given.train_split or data.train_split(given.data_dir), given.test_split or "val"
    train, test = (
        data.open_scenes(given.data_dir, split, Decoding.of(config), task.report)
        for split in splits
    )
    return train, test
