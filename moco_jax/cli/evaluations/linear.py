"""`evaluate linear`: a linear classifier on frozen features, by a paper's protocol or by a grid."""

from typing import Any

from moco_jax.base.console import table
from moco_jax.base.errors import UserError
from moco_jax.cli.evaluations.common import (
    Task,
    about,
    open_images,
    percent,
    require_division,
)
from moco_jax.evaluation import grid as grids
from moco_jax.evaluation import linear
from moco_jax.evaluation.images import EvaluationData
from moco_jax.inference.trained_encoder import TrainedEncoder

FAST_EPOCHS, FAST_BATCH = 30, 256


def run(task: Task) -> dict[str, Any]:
    """Print the linear accuracies of each encoder as a table, and return what is written."""
    features = task.given.features or "backbone"
    data = open_images(task, features)
    by = _by_grid if task.given.protocol == "fast" else _on_crops
    result = by(task, data, features)
    return about(task, data, "linear", features) | result


def _on_crops(task: Task, data: EvaluationData, features: str) -> dict[str, Any]:
    given = task.given

    def protocol(one: TrainedEncoder, epochs: int = 0, batch_size: int = 0) -> linear.Protocol:
        return linear.protocol(given.protocol, one.config.arch, epochs, batch_size)

    own, full = protocol(task.trained, given.epochs, given.batch_size), protocol(task.trained)
    require_division(own.batch_size, data.mesh.size)
    if own != full:
        task.console.line(
            f"not the protocol itself: {own.epochs} epochs with batches of {own.batch_size} "
            f"instead of {full.epochs} with {full.batch_size}"
        )
    results, rows = [], []
    for name, trained in task.encoders.items():
        seen = data.seen_by(trained)
        # Each by its own rate: v3's is another for a ViT than for a ResNet.
        chosen = protocol(trained, given.epochs, given.batch_size)
        encode, recipe = seen.encoder(trained, features), linear.crop_recipe(given.augment, seen)
        kept = task.trainings.one(
            f"{given.protocol}, {name}", trained.encoder, trained.variables, features
        )
        last, all_scores = linear.train_on_crops(seen, encode, chosen, recipe, task.report, kept)
        results.append(
            {
                "encoder": name,
                "rate": chosen.rate,
                "accuracy": last,
                "accuracy_by_epoch": all_scores,
            }
        )
        rows.append([name, f"{chosen.rate:g}", str(chosen.epochs), percent(last)])
    task.console.line("\n" + table(["encoder", "learning rate", "epochs", "test accuracy"], rows))
    how = {"epochs": own.epochs, "batch_size": own.batch_size, "rate": own.rate}
    return {"protocol": given.protocol, "augment": given.augment, **how, "results": results}


def _by_grid(task: Task, data: EvaluationData, features: str) -> dict[str, Any]:
    given = task.given
    grid = grids.Grid(given.rates, given.decays)
    if not grid.rates or not grid.decays:
        raise UserError(
            "--rates and --decays need at least one number each; try --rates=0.1,1,10 --decays=0"
        )
    if len(data.train.indices) < 2:
        raise UserError(
            "1 training image is too few, as some are set apart to choose by; give at least 2"
        )
    how = {"epochs": given.epochs or FAST_EPOCHS, "batch_size": given.batch_size or FAST_BATCH}
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for name, trained in task.encoders.items():
        seen = data.seen_by(trained)
        encode, recipe = seen.encoder(trained, features), linear.crop_recipe(given.augment, seen)
        test, truth = seen.extract(data.test, encode, task.report)
        sets, classes = grids.feature_sets(seen, encode, recipe, given.crops, task.report)
        best = grids.search(
            sets,
            classes,
            test,
            truth,
            grid,
            data.mesh,
            grids.FitSettings(data.classes, seed=data.config.seed, **how),
            task.report,
        )
        rows.append(_row(name, best))
        results.append(_result(name, best))
        if name == "trained":
            _print_held_apart(task, grid, best)
    heads = ["encoder", "learning rate", "weight decay", "BN", "held apart", "test accuracy"]
    task.console.line("\n" + table(heads, rows))
    for result in results:
        for edge in result["at_edge"]:
            task.console.line(f"{result['encoder']}: {edge}; --rates and --decays widen the grid")
    told = {"protocol": "fast", "augment": given.augment, "crops": given.crops, **how}
    return {**told, "rates": grid.rates, "decays": grid.decays, "results": results}


def _row(name: str, best: grids.Choice) -> list[str]:
    norm = "yes" if best.norm else "no"
    numbers = [f"{best.rate:g}", f"{best.decay:g}", norm, percent(best.best), percent(best.test)]
    return [name, *numbers]


def _result(name: str, best: grids.Choice) -> dict[str, Any]:
    kinds = zip(("plain", "batch_norm"), best.held_out, strict=True)
    return {
        "encoder": name,
        "accuracy": best.test,
        "held_out_accuracy": best.best,
        "rate": best.rate,
        "decay": best.decay,
        "batch_norm": best.norm,
        "at_edge": best.edges,
        "held_out": {kind: shares.tolist() for kind, shares in kinds},
    }


def _print_held_apart(task: Task, grid: grids.Grid, best: grids.Choice) -> None:
    """Print the best accuracy on held apart images at each learning rate."""
    lines = [
        [f"{rate:g}", *(percent(best.held_out[v, r].max()) for v in range(2))]
        for r, rate in enumerate(grid.rates)
    ]
    heads = ["learning rate", "held apart, without BN", "with BN"]
    task.console.line("\n" + table(heads, lines))
