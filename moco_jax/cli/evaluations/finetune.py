"""`evaluate finetune`: all weights trained on some of the labels, beside training from scratch."""

import functools
from typing import Any

import jax

from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli.evaluations.common import (
    Encoders,
    Task,
    about,
    open_images,
    percent,
    require_division,
)
from moco_jax.data.views.recipes import Recipe
from moco_jax.encoders.vit import ViT
from moco_jax.evaluation import finetune, finetune_recipe, linear, subsets
from moco_jax.evaluation.images import EvaluationData
from moco_jax.evaluation.labelled import Labelled
from moco_jax.inference import trained_encoder
from moco_jax.weights import bridge
from moco_jax.weights import files as weight_files
from moco_jax.weights.pretrained import Pretrained


def run(task: Task) -> dict[str, Any]:
    """Print the accuracies with each share of the labels, and return what is written."""
    given, config = task.given, task.trained.config
    encoders = _encoders(task)
    name, how = _training(task)
    shares = given.labels or ([] if given.subset else [1.0, 10.0, 100.0])
    _require_a_place_to_save(task, shares)
    data = open_images(task, "backbone, all of it trained")
    require_division(how.batch_size, data.mesh.size)
    sets = _sets(task, data, shares)
    recipe = linear.crop_recipe(given.augment, data)
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for called, images in sets.items():
        row = [called, f"{len(images.indices):,}"]
        for encoder, start in encoders.items():
            tuned = _train(task, data, images, how, recipe, start, called, encoder)
            row += [str(tuned.epochs)] if encoder == "fine-tuned" else []
            row.append(percent(tuned.accuracies[-1]))
            results.append(
                {
                    "encoder": encoder,
                    "labels": called,
                    "images": len(images.indices),
                    "epochs": tuned.epochs,
                    "accuracy": tuned.accuracies[-1],
                    "tested_after_epochs": tuned.tested,
                    "accuracy_by_epoch": tuned.accuracies,
                }
            )
        rows.append(row)
    task.console.line("\n" + table(["labels", "images", "epochs", *encoders], rows))
    return about(task, data, "finetune", "backbone") | {
        "recipe": name,
        "augment": given.augment,
        "batch_size": how.batch_size,
        "rates": {
            "backbone": how.backbone_rate,
            "classifier": how.classifier_rate,
            "from scratch": how.scratch_rate,
        },
        "weight_decay": how.weight_decay,
        "layer_decay": how.layer_decay,
        "subset_seed": given.subset_seed,
        "arch": config.arch,
        "classes": list(data.train.called),
        "results": results,
    }


def _encoders(task: Task) -> Encoders:
    """Choose the encoders to train, by their names in tables."""
    encoders = {"fine-tuned": task.trained}
    untrained = task.encoders.get("untrained")
    if task.given.scratch or untrained:
        encoders["from scratch"] = untrained or trained_encoder.untrained(task.trained)
    return encoders


def _train(
    task: Task,
    data: EvaluationData,
    images: Labelled,
    how: finetune_recipe.Training,
    recipe: Recipe,
    start: trained_encoder.TrainedEncoder,
    called: str,
    encoder: str,
) -> finetune.Tuned:
    """Train `start` on `images`, print the accuracy, and save the network where that is asked.

    `called` and `encoder`: the names of the images and of the encoder in tables.
    """
    given, console = task.given, task.console
    tuned = finetune.train(
        data,
        start,
        images,
        how,
        recipe,
        functools.partial(_report, task, encoder),
        finetune.TrainOptions(
            scratch=encoder == "from scratch",
            exact_epochs=bool(given.epochs),
            tests=given.tests,
        ),
        kept=task.trainings.one(f"{called}, {encoder}"),
    )
    console.line(f"{called}, {encoder}: {percent(tuned.accuracies[-1])}")
    if not tuned.loss < float("inf"):
        console.line(f"the loss was {tuned.loss} in the end; smaller rates work")
    if encoder == "fine-tuned" and given.save:
        if jax.process_index() == 0:
            save(tuned, given.save)
        console.line(f"written: {given.save}")
    return tuned


def _report(task: Task, encoder: str, text: str) -> None:
    task.report(f"{encoder}, {text}")


def _training(task: Task) -> tuple[str, finetune_recipe.Training]:
    """Return the recipe's name, and the training that the flags make of it."""
    given, is_vit = task.given, isinstance(task.trained.encoder.backbone, ViT)
    if given.layer_decay != 1 and not is_vit:
        raise UserError(
            f"--layer_decay={given.layer_decay:g} is for the layers of a ViT, and "
            f"arch={task.trained.config.arch!r} is a ResNet; leave it out"
        )
    name = given.recipe or ("deit" if is_vit else "sgd")
    return name, finetune_recipe.training(
        name,
        given.epochs,
        given.batch_size,
        backbone_rate=given.backbone_lr,
        classifier_rate=given.classifier_lr,
        scratch_rate=given.scratch_lr,
        weight_decay=given.weight_decay,
        layer_decay=given.layer_decay,
    )


def _require_a_place_to_save(task: Task, shares: list[float]) -> None:
    path = task.given.save
    if not path:
        return
    trainings = len(shares) + len(task.given.subset)
    if trainings != 1:
        raise UserError(
            f"--save={path} keeps one network, and there are {trainings} trainings; use "
            "--labels=100 for one"
        )
    # Other endings need PyTorch, which must come into a process before TensorFlow.
    if weight_files.ending(path) != ".safetensors":
        raise UserError(
            f"--save={path} must end in .safetensors; PyTorch's own endings do not work here"
        )
    weight_files.library("safetensors.numpy", "safetensors")


def _sets(task: Task, data: EvaluationData, shares: list[float]) -> dict[str, Labelled]:
    """Choose the images of each training, by their names in tables."""
    train = data.train
    drawn = {f"{p:g} %": subsets.share(train, p, task.given.subset_seed) for p in shares}
    return drawn | {path: subsets.listed(train, path) for path in task.given.subset}


def save(tuned: finetune.Tuned, path: str) -> None:
    """Write the encoder and its classifier to the file `path`.

    The classifier is called `fc` (ResNet, torchvision's name too) or `head` (ViT).
    """
    config = tuned.trained.config
    options = dict(name=config.arch, width=config.width or None, stem=config.stem)
    pretrained = Pretrained(
        options, tuned.trained.variables, None, None, config.image_size, config.channels
    )
    arrays, _ = bridge.entries(pretrained, "timm")
    name = "head" if pretrained.is_vit else "fc"
    arrays |= {f"{name}.weight": tuned.classifier.kernel.T, f"{name}.bias": tuned.classifier.bias}
    weight_files.write(path, arrays, {})
