"""Part 4: the authors' CIFAR-10 demo, trained until the time is over, with its curve."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.accelerator_parts.running import Process, Results

# Epoch -> kNN in per cent that the authors' demo reached after it, of its 200.
AUTHORS = {1: 31.98, 5: 37.95, 10: 48.03, 20: 61.38, 50: 73.30, 100: 78.06, 200: 82.58}
SAVING, WRITING = 20.0, 30.0  # seconds kept for the last checkpoint, and for the encoder's file
PIECE = 15 * 2**20  # bytes of each piece of the encoder's file
STOPPED = 128 + 15  # the status of a training that saved its state when it was asked to stop
SMALL = {
    "arch": "resnet10",
    "width": 8,
    "batch_size": 64,
    "queue_size": 256,
    "split": "train[0:640]",
    "eval_split": "test[0:128]",
    "monitor_every": 1,
    "knn_k": 20,
    "eval_batch_size": 64,
    "log_every": 5,
}


class Curve:
    """The scores of a training, handed over as its records show them."""

    def __init__(self, results: Results, workdir: Path):
        """Follow the records in `workdir`; a second start hands over earlier scores too."""
        self.results, self.records = results, workdir / "run" / "metrics.jsonl"
        self._kept = workdir / "curve.json"
        kept = json.loads(self._kept.read_text()) if self._kept.exists() else {}
        self._before, self._reached = kept.get("seconds", 0.0), kept.get("reached", {})
        self.began, self._told = time.perf_counter(), dict[int, float]()

    @property
    def seconds(self) -> float:
        """Return the seconds of training so far, of all starts, with compiling and loading."""
        return round(self._before + time.perf_counter() - self.began, 1)

    def read(self) -> list[dict[str, Any]]:
        """Return all records of the run; the last line may be one that is being written."""
        lines = self.records.read_text().split("\n")[:-1] if self.records.exists() else []
        return [json.loads(line) for line in lines]

    def look(self) -> None:
        """Hand over the scores that are new."""
        per_epoch = 0
        for record in self.read():
            per_epoch = record.get("steps_per_epoch", per_epoch)
            if "knn" not in record or record["step"] in self._told:
                continue
            step, epoch = record["step"], record["step"] // per_epoch if per_epoch else 0
            self._told[step] = 100 * record["knn"]
            seconds = self._reached.setdefault(str(step), self.seconds)
            self._keep()
            told = dict(knn=self._told[step], authors=AUTHORS.get(epoch), seconds=seconds)
            self.results.add(part=4, what="kNN", epoch=epoch, **told)

    def _keep(self) -> None:
        self._kept.write_text(json.dumps({"seconds": self.seconds, "reached": self._reached}))

    def close(self, dtype: str) -> None:
        """Hand over the speed, and keep the seconds for a second start."""
        self.look()
        self._keep()
        speeds = sorted(r["images_per_second"] for r in self.read() if "images_per_second" in r)
        self.results.add(
            part=4,
            what="training",
            compute_dtype=dtype,
            images_a_second=speeds[len(speeds) // 2] if speeds else None,
            seconds=self.seconds,
            knn=self._told[max(self._told)] if self._told else None,
        )


def command(data: Path, workdir: Path, dtype: str, small: bool) -> list[str]:
    """Return the command line of the training: 200 epochs, of which the time may cut the last."""
    settings = {
        "data_dir": data,
        "augment_on": "resident",
        "compute_dtype": dtype,
        "eval_batch_size": 1000,
        "log_every": 97,
        "checkpoint_every": 970,
    }
    settings |= SMALL if small else {}
    words = [f"--config.{name}={value}" for name, value in settings.items()]
    start = [sys.executable, "-m", "moco_jax.main", "--config=configs/cifar10.py"]
    return [*start, f"--workdir={workdir / 'run'}", *words]


def train(
    results: Results,
    data: Path,
    workdir: Path,
    out: Path,
    until: float,
    dtype: str,
    small: bool,
    environment: dict[str, str],
) -> None:
    """Train, or go on, and write the encoder.

    Args:
        results: take the curve.
        data: the TFDS data directory.
        workdir: holds the run; a second start goes on from what it finds there.
        out: where the encoder's pieces go.
        until: when everything must be over, seconds after the command began.
        dtype: what the encoders compute in.
        small: train a tiny encoder on a few images.
        environment: variables of the processes.
    """
    left = until - results.seconds - WRITING
    if left < 2 * SAVING:
        results.add(part=4, failed="training", why=f"{left:.0f} s are left, which is too little")
        return
    workdir.mkdir(parents=True, exist_ok=True)
    curve, words = Curve(results, workdir), command(data, workdir, dtype, small)
    process = Process(results, 4, "training", words, left, environment)
    asked = False
    while process.runs and time.perf_counter() < process.deadline:
        curve.look()
        if not asked and process.deadline - time.perf_counter() < SAVING:
            process.ask_to_stop()
            asked = True
        time.sleep(0.5)
    process.finish(expected=(0, STOPPED))
    curve.close(dtype)
    write_encoder(results, workdir, out, until, environment)


def write_encoder(
    results: Results, workdir: Path, out: Path, until: float, environment: dict[str, str]
) -> None:
    """Write the query encoder of the last checkpoint, in pieces of at most `PIECE` bytes."""
    whole = workdir / "encoder.pth"
    words = [sys.executable, "-m", "moco_jax.convert", str(workdir / "run"), str(whole)]
    limit = max(until - results.seconds, 5.0)
    variables = environment | {"JAX_PLATFORMS": "cpu"}
    process = Process(results, 4, "encoder", [*words, "--format=torchvision"], limit, variables)
    if not process.finish():
        return
    for left in out.glob("encoder.pth.*"):
        left.unlink()
    content = whole.read_bytes()
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    for number, piece in enumerate(pieces):
        (out / f"encoder.pth.{number:02d}").write_bytes(piece)
    os.unlink(whole)
    results.add(part=4, what="encoder", pieces=len(pieces), bytes=len(content))
