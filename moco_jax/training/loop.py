"""The loop, readable as a table of contents: parts, state, steps, records, scores, checkpoints, summary."""

import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from moco_jax.base import files
from moco_jax.base.console import Console, table
from moco_jax.data import pipeline, resident
from moco_jax.data.sources import labels, remarks_of
from moco_jax.method.state import TrainState, count_examples
from moco_jax.method.step import Batch
from moco_jax.monitoring import neighbours, run_log, tensorboard_files, view_pairs
from moco_jax.monitoring.diagnosis import announce, rules
from moco_jax.monitoring.scores import Found
from moco_jax.parallel import hosts, known_answers, mesh
from moco_jax.training import bad_steps, checkpoint, environment, messages, warm_start
from moco_jax.training.assembly import Parts, Program, build
from moco_jax.training.throughput import Clock, Profile
from moco_jax.workdir import integrity, recipe_check, run_lock

AHEAD = 2


def train(config: ConfigDict, workdir: str, allow_change: set[str]) -> int:
    """Pretrain as `config` says, in `workdir`, from its last checkpoint if there is one.

    `allow_change`: recipe settings that may differ from those the workdir was begun with.

    Returns:
        The signal number that asked the run to stop early, after its state was saved; 0 at the end.

    Raises:
        UserError: a setting or file that the user can mend.
        Busy: another run is at work in `workdir`; LockLost: it has taken it from this one, which was suspended.
    """
    # Orbax writes to absolute paths only; a bucket's (gs://...) is one already.
    place = files.absolute(workdir)
    console = Console(speaks=jax.process_index() == 0)
    known_answers.require_right()
    hosts.require_agreement(hosts.facts_of(config))
    with run_lock.hold(place, console.line) as lock:
        return _train(config, place, allow_change, console, lock)


def _train(
    config: ConfigDict, place: epath.Path, allow_change: set[str], console: Console, lock: run_lock.Lock
) -> int:  # fmt: skip
    """As `train`, in the workdir `place` whose `lock` is held."""
    first = jax.process_index() == 0
    parts = build(config, str(place / "index"))
    program = parts.program
    weights = None
    if config.init_from and not integrity.is_begun(place):
        weights = warm_start.read(config, program.abstract)
        hosts.require_agreement({"init_from": weights.digest})
    # Whatever refuses comes before the first change: the same command is refused again, and finds all as it was.
    sound, examined = integrity.find(place)
    lock.check()
    said = recipe_check.mended(place, sound)
    changed = recipe_check.claim_workdir(place, config.to_dict(), allow_change, sound)
    said += [f"changed by --allow_change: {k}: {old!r} -> {new!r}" for k, (old, new) in changed.items()]  # fmt: skip
    if sound is None:
        said += integrity.set_aside(place, examined)
    checkpoints = checkpoint.Checkpoints(place, config.keep)
    start = 0
    if sound is not None:
        start, state, passed = checkpoints.go_on(
            sound, examined, program.abstract, config.batch_size
        )
        said += passed
    elif weights:
        state = warm_start.begin(program, weights, config.momentum)
    else:
        state = program.initial()
    # Where the batch size was changed on the way, epochs and schedules count the steps of a run with this one.
    shift = int(state.schedule_step) - start
    last = parts.total_steps - shift
    lock.check()
    log = run_log.Writers(place, first, start)
    for line in (*said, *log.said):
        console.line(line)
    facts = rules.facts_of(config.to_dict(), len(parts.source))
    log.event(start, "start", environment.facts() | {
        "examples": len(parts.source), "steps_per_epoch": parts.steps_per_epoch, "schedule_shift": shift,
        "chance": facts.chance,
    })  # fmt: skip
    if not start:
        log.settings(config.to_dict())
    teller = announce.Teller(console, log, facts)
    console.facts(messages.facts(config, parts, place, state))
    for line in (*remarks_of(parts.source), *(weights.said if weights else ())):
        console.line(line)
    del weights
    damaged = pipeline.DamagedImages(config.max_bad_images)
    host_batches, held = open_batches(
        config, parts, count_examples(state.examples_seen), damaged, console
    )
    train_step = program.compile_step()
    picture = neighbours.Picture(place, parts.monitor, console, log, start, last)
    found: Found | None = None

    if start == 0 and config.monitor_every:
        raw = parts.monitor.raw_pixels()
        if raw:
            log.write(0, {f"raw_{k}": v for k, v in raw.items()})
        score, found = parts.monitor.measure(variables(state))
        picture.renew(0, found)
        log.write(0, score)
        console.line(messages.score("before training", score))
        tell_of_labels(console, parts)

    batches = device_batches(host_batches, program, held)
    stop = StopSignals()
    flops = (train_step.cost_analysis() or {}).get("flops")
    clock = Clock(config.batch_size, last, start, flops)
    profile = Profile(config.profile_steps, place / "profile")

    def report(step: int, kind: str, text: str, facts: Mapping[str, Any]) -> None:
        console.line(text)
        lock.check()
        log.event(step, kind, facts)

    watch = bad_steps.Guard(
        config.max_bad_steps, config.spike_factor, parts.source.name, report, checkpoints.good
    )
    end = min(config.stop_at_step or last, last)
    save_every = checkpoint.interval(config.checkpoint_every, parts.steps_per_epoch)
    monitor_every = config.monitor_every * parts.steps_per_epoch

    def is_scored(step: int) -> bool:
        return monitor_every > 0 and ((step + shift) % monitor_every == 0 or step == last)

    step, stopping = start, 0
    try:
        for step in range(start + 1, end + 1):
            with clock.waiting():
                batch = next(batches)
            profile.before(step)
            state, metrics = train_step(state, batch)
            profile.after(step, metrics)
            clock.count(metrics)
            watch.observe(step, metrics, batch.index)
            stopping = stop.asked(step)
            if step % config.log_every == 0 or step == end or stopping:
                numbers = clock.read()
                lock.check()
                log.write(step, numbers)
                console.progress(
                    messages.progress(step + shift, numbers, config, parts, clock.left)
                )
            score, found, life = {}, None, parts.consistency.life
            if life and is_scored(step + life):
                with clock.pause():
                    parts.consistency.prepare(step, state)
            if is_scored(step):
                with clock.pause():
                    score, found = parts.monitor.measure(variables(state))
                    score |= parts.consistency.measure(step, state)
                    lock.check()
                    picture.renew(step, found)
                log.write(step, score)
                console.line(
                    messages.score(f"epoch {(step + shift) / parts.steps_per_epoch:g}", score)
                )
                tell_of_labels(console, parts)
            teller.consider(step, at_once=bool(score) or step == end)
            if step % save_every == 0 or step == end or score or stopping:
                lock.check()
                checkpoints.save(step, state, config.to_dict(), score)
            if stopping:
                break
        watch.finish()
    finally:
        host_batches.close()
        if not lock.lost:  # else each of these would write
            profile.close()
            checkpoints.close()
            log.close()
        stop.release()
    lock.check()
    if stopping:
        console.line(
            f"stopped by signal {stopping}; saved at step {step}, the same command goes on from there"
        )
        return stopping
    console.line(f"saving took {checkpoints.seconds / clock.age:.2%} of the time")
    if end == last:
        found = picture.complete(
            found, lambda: variables(state), lambda: first_variables(config, program)
        )
        lock.check()
        conclude(config, console, place, parts, log, last, found)
    if damaged.names:
        console.line(
            f"{len(damaged.names)} damaged images were replaced: {', '.join(damaged.names)}"
        )
    return 0


def variables(state: TrainState) -> dict:
    """What the query encoder needs to run."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def tell_of_labels(console: Console, parts: Parts) -> None:
    """Say what scores leave out for want of a label, once."""
    for said in parts.monitor.news():
        console.line(said)


def open_batches(
    config: ConfigDict, parts: Parts, examples_seen: int, damaged: pipeline.DamagedImages, console: Console
) -> tuple[Generator[pipeline.Rows, None, None], jax.Array | None]:  # fmt: skip
    """This host's rows of each batch from the one after `examples_seen` on, and the images that the devices hold, if any."""
    the_mesh = parts.program.mesh
    common: dict[str, Any] = dict(
        seed=config.seed, batch_size=config.batch_size,
        rows=mesh.local_rows(the_mesh, config.batch_size), examples_seen=examples_seen,
    )  # fmt: skip
    if parts.held is None:
        batches = pipeline.train_batches(
            parts.source, parts.recipe, workers=config.workers, damaged=damaged,
            crop_only=config.augment_on == "device", scaled_decoding=config.scaled_decoding, **common,
        )  # fmt: skip
        return batches, None
    images, stand_in = resident.load(
        parts.source, parts.held, config.workers, damaged, console.progress
    )
    rows = mesh.to_every_device(the_mesh, images.reshape(len(images), -1))
    return resident.train_batches(stand_in, **common), rows


def device_batches(
    host_batches: Iterator[pipeline.Rows], program: Program, held: jax.Array | None = None
) -> Iterator[Batch]:
    """Batches on the devices, `AHEAD` of them under way while a step runs; `held`: images that are there throughout."""
    queue: deque[Batch] = deque()
    for rows in host_batches:
        queue.append(Batch(**mesh.to_devices(program.mesh, rows), images=held))
        if len(queue) > AHEAD:
            yield queue.popleft()


class StopSignals:
    """Notes SIGTERM and SIGINT, so that the loop can save and end; a second one ends at once.

    Where several processes run, SIGTERM is left to JAX's preemption service, which tells all of them and agrees
    on a step.
    """

    def __init__(self) -> None:
        """Take both signals over."""
        self.number = 0
        alone = jax.process_count() == 1
        names = (signal.SIGTERM, signal.SIGINT) if alone else ()
        self._before = {name: signal.signal(name, self._note) for name in names}

    def _note(self, number: int, frame) -> None:
        self.number = number
        self.release()

    def asked(self, step: int) -> int:
        """The number of the signal that asks to stop after this `step`, or 0; all processes get one answer."""
        if jax.process_count() == 1:
            return self.number
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def release(self) -> None:
        """Give both signals back to whom they were taken from."""
        for name, handler in self._before.items():
            signal.signal(name, handler)


def first_variables(config: ConfigDict, program: Program) -> dict:
    """What the query encoder was before the first step; UserError where `init_from` is no longer there."""
    if not config.init_from:
        return variables(program.initial())
    weights = warm_start.read(config, program.abstract)
    return variables(warm_start.begin(program, weights, config.momentum))


def conclude(
    config: ConfigDict, console: Console, place: epath.Path, parts: Parts, log: run_log.Writers, last: int, found: Found
) -> None:  # fmt: skip
    """Fill TensorBoard's pages of pictures and print the table of scores; `found`: by the encoder after training."""
    if log.writes:
        fill_board(config, place, parts, log, last, found)
    log.close()
    scores = run_log.records(place)
    rows = []
    for name, key in (
        ("raw pixels", "raw_knn"),
        ("encoder before training", "knn"),
        ("encoder after", "knn"),
    ):
        known = [r[key] for r in scores if key in r]
        if known:
            rows.append(
                [name, f"{100 * (known[-1] if name.endswith('after') else known[0]):.2f} %"]
            )
    if rows:
        console.line(table(["features", "kNN accuracy"], rows))
    console.line(f"picture of nearest neighbours: {place / 'neighbours.png'}")


def fill_board(
    config: ConfigDict, place: epath.Path, parts: Parts, log: run_log.Writers, last: int, found: Found
) -> None:  # fmt: skip
    """Give TensorBoard the first view pairs, and the features of some training images."""
    pairs = view_pairs.first_pairs(
        parts.source, parts.recipe, seed=config.seed, batch_size=config.batch_size, workers=config.workers,
        scaled_decoding=config.scaled_decoding,
    )  # fmt: skip
    view_pairs.draw(place / "views.png", parts.source, pairs)
    log.picture(last, "view pairs", place / "views.png")
    images = neighbours.views(parts.source, parts.recipe, found.sample, config.workers)
    numbers = labels.known(parts.source, found.sample)
    called = None
    if numbers is not None:
        called = [labels.called(parts.source.classes, number) for number in numbers.tolist()]
    tensorboard_files.project(place, found.features, images, called)
