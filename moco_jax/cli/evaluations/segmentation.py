"""`evaluate segmentation`: an FCN on the backbone, fine-tuned on labelled pixels (MoCo v1, section 4.2.3 and appendix A.5)."""

import dataclasses
from typing import Any

import numpy as np

from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli import number_flags
from moco_jax.cli.evaluations.common import (
    BATCH_SIZE,
    DATA_DIR,
    TEST_SPLIT,
    TRAIN_SPLIT,
    Task,
    devices,
    percent,
)
from moco_jax.config.settings.kinds import LARGEST
from moco_jax.data.sources import reading
from moco_jax.data.sources.pixels import Decoding
from moco_jax.encoders.configured import compute_dtype
from moco_jax.encoders.resnet import ResNet
from moco_jax.evaluation import published
from moco_jax.evaluation.resume import digest
from moco_jax.evaluation.segmentation import data, fcn, scoring, training
from moco_jax.inference.trained_encoder import Trained
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib

ITERATIONS = number_flags.DEFINE_whole(
    "iterations", 0, "segmentation: steps; 0 for the protocol's own.", 0, 2**31 - 1
)
RATE = number_flags.DEFINE_number(
    "rate", 0.0, "segmentation: learning rate; 0 for the protocol's own.", 0, LARGEST
)
CROP = number_flags.DEFINE_whole(
    "crop", 0, "segmentation: side of training crops; 0 for the protocol's own.", 0, 8192
)

# How many images of VOC (train_aug2012, val2012) and Cityscapes (train_fine, val) the paper trains and tests on.
PAPER = {(10_582, 1_449): "segmentation of VOC", (2_975, 500): "segmentation of Cityscapes"}


def run(task: Task) -> dict[str, Any]:
    """IoU of each class with each encoder: a table on the console, and what is written."""
    config, console, mesh = task.found.config, task.console, mesh_lib.create_mesh()
    _backbone(task.found)
    if not DATA_DIR.value:
        raise UserError(
            "--data_dir=FOLDER is needed, as PASCAL VOC or Cityscapes is laid out (docs/evaluation.md)"
        )
    with reading(DATA_DIR.value):
        chosen, changes = _protocol(data.is_cityscapes(DATA_DIR.value), mesh.size)
        train, test = _images(task)
    hosts.require_agreement({
        "training images": digest((train.sizes, train.classes)), "test images": digest((test.sizes, test.classes)),
    })  # fmt: skip
    console.facts({
        "encoder": f"{config.arch}, {task.which}, step {task.found.step}, all of it fine-tuned",
        "training images": f"{len(train.pairs):,} of {train.about}",
        "test images": f"{len(test.pairs):,} of {test.about}",
        "classes": f"{len(train.classes)}, {train.classes[0]} to {train.classes[-1]}",
        "training": f"{chosen.iterations:,} steps of {chosen.batch_size} crops, {chosen.crop} x {chosen.crop}",
        "devices": devices(mesh),
    })  # fmt: skip
    if changes:
        console.line(f"not the protocol itself: {', '.join(changes)}")
    usual: Any = dict(
        mean=tuple(config.mean), std=tuple(config.std), workers=config.workers, report=task.report
    )
    results, columns = [], []
    for name, found in task.encoders.items():
        network = fcn.create(
            _backbone(found), len(train.classes), compute_dtype(config.compute_dtype)
        )
        weights = {kind: found.variables[kind]["backbone"] for kind in ("params", "batch_stats")}
        state = training.start(network, weights, config.channels, config.seed)
        variables, losses = training.fine_tune(
            network, state, train, chosen, mesh, seed=config.seed, kept=task.trainings.one(name, weights), **usual
        )  # fmt: skip
        counts = scoring.score(network, variables, test, mesh, **usual)
        each = scoring.intersection_over_union(counts)
        mean = float(np.nanmean(each))
        columns.append([*("-" if np.isnan(x) else percent(x) for x in each), percent(mean)])
        results.append({
            "encoder": name, "mean_iou": mean, "losses": losses, "confusion": counts.tolist(),
            "iou": {c: None if np.isnan(x) else float(x) for c, x in zip(test.classes, each, strict=True)},
        })  # fmt: skip
    rows = list(zip([*test.classes, "mean"], *columns, strict=True))
    console.line("\n" + table(["IoU", *task.encoders], rows))
    paper = PAPER.get((len(train.pairs), len(test.pairs)))
    known = published.of(paper, config) if paper else None
    if known:
        console.line(f"published: mean {known[0]} % ({known[1]})")
    return dataclasses.asdict(chosen) | {
        "train": train.about, "train_images": len(train.pairs), "test": test.about, "test_images": len(test.pairs),
        "published": known and {"percent": known[0], "source": known[1]}, "results": results,
    }  # fmt: skip


def _backbone(found: Trained) -> ResNet:
    backbone = found.encoder.backbone
    if not isinstance(backbone, ResNet):
        raise UserError(
            f"segmentation needs a ResNet, whose last stage is dilated; this run has arch={found.config.arch!r}"
        )
    return backbone


def _protocol(cities: bool, devices: int) -> tuple[training.Protocol, list[str]]:
    """What the flags make of the paper's protocol, and how it differs, in words."""
    full = training.CITYSCAPES if cities else training.VOC
    flag_of = {"iterations": ITERATIONS, "rate": RATE, "crop": CROP, "batch_size": BATCH_SIZE}
    given: dict[str, Any] = {
        name: flag.value
        for name, flag in flag_of.items()
        if flag.value and flag.value != getattr(full, name)
    }
    chosen = dataclasses.replace(full, **given)
    if chosen.batch_size % devices:
        raise UserError(f"--batch_size={chosen.batch_size} does not divide over {devices} devices")
    return chosen, [f"{n} {value:g} instead of {getattr(full, n):g}" for n, value in given.items()]


def _images(task: Task) -> tuple[data.Scenes, data.Scenes]:
    folder, config = DATA_DIR.value, task.found.config
    splits = TRAIN_SPLIT.value or data.train_split(folder), TEST_SPLIT.value or "val"
    train, test = (
        data.open_scenes(folder, split, Decoding.of(config), task.report) for split in splits
    )
    return train, test
