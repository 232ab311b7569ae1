"""The end of a run: its last pictures, TensorBoard's pages of images, the table of scores."""

from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import table
from moco_jax.data.sources import labels
from moco_jax.method.state import TrainState
from moco_jax.monitoring import neighbours, run_log, tensorboard_files, view_pairs
from moco_jax.monitoring.scores import Snapshot
from moco_jax.training.assembly import RunSetup
from moco_jax.training.journal import Journal, Scores
from moco_jax.training.start import first_variables, query_variables

# Rows of the table: what was scored, its name in the records, and which of them counts.
SCORED = (
    ("raw pixels", "raw_knn", 0),
    ("encoder before training", "knn", 0),
    ("encoder after", "knn", -1),
)


def conclude(
    config: ConfigDict, journal: Journal, scores: Scores, state: TrainState, step: int
) -> None:
    """Complete the picture of neighbours, fill TensorBoard and print the scores; every host calls.

    Args:
        config: the settings.
        journal: of the run.
        scores: of the run.
        state: after its last step.
        step: the last one.
    """
    setup, log = journal.setup, journal.log
    # Scoring takes minutes with many images: another run may have taken the workdir meanwhile.
    journal.lock.check()
    snapshot = scores.picture.complete(
        step,
        scores.latest,
        lambda: query_variables(state),
        lambda: first_variables(config, setup.program),
    )
    journal.lock.check()
    if log.writes:
        try:
            show_images(config, journal.workdir, setup, log, step, snapshot)
        except Exception as error:  # a picture is not worth a run
            journal.console.line(f"pictures of views and features are left out: {error!r}")
    # Before the records are read again: what is buffered would be missing.
    log.close()
    console, records = journal.console, run_log.records(journal.workdir)
    rows = []
    for what, name, which in SCORED:
        known = [record[name] for record in records if name in record]
        if known:
            rows.append([what, f"{100 * known[which]:.2f} %"])
    if rows:
        console.line(table(["features", "kNN accuracy"], rows))
    probed = [record["probe"] for record in records if "probe" in record]
    if probed:
        console.line(f"online probe, on the images that kNN classifies: {probed[-1]:.2%}")
    if scores.verdicts.latest.at_end:
        console.line(scores.verdicts.latest.at_end)
    if scores.picture.drawn:
        console.line(f"picture of nearest neighbours: {scores.picture.path}")


def show_images(
    config: ConfigDict,
    workdir: epath.Path,
    setup: RunSetup,
    log: run_log.Writers,
    last: int,
    snapshot: Snapshot,
) -> None:
    """Give TensorBoard the first view pairs, and the features of some training images.

    Args:
        config: the settings.
        workdir: of the run.
        setup: of the run.
        log: takes the picture of view pairs, at the step `last`.
        last: the last step.
        snapshot: images and their features, by the encoder after training.
    """
    pairs = view_pairs.first_pairs(
        setup.source,
        setup.recipe,
        seed=config.seed,
        batch_size=config.batch_size,
        workers=config.workers,
        augment_on=config.augment_on,
        scaled_decoding=config.scaled_decoding,
    )
    view_pairs.draw(workdir / "views.png", setup.source, pairs)
    log.picture(last, "view pairs", workdir / "views.png")
    if not log.for_tensorboard:
        return
    images = neighbours.views(setup.source, setup.recipe, snapshot.sample, config.workers)
    numbers = labels.known(setup.source, snapshot.sample)
    names = None
    if numbers is not None:
        names = [labels.called(setup.source.classes, number) for number in numbers.tolist()]
    tensorboard_files.project(workdir, snapshot.features, images, names)
