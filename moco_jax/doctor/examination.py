"""Examines a run before it starts, section by section.

Each section uses what the earlier ones found, and a fault in one does not stop the others. Of a
run on several hosts all of them examine it together, each its part: what one cannot do counts for
all, so that none waits for another, and process 0 prints what `joined.py` makes of their findings.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from moco_jax.base.console import Counter, duration
from moco_jax.base.findings import BUSY, FAULT, NOTE, OK, Finding, Report
from moco_jax.data import order, resident
from moco_jax.data.configured import open_images, recipe_of
from moco_jax.data.sources import Source, fingerprint, remarks_of
from moco_jax.data.views import recipes
from moco_jax.doctor import images, joined, memory, rate, settings, survey, workdir
from moco_jax.evaluation.classes import match_sources
from moco_jax.evaluation.held_out import choose
from moco_jax.monitoring import view_pairs
from moco_jax.parallel import hosts, known_answers, mesh
from moco_jax.training import checks, warm_start
from moco_jax.training.assembly import Program, find_resident_shape, program, require_a_batch
from moco_jax.workdir import integrity

LABELS = 256  # images of each part whose labels are looked at: a record is read for each
NO_IMAGES, NO_SETTINGS = "the dataset's fault is mended", "the settings' fault is mended"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an examination, beside the config of the run.

    Attributes:
        recipe_batch: the batch size in the recipe file itself.
        out: the folder that the contact sheet is written to.
        count: how many images are looked at; all where None.
        step_seconds: seconds of a step; measured where None.
        index_dir: where an index of records may be kept; None for nowhere.
        place: the workdir, if there is one; it is only read.
        allow_change: recipe settings that may differ from those of the run that is there.
    """

    recipe_batch: int
    out: epath.Path
    count: int | None = None
    step_seconds: float | None = None
    index_dir: str | None = None
    place: epath.Path | None = None
    allow_change: frozenset[str] = frozenset()


def examine(config: ConfigDict, report: Report, options: Options) -> None:
    """Examine the run that `config` describes, and put the findings of all sections into `report`.

    Of several hosts each must call this, and process 0 has the whole report.

    Args:
        config: what would run.
        report: prints and counts what is found.
        options: what else the doctor is told.
    """
    examination = Examination(config, report, options.step_seconds)
    if not examination.hosts(options):
        return
    examination.settings(options.recipe_batch)
    examination.dataset(options.index_dir)
    examination.images(options.count)
    examination.views(options.out / "views.png")
    examination.devices()
    examination.weights(options.place)
    examination.input_rate()
    if options.place is not None:
        examination.workdir(options.place, set(options.allow_change))


class Examination:
    """Examines one config, section by section; later sections use what earlier ones found.

    Attributes:
        values_sound, runs: whether each setting is sound alone, and all of them together on these
            devices.
        source: the images, once they are open.
        enough: whether they are enough for a batch.
        bank: how many of them the monitor searches.
        computed: the program, once it is built.
        step: seconds of a step, given or measured.
        side: median of the images' shorter side, in pixels.
        could_reside: whether the images seem to be of one size, and fit on a device.
    """

    def __init__(self, config: ConfigDict, report: Report, step: float | None):
        """Begin an examination of `config`; `step`: seconds of a step, None to measure it."""
        self.config, self.report = config, report
        self.given, self.step = step is not None, step
        self.values_sound, self.runs, self.enough = False, False, False
        self.source: Source | None = None
        self.computed: Program | None = None
        self.bank, self.side, self.could_reside = 0, 0.0, False

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; 0 where the images are not known."""
        if self.source is None or not self.enough:
            return 0
        return order.steps_per_epoch(len(self.source), self.config.batch_size)

    def hosts(self, options: Options) -> bool:
        """Find whether the processes of the run, where there are several, can run together."""
        if hosts.is_alone():
            return True
        with self.report.section("hosts"):
            flags = {
                "--sample": options.count,
                "--step_seconds": options.step_seconds,
                "--workdir": str(options.place),
            }
            self.report.add(*joined.require_one_command(self.config, flags))
            return True
        return False

    def settings(self, recipe_batch: int) -> None:
        """Examine names and values of settings, and whether all sizes divide.

        `recipe_batch`: the batch size in the recipe file.
        """
        with self.report.section("settings"):
            checks.check_values(self.config)
            self.values_sound = True
            count, kind = settings.count_devices()
            checks.check_batch(self.config, count)
            self.runs = True
            self.report.add(Finding(OK, f"all are sound for {count} x {kind}"))
            self.report.add(*settings.advice(self.config, recipe_batch))

    def dataset(self, index_dir: str | None) -> None:
        """Open the images, and examine what follows from their number and labels.

        `index_dir`: where an index of records may be kept.
        """
        config = self.config
        with self.report.section("dataset"):
            began = time.perf_counter()
            with hosts.together():
                source = open_images(config, config.split, index_dir)
            took = duration(time.perf_counter() - began)
            fingerprint.agreed(source)
            self.source, count = source, len(source)
            self.report.add(
                Finding(
                    OK, f"{count:,} images of {config.dataset} ({config.split}), opened in {took}"
                )
            )
            if not hosts.is_alone():
                self.report.add(Finding(OK, f"all {hosts.count()} processes see the same images"))
            self.report.add(*(Finding(NOTE, remark) for remark in remarks_of(self.source)))
            require_a_batch(config, self.source)
            self.enough = True
            self.report.add(*settings.length(config, count))
            queries = None
            with hosts.together():
                if config.eval_split:
                    queries = open_images(config, config.eval_split, index_dir)
                bank, chosen = choose(self.source, queries, config.knn_examples, config.seed)
                self.bank = len(bank) if config.monitor_every else 0
                some = (x[survey.spread(len(x), LABELS, config.seed)] for x in (bank, chosen))
                matched = match_sources(self.source, next(some), queries or self.source, next(some))
            self.report.add(*settings.monitor(config, matched, len(bank), len(chosen)))

    def images(self, count: int | None) -> None:
        """Examine `count` of the images; all of them where None."""
        source = self.source
        if source is None:
            return self.report.skip("images", NO_IMAGES)
        with self.report.section("images"):
            chosen = survey.spread(len(source), count or len(source), self.config.seed)
            own = -(-len(chosen) // hosts.count())
            found = survey.survey_together(
                source,
                chosen,
                max(self.config.workers, 0),
                Counter(self.report.console, BUSY + "{done} of {total}", own),
            )
            self.side = float(np.median(images.shorter_sides(found))) if found.good.any() else 0.0
            sides = images.common_sides(found)
            self.could_reside = sides is not None and resident.fits(
                (len(source), *sides, self.config.channels),
                resident.memory_limit(),
                jax.device_count(),
            )
            files = getattr(source, "files", None)
            self.report.add(
                *images.findings(
                    found,
                    source.name,
                    files,
                    self.config.image_size,
                    self.config.max_bad_images,
                    self.config.background,
                )
            )
            if self.config.augment_on == "resident":
                self.report.add(*images.one_size(found, source.name))

    def views(self, path: epath.Path) -> None:
        """Draw the run's first views to `path`; process 0 does."""
        if not hosts.is_first():
            return None
        if self.source is None or not self.values_sound:
            return self.report.skip("views", NO_SETTINGS if self.source else NO_IMAGES)
        with self.report.section("views"):
            config = self.config
            batch_size = min(config.batch_size, len(self.source))
            views: dict[str, Any] = {
                "seed": config.seed,
                "batch_size": batch_size,
                "workers": config.workers,
                "augment_on": config.augment_on,
            }
            pairs = view_pairs.first_pairs(
                self.source, recipe_of(config), scaled_decoding=config.scaled_decoding, **views
            )
            view_pairs.draw(path, self.source, pairs)
            self.report.add(Finding(OK, f"drawn: {recipes.described(recipe_of(config))}"))
            self.report.add(Finding(OK, f"what the run draws first; look at it: {path}"))
            if config.scaled_decoding:
                exact = view_pairs.first_pairs(self.source, recipe_of(config), **views)
                self.report.add(scaled_decoding_difference(pairs, exact))

    def devices(self) -> None:
        """Compile the train step, and examine its memory and time."""
        if not self.runs:
            return self.report.skip("devices", NO_SETTINGS)
        if self.source is None and self.config.augment_on == "resident":
            return self.report.skip("devices", NO_IMAGES)
        with self.report.section("devices"):
            with hosts.together():
                known_answers.require_right()
            self.report.add(Finding(OK, "sums, products and convolutions come out right"))
            with hosts.together():
                shape = find_resident_shape(self.config, self.source) if self.source else None
            examples = len(self.source) if self.source is not None and self.enough else 1
            self.computed = program(self.config, mesh.create_mesh(), examples, shape)
            began = time.perf_counter()
            self.report.busy("compiling the train step")
            compiled = self.computed.compile_step()
            took = duration(time.perf_counter() - began)
            self.report.add(Finding(OK, f"the train step compiles, in {took}"))
            with hosts.together():
                found = memory.of_run(self.config, self.computed, compiled, self.source, self.bank)
            memory_findings = joined.findings(found)
            self.report.add(*memory_findings)
            if self.given:
                self.report.add(Finding(OK, f"a step takes {self.step:g} s, as given"))
            elif any(finding.severity == FAULT for finding in memory_findings):
                self.report.add(
                    Finding(
                        NOTE,
                        "a step is not timed, as it does not fit; --step_seconds=S tells its time",
                    )
                )
            else:
                self.report.busy("timing the train step")
                self.step = rate.step_seconds(self.computed, compiled)
                self.report.add(Finding(OK, f"a step takes {self.step:.3g} s, measured"))

    def weights(self, place: epath.Path | None) -> None:
        """Examine whether the weights of `init_from` fit.

        `place`: the workdir, whose checkpoint would be taken in their place.
        """
        if not self.config.init_from:
            return
        if self.computed is None:
            return self.report.skip("weights", NO_SETTINGS)
        with self.report.section("weights"):
            begun = place is not None and integrity.is_begun(place)
            if hosts.gather(begun)[0]:
                text = f"init_from={self.config.init_from} is not read: {place} has a checkpoint"
                return self.report.add(Finding(NOTE, text))
            with hosts.together():
                found = warm_start.read(self.config, self.computed.abstract)
            self.report.add(*(Finding(OK, remark) for remark in found.remarks))

    def input_rate(self) -> None:
        """Measure view pairs a second, beside what the devices ask for."""
        source, config = self.source, self.config
        if source is None or not self.values_sound:
            return self.report.skip("input rate", NO_SETTINGS if source else NO_IMAGES)
        with self.report.section("input rate"):
            batch_size = min(config.batch_size, len(source))
            # The rows of each batch that this host makes, of a run on several hosts.
            rows = np.arange(batch_size)
            if self.runs and self.enough:
                rows = mesh.local_rows(mesh.create_mesh(), batch_size)
            if config.augment_on == "resident":
                numbers = rate.numbers_per_second(len(source), batch_size, rows, config.seed)
                text = (
                    "the devices make the views; this host says of which images, "
                    f"{rate.number(numbers)} a second"
                )
                self.report.add(Finding(OK, text))
                return self._pace(numbers, len(rows), shared=False)
            self.report.busy(f"making view pairs for {2 * rate.SECONDS:g} s or more")
            with hosts.together():
                pairs = rate.source_pairs_per_second(config, source, batch_size)
            every = hosts.gather(pairs)
            slow, found = joined.slowest(every)
            self.report.add(*found)
            if self.step is None:
                text = (
                    f"{rate.number(pairs)} view pairs a second; --step_seconds=S says whether that "
                    "is enough"
                )
                return self.report.add(Finding(NOTE, text))
            shared = not self.given and jax.default_backend() == "cpu"
            with hosts.together():
                reads = rate.reads_per_second(source, rate.READ_SECONDS, time.time_ns())
            made = rate.Input.of(config, source, self.side, self.could_reside)
            remedies = rate.remedies(pairs, len(rows) / self.step, reads, made)
            fed = rate.feeds(pairs, len(rows), self.step, shared, remedies)
            self.report.add(joined.of_process(slow, fed))
            self._pace(every[slow], len(rows), shared)

    def _pace(self, pairs: float, rows: int, shared: bool) -> None:
        """Report how long the run takes, where a host makes `pairs` a second of `rows` a batch."""
        if self.enough and self.step is not None:
            minutes, one = self.config.minutes, self.steps_per_epoch
            if minutes:
                self.report.add(rate.room(pairs, rows, self.step, shared, minutes, one))
            else:
                total = one * self.config.epochs
                self.report.add(rate.pace(pairs, rows, self.step, shared, total))

    def workdir(self, place: epath.Path, allow_change: set[str]) -> None:
        """Examine rights, room, and where the run would go on in `place`."""
        with self.report.section("workdir"):
            rights = joined.findings([workdir.writable(place)])
            self.report.add(*rights)
            if not hosts.is_first() or any(one.severity == FAULT for one in rights):
                return
            if self.computed is not None:
                state = memory.tree_bytes(self.computed.abstract)
                self.report.add(*workdir.measure_room(place, state, self.config.keep))
            total = 0 if self.config.minutes else self.steps_per_epoch * self.config.epochs
            self.report.add(*workdir.checkpoints(place, total))
            self.report.add(*workdir.recipe(place, self.config.to_dict(), allow_change))


def scaled_decoding_difference(scaled: view_pairs.Rows, exact: view_pairs.Rows) -> Finding:
    """Compare views made by scaled decoding with the exact ones."""
    apart = [np.abs(scaled[k].astype(np.int32) - exact[k]) for k in ("query", "key")]
    return Finding(
        NOTE,
        f"scaled_decoding changes these views by {np.mean(apart):.2f} of 255 gray levels in the "
        f"mean; {np.mean(np.asarray(apart) > 6):.1%} of their values by more than 6",
    )
