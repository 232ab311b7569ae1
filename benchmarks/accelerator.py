r"""Measures this project on one accelerator that is there for a quarter of an hour.

    python -m benchmarks.accelerator --prepare=TFDS     # before, on a machine that has CIFAR-10
    python -m benchmarks.accelerator --out=FOLDER       # there: all four parts, in ten minutes
    python -m benchmarks.accelerator --out=FOLDER --parts=4 --seconds=200    # the training goes on
    python -m benchmarks.accelerator --small --out=FOLDER    # every line of it, on a CPU

The parts, in this order:
  1. known answers of the compiler, and five steps beside PyTorch's in float32, bfloat16, float64;
  2. one step of a ResNet-50 (224 px, batch 256) and of a ResNet-18 (32 px, batch 512) beside
     PyTorch's (bf16 autocast, channels last, with and without compile), and its share of the peak;
     if time is left, of MoCo v3's ViT-S with batch 1,024 and both forms of attention;
  3. pairs of views a second, made on the device;
  4. `configs/cifar10.py` with `augment_on='resident'`: its schedule is that of 200 epochs, whenever
     time cuts it; kNN every five epochs stands beside the authors'. A second start on the same
     machine goes on from the last checkpoint in `--workdir`.

Each measurement is a process of its own with a limit that ends it, and its result is in
FOLDER/results.jsonl at once: a command that is cut off leaves what was measured. FOLDER/log.txt has
what the processes printed, and FOLDER/encoder.pth.* the query encoder's backbone in pieces of at
most 15 MiB: `cat FOLDER/encoder.pth.* > encoder.pth`. Nothing of it needs a network, TensorFlow,
TFDS or clu; ml_collections travels in `.accelerator/`, beside CIFAR-10's shards.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks.accelerator_parts import carrying, training
from benchmarks.accelerator_parts.running import (
    Process,
    Results,
    measuring,
    none_left_behind,
)
from benchmarks.accelerator_parts.tables import tables
from moco_jax.base.errors import UserError
from tests import xla

PREPARE = flags.DEFINE_string("prepare", "", "TFDS data directory: copy what must travel; no more.")
OUT = flags.DEFINE_string("out", "runs/accelerator", "Folder for the results.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    str(Path(tempfile.gettempdir(), "moco_accelerator")),
    "Folder that outlasts the command on its machine: training, compiled programs.",
)
PARTS = flags.DEFINE_list("parts", ["1", "2", "3", "4"], "Parts to run, always in this order.")
SECONDS = flags.DEFINE_float("seconds", 570, "Seconds after which the command has ended.")
TRAIN_DTYPE = flags.DEFINE_enum(
    "train_dtype",
    "bfloat16",
    ["bfloat16", "float32"],
    "What part 4 computes in; the recipe's own is float32, which takes about twice the time.",
)
SMALL = flags.DEFINE_bool("small", False, "Tiny sizes, to try every line on a CPU.")

FIRST = 240.0  # seconds in which parts 1 to 3 are over
# Seconds of each measurement, compiling included.
LIMITS = {"checks": 75, "ready": 120, "turn": 25, "step": 75, "views": 45, "ViT": 75}
SLOWER = 12  # times that all limits are longer in the small form: a CPU compiles beside others
WORTH = 40.0  # seconds that must be left for the ViT to be begun
CASES = [
    dict(arch="resnet50", side=224, batch=256, groups=8, queue=65536),
    dict(arch="resnet18", side=32, batch=512, groups=8, queue=4096),
]
SMALL_CASES = [dict(arch="resnet18", side=32, batch=8, groups=2, queue=64)]
VIT = dict(batch_size=1024)
SMALL_VIT = dict(batch_size=4, image_size=32)
VIEWS = [
    dict(augment="cifar", side=32, held=32, number=50_000, batch=512),
    dict(augment="v2", side=224, held=256, number=4096, batch=256),
]
SMALL_VIEWS = [dict(augment="cifar", side=32, held=32, number=64, batch=16)]


class Run:
    """One command: its results, its limits, and the processes that it starts."""

    def __init__(self) -> None:
        """Begin to count the time."""
        self.out, self.workdir = Path(OUT.value), Path(WORKDIR.value).resolve()
        self.results, self.small = Results(self.out), SMALL.value
        self.slower = SLOWER if self.small else 1
        self.environment = carrying.environment() | {
            "PYTHONUNBUFFERED": "1",
            # What the first start has compiled, the second one finds.
            "JAX_COMPILATION_CACHE_DIR": str(self.workdir / "programs"),
        }
        if self.small:  # compiling takes most of the time, and speed is of no interest
            self.environment["XLA_FLAGS"] = xla.flags(1)

    @property
    def left(self) -> float:
        """Return the seconds that are left for parts 1 to 3."""
        return min(FIRST, SECONDS.value) * self.slower - self.results.seconds

    def start(self, part: int, name: str, module: str, limit: str, **asked: Any) -> Process:
        """Start the measuring process `module`, called `name`, with a limit of `LIMITS`."""
        seconds = min(LIMITS[limit] * self.slower, max(self.left, 0))
        asked |= dict(small=self.small, times=2 if self.small else 5)
        # PyTorch's processes hold memory of the device beside it.
        own = self.environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return Process(self.results, part, name, measuring(module, asked), seconds, own)

    def measure(self, *arguments: Any, **asked: Any) -> None:
        """Start a measuring process as `start` does, and wait for its end."""
        if self.left > 1:
            self.start(*arguments, **asked).finish()
        else:
            part, name, *_ = arguments
            self.results.add(part=part, failed=name, why="no time is left for it")


def pytorch(run: Run) -> dict[tuple[str, bool], Process]:
    """Start to make PyTorch's steps ready, which compiles for a minute; none is timed yet."""
    return {
        (case["arch"], compiled): run.start(
            *(2, f"PyTorch {case['arch']}{', compile' * compiled}", "step_torch", "ready"),
            **dict(case=case, compiled=compiled, steps=1 if run.small else 10),
        )
        for case in cases(run)
        for compiled in (False, True)
    }


def cases(run: Run) -> list[dict[str, Any]]:
    """Return the networks and sizes whose steps are timed."""
    return SMALL_CASES if run.small else CASES


def steps(run: Run, theirs: dict[tuple[str, bool], Process]) -> None:
    """Part 2: time the steps, one after the other, with nothing else on the device."""
    for process in theirs.values():
        process.wait_until_ready()
    product = dict(product=256 if run.small else 8192)
    for case in cases(run):
        asked = dict(case=case, steps=1 if run.small else 10, **product)
        run.measure(2, f"JAX {case['arch']}", "step_jax", "step", **asked)
        product = {}
        for compiled in (False, True):
            theirs[case["arch"], compiled].measure(min(LIMITS["turn"] * run.slower, run.left))


def main(argv: list[str]) -> None:
    """Run the parts that the flags name."""
    if PREPARE.value:
        print(*carrying.prepare(PREPARE.value), sep="\n")
        return
    unknown = set(PARTS.value) - set("1234")
    if unknown or len(argv) > 1:
        raise UserError(f"--parts={','.join(PARTS.value)}: the parts are 1,2,3,4")
    data = carrying.DATA.resolve()
    if "4" in PARTS.value and not data.exists():
        raise UserError(f"{data} is missing; make it by --prepare=TFDS, and carry it")
    run = Run()
    with none_left_behind():
        take(run, PARTS.value, data)
    print(tables(run.results.all))


def take(run: Run, parts: list[str], data: Path) -> None:
    """Take the `parts` in their order; `data`: the TFDS data directory of part 4."""
    theirs = pytorch(run) if "2" in parts else {}
    if "1" in parts:
        run.measure(1, "checks", "checks", "checks")
    if "2" in parts:
        steps(run, theirs)
    if "3" in parts:
        run.measure(3, "views", "views", "views", forms=SMALL_VIEWS if run.small else VIEWS)
    if "2" in parts and run.left > WORTH:
        vit = dict(vit=SMALL_VIT if run.small else VIT, steps=1 if run.small else 5)
        run.measure(2, "JAX ViT-S", "step_jax", "ViT", **vit)
    if "4" in parts:
        dtype = "float32" if run.small else TRAIN_DTYPE.value
        # The small form's training is cut by time too, however long the other parts took.
        until = run.results.seconds + SECONDS.value / 2 if run.small else SECONDS.value
        where = data, run.workdir, run.out, until
        training.train(run.results, *where, dtype, run.small, run.environment)


def start() -> None:
    """Run the command; what a person can mend is said in one line."""
    try:
        app.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    start()
