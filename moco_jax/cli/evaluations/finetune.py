"""`evaluate finetune`: all weights trained on a share of the labels, beside the same training from scratch."""

import functools
from typing import Any

import jax
from absl import flags

from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli import number_flags
from moco_jax.cli.evaluations.common import (
    AUGMENT,
    BATCH_SIZE,
    EPOCHS,
    Task,
    about,
    open_images,
    percent,
)
from moco_jax.config.settings.kinds import LARGEST, Range
from moco_jax.encoders.vit import ViT
from moco_jax.evaluation import finetune, linear, subsets
from moco_jax.evaluation.images import Subject
from moco_jax.evaluation.labelled import Labelled
from moco_jax.inference import trained_encoder
from moco_jax.weights import bridge
from moco_jax.weights import files as weight_files
from moco_jax.weights.pretrained import Pretrained

LABELS = number_flags.DEFINE_numbers(
    "labels",
    [],
    "finetune: per cent of the labels, one training each; 1,10,100 unless --subset is given.",
    float,
    Range(0, 100, above=True),
)
SUBSET = flags.DEFINE_list("subset", [], "finetune: text files that name the images to learn from, one training each.")  # fmt: skip
SUBSET_SEED = number_flags.DEFINE_whole("subset_seed", 0, "finetune: of which images --labels draws; the same for all runs.", 0, 2**63 - 1)  # fmt: skip
RECIPE = flags.DEFINE_enum("recipe", None, list(finetune.RECIPES), "finetune: left out, 'deit' for a ViT and 'sgd' for a ResNet.")  # fmt: skip
SCRATCH = flags.DEFINE_bool("scratch", False, "finetune: also the same training from random weights (as --untrained says too).")  # fmt: skip
BACKBONE_LR = number_flags.DEFINE_number(
    "backbone_lr", None, "finetune: left out, the recipe's.", 0, LARGEST
)
CLASSIFIER_LR = number_flags.DEFINE_number(
    "classifier_lr", None, "finetune: left out, the recipe's.", 0, LARGEST
)
SCRATCH_LR = number_flags.DEFINE_number("scratch_lr", None, "finetune: of all weights from scratch; left out, the recipe's.", 0, LARGEST)  # fmt: skip
WEIGHT_DECAY = number_flags.DEFINE_number(
    "weight_decay", None, "finetune: left out, the recipe's.", 0, 100
)
LAYER_DECAY = number_flags.DEFINE_number("layer_decay", 1.0, "finetune, of a ViT: each layer's rate as a share of the next one's.", 1e-3, 1.0)  # fmt: skip
TESTS = number_flags.DEFINE_whole("tests", 20, "finetune: how often a training is tested on its way, the end included.", 1, 10**6)  # fmt: skip
SAVE = flags.DEFINE_string("save", "", "finetune: a .safetensors file for the fine-tuned network, encoder and classifier under timm's names.")  # fmt: skip


def run(task: Task) -> dict[str, Any]:
    """Test accuracies after training on each share of the labels: a table on the console, and what is written."""
    config, encoders = task.found.config, {"fine-tuned": task.found}
    if SCRATCH.value or "untrained" in task.encoders:
        encoders["from scratch"] = task.encoders.get("untrained") or trained_encoder.untrained(
            task.found
        )
    name, how = _training(task)
    shares = LABELS.value or ([] if SUBSET.value else [1.0, 10.0, 100.0])
    _require_a_place_to_save(shares)
    subject = open_images(task, "backbone, all of it trained")
    if how.batch_size % subject.mesh.size:
        raise UserError(
            f"--batch_size={how.batch_size} does not divide over {subject.mesh.size} devices"
        )
    sets = _sets(subject, shares)
    recipe = linear.crop_recipe(AUGMENT.value, subject)
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for called, images in sets.items():
        row = [called, f"{len(images.indices):,}"]
        for encoder, start in encoders.items():
            tuned = finetune.train(
                subject, start, images, how, recipe, functools.partial(_report, task, encoder),
                scratch=encoder == "from scratch", exact_epochs=bool(EPOCHS.value), tests=TESTS.value,
                kept=task.trainings.one(f"{called}, {encoder}"),
            )  # fmt: skip
            task.console.line(f"{called}, {encoder}: {percent(tuned.accuracies[-1])}")
            if not tuned.loss < float("inf"):
                task.console.line(f"the loss was {tuned.loss} in the end; smaller rates work")
            if encoder == "fine-tuned" and SAVE.value:
                if jax.process_index() == 0:
                    save(tuned, SAVE.value)
                task.console.line(f"written: {SAVE.value}")
            row += [str(tuned.epochs)] if encoder == "fine-tuned" else []
            row.append(percent(tuned.accuracies[-1]))
            results.append({
                "encoder": encoder, "labels": called, "images": len(images.indices), "epochs": tuned.epochs,
                "accuracy": tuned.accuracies[-1], "tested_after_epochs": tuned.tested,
                "accuracy_by_epoch": tuned.accuracies,
            })  # fmt: skip
        rows.append(row)
    task.console.line("\n" + table(["labels", "images", "epochs", *encoders], rows))
    rates = {"backbone": how.backbone_rate, "classifier": how.classifier_rate, "from scratch": how.scratch_rate}  # fmt: skip
    return about(task, subject, "finetune", "backbone") | {
        "recipe": name, "augment": AUGMENT.value, "batch_size": how.batch_size, "rates": rates,
        "weight_decay": how.weight_decay, "layer_decay": how.layer_decay, "subset_seed": SUBSET_SEED.value,
        "arch": config.arch, "classes": list(subject.train.called), "results": results,
    }  # fmt: skip


def _report(task: Task, encoder: str, text: str) -> None:
    task.report(f"{encoder}, {text}")


def _training(task: Task) -> tuple[str, finetune.Training]:
    is_vit = isinstance(task.found.encoder.backbone, ViT)
    if LAYER_DECAY.value != 1 and not is_vit:
        raise UserError(
            f"--layer_decay={LAYER_DECAY.value:g} is for the layers of a ViT, and arch={task.found.config.arch!r} is a ResNet; leave it out"
        )
    name = RECIPE.value or ("deit" if is_vit else "sgd")
    return name, finetune.training(
        name, EPOCHS.value, BATCH_SIZE.value, backbone_rate=BACKBONE_LR.value, classifier_rate=CLASSIFIER_LR.value,
        scratch_rate=SCRATCH_LR.value, weight_decay=WEIGHT_DECAY.value, layer_decay=LAYER_DECAY.value,
    )  # fmt: skip


def _require_a_place_to_save(shares: list[float]) -> None:
    if not SAVE.value:
        return
    trainings = len(shares) + len(SUBSET.value)
    if trainings != 1:
        raise UserError(
            f"--save={SAVE.value} is a place for one network, and there are {trainings} trainings; --labels=100 is one"
        )
    # Other endings need PyTorch, which must come into a process before TensorFlow.
    if weight_files.ending(SAVE.value) != ".safetensors":
        raise UserError(f"--save={SAVE.value} has another ending than .safetensors, which works")
    weight_files.library("safetensors.numpy", "safetensors")


def _sets(subject: Subject, shares: list[float]) -> dict[str, Labelled]:
    """The images of each training, by what tables call them."""
    train = subject.train
    drawn = {f"{p:g} %": subsets.share(train, p, SUBSET_SEED.value) for p in shares}
    return drawn | {path: subsets.listed(train, path) for path in SUBSET.value}


def save(tuned: finetune.Tuned, path: str) -> None:
    """Write the encoder, and its classifier as `fc` (ResNet, torchvision's name too) or `head` (ViT), to the file `path`."""
    config = tuned.found.config
    options = dict(name=config.arch, width=config.width or None, stem=config.stem)
    pretrained = Pretrained(options, tuned.found.variables, None, None, config.image_size, config.channels)  # fmt: skip
    arrays, _ = bridge.entries(pretrained, "timm")
    name = "head" if pretrained.is_vit else "fc"
    arrays |= {f"{name}.weight": tuned.classifier.kernel.T, f"{name}.bias": tuned.classifier.bias}
    weight_files.write(path, arrays, {})
