"""Measures how far the numbers of one run differ between layouts of devices and processes.

    python -m benchmarks.same_numbers [--out=FOLDER]  # MoCo, float64 and float32, a ResNet-18
    python -m benchmarks.same_numbers --methods=end_to_end,...  # of configs/digits.py, float64

The layouts are one device, eight, two processes of four, and a run moved 8 -> 4 -> 1. With
`--methods` the encoder is the recipe's own. Each row is the real command line, in processes of
its own. In float64 only the order of sums can differ. In float32 that difference grows from step
to step as any difference does, so it stands beside that of a control: the run on one device with
every weight moved by one unit in the last place.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from etils import epath

from benchmarks import machine
from configs.digits import METHODS as KNOWN
from moco_jax.base.console import table
from moco_jax.data import pipeline
from moco_jax.data.sources.memory import digits
from moco_jax.data.views import recipes
from moco_jax.monitoring import run_log
from tests import states

STEPS, BATCH = 20, 64
METHODS = flags.DEFINE_list(
    "methods", [], f"Methods to go through instead of MoCo alone: {', '.join(KNOWN)}."
)
OUT = flags.DEFINE_string("out", "", "Folder that keeps the runs; a temporary one where empty.")

# Name -> parts of the run: processes, devices of each, and the step at which the part ends.
RUNS = {
    "1 device": [(1, 1, STEPS)],
    "8 devices": [(1, 8, STEPS)],
    "2 processes x 4": [(2, 4, STEPS)],
    "8 -> 4 -> 1, resumed": [(1, 8, 7), (1, 4, 14), (1, 1, STEPS)],
}
CONTROL = "control: 1 device, weights + 1 ulp"


def settings(method: str, dtype: str, stop: int) -> list[str]:
    """Return flags for the digits with shuffled keys, eight BN groups and a queue that wraps.

    A method without keys to shuffle or BN groups goes without these.
    """
    groups = KNOWN.get(method, {}).get("bn_groups", 8)
    large = [] if method else ["--config.arch=resnet18", "--config.width=32"]
    return [
        f"--config=configs/digits.py:{method}",
        *large,
        f"--config.bn_groups={groups}",
        "--config.shuffle_groups=8",
        f"--config.batch_size={BATCH}",
        f"--config.queue_size={8 * BATCH}",
        "--config.monitor_every=0",
        "--config.log_every=1",
        f"--config.compute_dtype={dtype}",
        f"--config.stop_at_step={stop}",
        "--config.cpu_devices=0",
    ]


def run(
    workdir: Path, method: str, dtype: str, processes: int, devices: int, stop: int, control: bool
) -> None:
    """Run one part of a run to its end.

    Raises:
        RuntimeError: a process failed; the text is what it printed.
    """
    env = {
        **os.environ,
        "JAX_ENABLE_X64": str(int(dtype == "float64")),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    module = "benchmarks.same_numbers" if control else "moco_jax.main"
    command = [sys.executable, "-m", module, f"--workdir={workdir}", *settings(method, dtype, stop)]
    port, started = machine.free_port(), []
    for number in range(processes):
        joined = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={processes}",
            f"--process_id={number}",
        ]
        more = ["--control"] if control else joined if processes > 1 else []
        started.append(
            subprocess.Popen(
                command + more, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")


def control() -> None:
    """Run the command line with every weight of both encoders one unit in the last place higher."""
    from moco_jax.cli import pretrain as main
    from moco_jax.training import loop

    build = loop.build

    def nudged(*arguments):
        parts = build(*arguments)

        def initial():
            begin = parts.program.initial()
            nudge = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.nextafter(x, jnp.inf), tree))
            return begin.replace(params=nudge(begin.params), key_params=nudge(begin.key_params))

        program = dataclasses.replace(parts.program, initial=initial)
        return dataclasses.replace(parts, program=program)

    loop.build = nudged
    sys.argv.remove("--control")
    main.run()


def same_views() -> str:
    """Say whether two hosts draw the very views that one draws, over an epoch's end."""
    recipe = recipes.create("v2", 32)

    def draw(rows: np.ndarray, workers: int):
        batches = pipeline.train_batches(
            digits("train"),
            recipe,
            seed=0,
            batch_size=BATCH,
            rows=rows,
            examples_seen=20 * BATCH,
            workers=workers,
            damaged=pipeline.DamagedImages(0),
        )
        return [next(batches) for _ in range(4)]

    every = np.arange(BATCH)
    whole, first, second = draw(every, 1), draw(every[:32], 2), draw(every[32:], 2)
    same = all(
        np.array_equal(w[name], np.concatenate([a[name], b[name]]))
        for w, a, b in zip(whole, first, second, strict=True)
        for name in w
    )
    return "identical" if same else "DIFFERENT"


def measure(folder: Path, method: str, dtype: str) -> list[list[str]]:
    """Return a row for each run: largest relative differences of losses and of the final state.

    They are the differences from the run on one device.
    """
    results = {}
    names = {**RUNS, CONTROL: RUNS["1 device"]} if dtype == "float32" else RUNS
    for name, parts in names.items():
        workdir = (
            folder / (method or "moco") / dtype / "".join(c if c.isalnum() else "_" for c in name)
        )
        for part in parts:
            run(workdir, method, dtype, *part, control=name == CONTROL)
        losses = [r["loss"] for r in run_log.records(epath.Path(workdir)) if "loss" in r]
        results[name] = np.asarray(losses), states.load(workdir, STEPS)
    one_losses, one = results["1 device"]
    rows = []
    for name, (losses, state) in results.items():
        apart = np.abs(losses / one_losses - 1)
        parameters = [k for k in one if k.startswith(("params", "key_params"))]
        # Each array is compared relative to its own largest value.
        worst = max(np.abs(state[k] - one[k]).max() / np.abs(one[k]).max() for k in parameters)
        has_keys = "dictionary.keys" in one
        keys = np.abs(state["dictionary.keys"] - one["dictionary.keys"]).max() if has_keys else None
        places = [k for k in one if k in ("dictionary.index", "examples_seen")]
        order = all(np.array_equal(state[k], one[k]) for k in places)
        rows.append(
            [
                method or "moco",
                dtype,
                name,
                f"{apart[0]:.1e}",
                f"{apart.max():.1e}",
                f"{worst:.1e}",
                "-" if keys is None else f"{keys:.1e}",
                "identical" if order else "DIFFERENT",
            ]
        )
    return rows


def main(argv: list[str]) -> None:
    """Run all rows and print the table."""
    with TemporaryDirectory() as temporary:
        folder = Path(OUT.value or temporary)
        cases = [(method, "float64") for method in METHODS.value] or [
            ("", "float64"),
            ("", "float32"),
        ]
        rows = [row for method, dtype in cases for row in measure(folder, method, dtype)]
    header = [
        "method",
        "dtype",
        "run",
        "loss, step 1",
        f"loss, {STEPS} steps",
        "parameters",
        "dictionary",
        "order of keys",
    ]
    encoder = "the method's own encoder" if METHODS.value else "ResNet-18 (width 32)"
    print(f"{machine.describe()}; {encoder}, batch {BATCH} in 8 BN groups (v3: 1), shuffled keys")
    print("largest relative difference from 1 device (dictionary: absolute)")
    print(table(header, rows))
    print(f"views drawn by two hosts with two workers and by one host with one: {same_views()}")


if __name__ == "__main__":
    control() if "--control" in sys.argv else app.run(main)
