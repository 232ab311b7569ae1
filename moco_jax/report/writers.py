"""The numbers of a run for tools: JSON lines in `metrics.jsonl`, and the same scalars, settings and pictures for TensorBoard."""

import functools
import json
from collections.abc import Mapping
from typing import Any

from clu import metric_writers
from etils import epath

from moco_jax import files
from moco_jax.report import board

HELD = 4000  # records of a run that are kept in memory, about 4 MB


def thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`records` where they are no more than `HELD`; else without every other one of the older half's losses."""
    if len(records) <= HELD:
        return records
    older, newer = records[: HELD // 2], records[HELD // 2 :]
    losses = [r for r in older if "loss" in r]
    left_out = {id(r) for r in losses[1::2]}
    return [r for r in older if id(r) not in left_out] + newer


class Writers:
    """Appends records of one run; a host that does not write keeps silent.

    `held` are its records so far, in order, older ones thinned out.
    """

    def __init__(self, workdir: epath.Path, writes: bool, resumed_step: int):
        """Open the files; records past `resumed_step`, of work that was lost, are taken out first."""
        self.path, self.workdir = workdir / "metrics.jsonl", workdir
        self.writes = writes
        self.held: list[dict[str, Any]] = []
        if not writes:
            return
        kept = [r for r in records(workdir) if r["step"] <= resumed_step]
        files.write(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        for record in kept:
            self._hold(record)

    @functools.cached_property
    def _board(self) -> metric_writers.SummaryWriter:
        """One at a time: TensorBoard leaves a file, and what is added to it later, as soon as there is a younger one."""
        return metric_writers.SummaryWriter(str(self.workdir / board.FOLDER))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record `numbers` at `step`."""
        if not self.writes:
            return
        self._append({"step": step, **numbers})
        self._board.write_scalars(step, dict(numbers))

    def settings(self, config: Mapping[str, Any]) -> None:
        """Give TensorBoard the settings of the run."""
        if self.writes:
            self._board.write_hparams(board.settings(config))

    def picture(self, step: int, name: str, path: epath.Path) -> None:
        """Give TensorBoard the PNG at `path` as it is at `step`; at once, for whoever waits for it."""
        if self.writes:
            self._board.write_images(step, {name: board.picture(path)})
            self._board.flush()

    def event(self, step: int, kind: str, facts: Mapping[str, Any]) -> None:
        """Record that something happened at `step`: `kind` names it."""
        if self.writes:
            self._append({"step": step, "event": kind, **facts})

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        self._hold(record)

    def _hold(self, record: dict[str, Any]) -> None:
        self.held.append(record)
        self.held = thinned(self.held)

    def close(self) -> None:
        """Write what is buffered; what is written after this goes to another file of TensorBoard's."""
        if "_board" in vars(self):
            self._board.flush()
            self._board.close()
            del self._board


def records(workdir: epath.Path) -> list[dict[str, Any]]:
    """All records of the run in `workdir`, oldest first; a last line cut short by a crash is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
