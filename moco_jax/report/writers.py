"""The numbers of a run for tools: JSON lines in `metrics.jsonl` and the same scalars for TensorBoard."""

import json
from collections.abc import Mapping
from typing import Any

from clu import metric_writers
from etils import epath

from moco_jax import files


class Writers:
    """Appends records of one run; a host that does not write keeps silent."""

    def __init__(self, workdir: epath.Path, writes: bool, resumed_step: int):
        """Open the files; records past `resumed_step`, of work that was lost, are taken out first."""
        self.path = workdir / "metrics.jsonl"
        self.writes = writes
        if not writes:
            return
        kept = [r for r in records(workdir) if r["step"] <= resumed_step]
        files.write(self.path, "".join(json.dumps(r) + "\n" for r in kept).encode())
        self.board = metric_writers.SummaryWriter(str(workdir / "tensorboard"))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record `numbers` at `step`."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        self.board.write_scalars(step, dict(numbers))

    def event(self, step: int, kind: str, facts: Mapping[str, Any]) -> None:
        """Record that something happened at `step`: `kind` names it."""
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "event": kind, **facts}) + "\n")

    def close(self) -> None:
        """Write what is buffered."""
        if self.writes:
            self.board.flush()
            self.board.close()


def records(workdir: epath.Path) -> list[dict[str, Any]]:
    """All records of the run in `workdir`, oldest first; a last line cut short by a crash is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
