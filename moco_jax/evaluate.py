"""Command line of evaluation: `python -m moco_jax.evaluate knn|linear --workdir=DIR`, what a run's encoder is worth."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags, logging

from moco_jax import files, trained
from moco_jax.command_line import fail, parse, set_up
from moco_jax.data import recipes
from moco_jax.errors import UserError
from moco_jax.evaluation import knn, linear, published
from moco_jax.evaluation.subject import Report, Subject, open_subject
from moco_jax.report.console import Console, table

WORKDIR = flags.DEFINE_string("workdir", None, "Of the run; the result is written there.")
STEP = flags.DEFINE_integer("step", None, "Of which checkpoint; left out: the last sound one.")
WHICH = flags.DEFINE_enum("which", "query", list(trained.PARTS), "Query or momentum encoder.")
FEATURES = flags.DEFINE_enum(
    "features", None, ["backbone", "output"],
    "Pooled features, or those after the head. Left out: for knn as the run's monitor has it, for linear 'backbone'.",
)  # fmt: skip
UNTRAINED = flags.DEFINE_bool("untrained", False, "Also the same encoder before its training.")
DATASET = flags.DEFINE_string("dataset", "", "Other images than the run's: as --config.dataset.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Where they are: as --config.data_dir.")
TRAIN_SPLIT = flags.DEFINE_string("train_split", "", "What is learnt from; the run's own if empty.")
TEST_SPLIT = flags.DEFINE_string(
    "test_split", "", "What is tested on; if empty the run's eval_split, or else a tenth of the training images."
)  # fmt: skip
TEST_DATA_DIR = flags.DEFINE_string("test_data_dir", "", "Where images to test on are, if apart.")
K = flags.DEFINE_list("k", [], "knn: numbers of neighbours, all tried at the cost of the largest.")
TEMPERATURE = flags.DEFINE_list("temperature", [], "knn: temperatures of the votes.")
PROTOCOL = flags.DEFINE_enum(
    "protocol", "fast", ["fast", "paper", "v3"],
    "linear: 'fast', features once and many settings at a time; or the training on crops of MoCo v1 and v2, or of v3.",
)  # fmt: skip
EPOCHS = flags.DEFINE_integer("epochs", 0, "linear: 0 for the protocol's own (30, 100, 90).", 0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "linear: 0 for its own (256, 256, 1024).", 0)
AUGMENT = flags.DEFINE_enum(
    "augment", "linear", list(recipes.RECIPES), "linear: the crops; 'linear' is the papers'."
)
CROPS = flags.DEFINE_integer("crops", 1, "fast: sets of crops beside the centre crops.", 0)
RATES = flags.DEFINE_list("rates", [str(x) for x in linear.RATES], "fast: learning rates.")
DECAYS = flags.DEFINE_list("decays", [str(x) for x in linear.DECAYS], "fast: weight decays.")

NEIGHBOURS, TEMPERATURES = (10, 20, 100, 200), (0.03, 0.07, 0.1, 0.2)
FAST_EPOCHS, FAST_BATCH = 30, 256
Encoders = dict[str, trained.Trained]


class Progress:
    """The line that renews itself; in a log one now and then."""

    def __init__(self, console: Console):
        """On `console`."""
        self.console, self.next = console, 0.0
        self.pause = 0.2 if console.out.isatty() else 10.0

    def __call__(self, text: str) -> None:
        """Show `text`, if the last is long enough ago."""
        now = time.monotonic()
        if now >= self.next:
            self.console.progress(text)
            self.next = now + self.pause


def numbers(flag: Any, kind: Callable[[str], Any], least: float) -> list[Any]:
    """The values of a list flag, ascending; UserError where one is no number, or below `least`."""
    try:
        found = sorted({kind(word) for word in flag.value})
    except ValueError:
        found = []
    if len(found) < len(set(flag.value)) or any(not least <= x < float("inf") for x in found):
        raise UserError(
            f"--{flag.name}={','.join(flag.value)} is no list of numbers of at least {least:g}"
        )
    return found


def percent(share: float) -> str:
    """`61.42 %`."""
    return f"{100 * share:.2f} %"


def run_knn(
    subject: Subject, encoders: Encoders, features: str, console: Console, report: Report
) -> dict[str, Any]:
    """kNN accuracies of each of `encoders`: a table on the console, and what is written."""
    config, bank = subject.config, len(subject.train.indices)
    ks = numbers(K, int, 1) or sorted({*NEIGHBOURS, config.knn_k})
    temperatures = numbers(TEMPERATURE, float, 1e-6) or sorted(
        {*TEMPERATURES, config.knn_temperature}
    )
    if ks[-1] > bank:
        cut = ", ".join(str(k) for k in ks if k > bank)
        console.line(f"k={cut} is cut to {bank}, the number of training images")
        ks = sorted({min(k, bank) for k in ks})
    results: list[dict[str, Any]] = []
    rows = []
    for name, found in encoders.items():
        encode = subject.encoder(found, features)
        queries, truth = subject.extract(subject.test, encode, report)
        nearest, classes = knn.Search(queries, ks[-1], subject.mesh), []
        for some, named in subject.stream(subject.train, encode, report):
            nearest.add(some)
            classes.append(named)
        cosines, places = nearest.result()
        grid = knn.votes(cosines, np.concatenate(classes)[places], ks, temperatures)
        scores = {at: float(np.mean(voted == truth)) for at, voted in grid.items()}
        results += [
            {"encoder": name, "k": k, "temperature": t, "accuracy": scores[k, t]} for k, t in scores
        ]
        rows += [[name, str(k), *(percent(scores[k, t]) for t in temperatures)] for k in ks]
    console.line("\n" + table(["encoder", "k", *(f"T {t:g}" for t in temperatures)], rows))
    own = [
        r for r in results if (r["k"], r["temperature"]) == (config.knn_k, config.knn_temperature)
    ]
    if own:
        console.line(
            f"as the run's monitor votes (k {config.knn_k}, T {config.knn_temperature:g}): "
            + ", ".join(f"{r['encoder']} {percent(r['accuracy'])}" for r in own)
        )
    return {"results": results}


def run_linear(
    subject: Subject, encoders: Encoders, features: str, console: Console, report: Report
) -> dict[str, Any]:
    """Linear accuracies of each of `encoders`: a table on the console, and what is written."""
    recipe = linear.crop_recipe(AUGMENT.value, subject)
    if PROTOCOL.value == "fast":
        return _fast(subject, encoders, features, recipe, console, report)
    chosen = linear.protocol(PROTOCOL.value, subject.config.arch, EPOCHS.value, BATCH_SIZE.value)
    if chosen.batch_size % subject.mesh.size:
        raise UserError(
            f"--batch_size={chosen.batch_size} does not divide over {subject.mesh.size} devices"
        )
    full = linear.protocol(PROTOCOL.value, subject.config.arch)
    if chosen != full:
        console.line(
            f"not the protocol itself: {chosen.epochs} epochs with batches of {chosen.batch_size} instead of "
            f"{full.epochs} with {full.batch_size}"
        )
    results, rows = [], []
    for name, found in encoders.items():
        encode = subject.encoder(found, features)
        last, all_scores = linear.train_on_crops(subject, encode, chosen, recipe, report)
        results.append({"encoder": name, "accuracy": last, "accuracy_by_epoch": all_scores})
        rows.append([name, f"{chosen.rate:g}", str(chosen.epochs), percent(last)])
    console.line("\n" + table(["encoder", "learning rate", "epochs", "test accuracy"], rows))
    how = {"epochs": chosen.epochs, "batch_size": chosen.batch_size, "rate": chosen.rate}
    return {"protocol": PROTOCOL.value, "augment": AUGMENT.value, **how, "results": results}


def _fast(
    subject: Subject, encoders: Encoders, features: str, recipe: recipes.Recipe, console: Console, report: Report
) -> dict[str, Any]:  # fmt: skip
    grid = linear.Grid(numbers(RATES, float, 1e-9), numbers(DECAYS, float, 0))
    if not grid.rates or not grid.decays:
        raise UserError("--rates and --decays need a number each")
    if len(subject.train.indices) < 2:
        raise UserError("one training image is too few: some are held apart to choose by")
    how = {"epochs": EPOCHS.value or FAST_EPOCHS, "batch_size": BATCH_SIZE.value or FAST_BATCH}
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for name, found in encoders.items():
        encode = subject.encoder(found, features)
        test, truth = subject.extract(subject.test, encode, report)
        sets, classes = linear.feature_sets(subject, encode, recipe, CROPS.value, report)
        best = linear.search(
            sets, classes, test, truth, subject.classes, grid, subject.mesh,
            seed=subject.config.seed, report=report, **how,
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
            console.line("\n" + table(heads, lines))
    heads = ["encoder", "learning rate", "weight decay", "BN", "held apart", "test accuracy"]
    console.line("\n" + table(heads, rows))
    for result in results:
        for edge in result["at_edge"]:
            console.line(f"{result['encoder']}: {edge}; --rates and --decays widen the grid")
    return {
        "protocol": "fast", "augment": AUGMENT.value, "crops": CROPS.value, **how,
        "rates": grid.rates, "decays": grid.decays, "results": results,
    }  # fmt: skip


EVALUATIONS = {"knn": run_knn, "linear": run_linear}


def evaluate(name: str, console: Console) -> None:
    """The evaluation `name` of the run that the flags tell of."""
    place = WORKDIR.value
    if not place:
        raise UserError("--workdir=FOLDER of a run is needed; --help lists all flags")
    config = trained.read_config(place)
    set_up(config)
    logging.set_verbosity(logging.ERROR)
    workdir = files.absolute(place)
    found = trained.load(place, WHICH.value, STEP.value)
    subject = open_subject(
        config, str(workdir), dataset=DATASET.value, data_dir=DATA_DIR.value, train_split=TRAIN_SPLIT.value,
        test_split=TEST_SPLIT.value, test_data_dir=TEST_DATA_DIR.value,
    )  # fmt: skip
    features = FEATURES.value or (config.knn_features if name == "knn" else "backbone")
    train, test = (len(images.indices) for images in (subject.train, subject.test))
    console.facts({
        "encoder": f"{config.arch}, {WHICH.value}, step {found.step}, features: {features}",
        "training images": f"{train:,} of {subject.train.about}, {subject.classes} classes",
        "test images": f"{test:,} of {subject.test.about}",
        "devices": f"{subject.mesh.size} x {subject.mesh.devices.flat[0].device_kind}",
    })  # fmt: skip
    encoders = {"trained": found}
    if UNTRAINED.value:
        encoders["untrained"] = trained.untrained(found)
    result = EVALUATIONS[name](subject, encoders, features, console, Progress(console))
    known = published.of(name, config) if subject.own else None
    if known:
        console.line(f"published: {known[0]} % ({known[1]})")
    about = {
        "evaluation": name, "step": found.step, "which": WHICH.value, "features": features,
        "train": subject.train.about, "train_images": train, "test": subject.test.about, "test_images": test,
        "published": known and {"percent": known[0], "source": known[1]},
    }  # fmt: skip
    path = workdir / f"evaluate_{name}.json"
    files.write(path, (json.dumps(about | result, indent=2) + "\n").encode())
    console.line(f"written: {path}")


def main(argv: list[str]) -> None:
    """Evaluate, and turn what the user can mend into one line."""
    if len(argv) != 2 or argv[1] not in EVALUATIONS:
        fail(
            f"one of {', '.join(EVALUATIONS)} is needed: python -m moco_jax.evaluate knn --workdir=FOLDER"
        )
    console = Console()
    try:
        evaluate(argv[1], console)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        console.line("stopped; nothing was written")
        sys.exit(130)


def run() -> None:
    """Entry point of the console script `moco-jax-evaluate`."""
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    run()
