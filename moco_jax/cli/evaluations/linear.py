"""`evaluate linear`: a linear classifier on frozen features, by the papers' protocols or by a grid of settings at a time."""

from typing import Any

from absl import flags

from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli import number_flags
from moco_jax.cli.evaluations.common import (
    AUGMENT,
    BATCH_SIZE,
    EPOCHS,
    FEATURES,
    Task,
    about,
    open_images,
    percent,
)
from moco_jax.config.settings.kinds import LARGEST, Range
from moco_jax.data.views import recipes
from moco_jax.evaluation import grid as grids
from moco_jax.evaluation import linear
from moco_jax.evaluation.images import Subject

PROTOCOL = flags.DEFINE_enum(
    "protocol", "fast", ["fast", "paper", "v3"],
    "linear: 'fast', features once and many settings at a time; or the training on crops of MoCo v1 and v2, or of v3.",
)  # fmt: skip
CROPS = number_flags.DEFINE_whole(
    "crops", 1, "fast: sets of crops beside the centre crops.", 0, 1000
)
RATES = number_flags.DEFINE_numbers(
    "rates", list(grids.RATES), "fast: learning rates.", float, Range(1e-9, LARGEST)
)
DECAYS = number_flags.DEFINE_numbers(
    "decays", list(grids.DECAYS), "fast: weight decays.", float, Range(0, LARGEST)
)

FAST_EPOCHS, FAST_BATCH = 30, 256


def run(task: Task) -> dict[str, Any]:
    """Linear accuracies of each encoder: a table on the console, and what is written."""
    features = FEATURES.value or "backbone"
    subject = open_images(task, features)
    recipe = linear.crop_recipe(AUGMENT.value, subject)
    by = _fast if PROTOCOL.value == "fast" else _on_crops
    result = by(task, subject, features, recipe)
    return about(task, subject, "linear", features) | result


def _on_crops(task: Task, subject: Subject, features: str, recipe: recipes.Recipe) -> dict[str, Any]:  # fmt: skip
    chosen = linear.protocol(PROTOCOL.value, subject.config.arch, EPOCHS.value, BATCH_SIZE.value)
    if chosen.batch_size % subject.mesh.size:
        raise UserError(
            f"--batch_size={chosen.batch_size} does not divide over {subject.mesh.size} devices"
        )
    full = linear.protocol(PROTOCOL.value, subject.config.arch)
    if chosen != full:
        task.console.line(
            f"not the protocol itself: {chosen.epochs} epochs with batches of {chosen.batch_size} instead of "
            f"{full.epochs} with {full.batch_size}"
        )
    results, rows = [], []
    for name, found in task.encoders.items():
        encode = subject.encoder(found, features)
        kept = task.trainings.one(
            f"{PROTOCOL.value}, {name}", found.encoder, found.variables, features
        )
        last, all_scores = linear.train_on_crops(subject, encode, chosen, recipe, task.report, kept)
        results.append({"encoder": name, "accuracy": last, "accuracy_by_epoch": all_scores})
        rows.append([name, f"{chosen.rate:g}", str(chosen.epochs), percent(last)])
    task.console.line("\n" + table(["encoder", "learning rate", "epochs", "test accuracy"], rows))
    how = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "rate": chosen.rate}
    return {"protocol": PROTOCOL.value, "augment": AUGMENT.value, **how, "results": results}


def _fast(task: Task, subject: Subject, features: str, recipe: recipes.Recipe) -> dict[str, Any]:
    grid = grids.Grid(RATES.value, DECAYS.value)
    if not grid.rates or not grid.decays:
        raise UserError("--rates and --decays need a number each")
    if len(subject.train.indices) < 2:
        raise UserError("one training image is too few: some are held apart to choose by")
    how = {"epochs": EPOCHS.value or FAST_EPOCHS, "batch_size": BATCH_SIZE.value or FAST_BATCH}
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for name, found in task.encoders.items():
        encode = subject.encoder(found, features)
        test, truth = subject.extract(subject.test, encode, task.report)
        sets, classes = grids.feature_sets(subject, encode, recipe, CROPS.value, task.report)
        best = grids.search(
            sets, classes, test, truth, subject.classes, grid, subject.mesh,
            seed=subject.config.seed, report=task.report, **how,
        )  # fmt: skip
        norm = "yes" if best.norm else "no"
        rows.append([name, f"{best.rate:g}", f"{best.decay:g}", norm, percent(best.best), percent(best.test)])  # fmt: skip
        results.append({
            "encoder": name, "accuracy": best.test, "held_out_accuracy": best.best, "rate": best.rate,
            "decay": best.decay, "batch_norm": best.norm, "at_edge": best.edges,
            "held_out": {
                norm: shares.tolist()
                for norm, shares in zip(("plain", "batch_norm"), best.held_out, strict=True)
            },
        })  # fmt: skip
        if name == "trained":
            lines = [
                [f"{rate:g}", *(percent(best.held_out[v, r].max()) for v in range(2))]
                for r, rate in enumerate(grid.rates)
            ]
            heads = ["learning rate", "held apart, without BN", "with BN"]
            task.console.line("\n" + table(heads, lines))
    heads = ["encoder", "learning rate", "weight decay", "BN", "held apart", "test accuracy"]
    task.console.line("\n" + table(heads, rows))
    for result in results:
        for edge in result["at_edge"]:
            task.console.line(f"{result['encoder']}: {edge}; --rates and --decays widen the grid")
    return {
        "protocol": "fast", "augment": AUGMENT.value, "crops": CROPS.value, **how,
        "rates": grid.rates, "decays": grid.decays, "results": results,
    }  # fmt: skip
