"""Records of a run: JSON lines in `metrics.jsonl`, and the same for TensorBoard.

In a bucket the lines lie in the segments of `record_files.py`; here they are joined.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from moco_jax.base import files, storage
from moco_jax.base.errors import UserError, full_disk
from moco_jax.monitoring import record_files, tensorboard_files
from moco_jax.monitoring.record_files import NAME
from moco_jax.monitoring.trackers import trackers

# What a run leaves beside its checkpoints, and a run that begins anew in its workdir would write
# over.
LEFT = (
    NAME,
    record_files.FOLDER,
    "neighbours.png",
    "neighbours.json",
    "views.png",
    tensorboard_files.FOLDER,
    trackers.NAME,
)
EARLIER = "earlier"  # holds it then, in folders numbered from 1
KEPT = 4000  # records of a run that are kept in memory, about 4 MB


def thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop every other loss of the older half of `records`, if there are more than `KEPT`."""
    if len(records) <= KEPT:
        return records
    older, newer = records[: KEPT // 2], records[KEPT // 2 :]
    losses = [r for r in older if "loss" in r]
    left_out = {id(r) for r in losses[1::2]}
    return [r for r in older if id(r) not in left_out] + newer


class Writers:
    """Appends the records of one run; on hosts that do not write it does nothing.

    Attributes:
        records: those so far, in order, older ones thinned out.
        remarks: a line on each thing that was set aside, and why, and on packages that are missing.
        for_tensorboard: whether TensorBoard's files are written too.
        trackers: get the records too, once they are set; None without any.
    """

    def __init__(self, workdir: epath.Path, writes: bool, resumed_step: int):
        """Open the files; first set aside damaged records and those past `resumed_step`.

        Records past it are of work that was lost.

        Raises:
            UserError: they cannot be read or written.
        """
        self.path, self.workdir = workdir / NAME, workdir
        self.writes = writes
        self.records: list[dict[str, Any]] = []
        self.remarks: list[str] = []
        self.for_tensorboard = False
        self.trackers: trackers.Trackers | None = None
        self._lines: record_files.Lines | None = None
        self._outbox: tensorboard_files.Outbox | None = None
        if not writes:
            return
        with _told(self.path):
            if not resumed_step:
                self._set_all_aside()
            kept = self._take_out(resumed_step)
        for record in kept:
            self._hold(record)
        lacking = tensorboard_files.remarks()
        self.remarks += lacking
        self.for_tensorboard = not lacking

    def _set_all_aside(self) -> None:
        """Move what an earlier run left, as this one begins anew."""
        left = [self.workdir / name for name in LEFT if (self.workdir / name).exists()]
        if not left:
            return
        place = _free(self.workdir)
        for path in left:
            files.move(path, place / path.name)
        self.remarks.append(
            f"this run begins at step 0: the records that were there are in {place}"
        )

    def _take_out(self, step: int) -> list[dict[str, Any]]:
        """Leave records up to `step` in their files, and return them; move others away."""
        parts = _parts(self.workdir)
        kept = [[r for r in part.records if r["step"] <= step] for part in parts]
        taken: list[bytes] = []
        for part in parts:
            taken += part.damaged.values()
        for part in parts:
            taken += [json.dumps(r).encode() for r in part.records if r["step"] > step]
        if taken:
            place = _free(self.workdir) / NAME
            files.write(place, b"".join(line + b"\n" for line in taken))
            self.remarks += [f"{p.remark}; it is in {place} now" for p in parts if p.damaged]
        whole = [len(p.damaged) + len(p.records) for p in parts]
        self._lines = record_files.renew(
            self.workdir,
            [(p.path, k, len(k) < n) for p, k, n in zip(parts, kept, whole, strict=True)],
        )
        return [record for records in kept for record in records]

    @functools.cached_property
    def _tensorboard(self) -> Any:
        """The only writer for TensorBoard.

        TensorBoard reads nothing more from a file once there is a younger one.
        """
        if files.is_remote(self.workdir):
            self._outbox = tensorboard_files.Outbox(self.workdir)
            return tensorboard_files.writer(self._outbox.folder)
        return tensorboard_files.writer(os.fspath(self.workdir / tensorboard_files.FOLDER))

    def _close_tensorboard(self) -> None:
        if "_tensorboard" in vars(self):
            self._tensorboard.flush()
            self._tensorboard.close()
            del self._tensorboard
            if self._outbox is not None:
                self._outbox.close()
                self._outbox = None

    def _send(self, at_once: bool = False) -> None:
        """Send to a bucket what was written for TensorBoard, if it is time, or `at_once`."""
        if self._outbox is None or not (at_once or self._outbox.due):
            return
        self._tensorboard.flush()
        if self._outbox.send():
            self._close_tensorboard()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Record `numbers` at `step`."""
        self._append({"step": step, **numbers})
        if self.for_tensorboard:
            tensorboard_files.write_scalars(self._tensorboard, step, numbers)
            self._send()

    def settings(self, config: Mapping[str, Any]) -> None:
        """Give TensorBoard the settings of the run."""
        if self.for_tensorboard:
            self._tensorboard.write_hparams(tensorboard_files.settings(config))

    def picture(self, step: int, name: str, path: epath.Path) -> None:
        """Give TensorBoard and trackers the PNG at `path` as it is at `step`, without delay."""
        if self.trackers is not None:
            self.trackers.picture(step, name, path)
        if self.for_tensorboard:
            self._tensorboard.write_images(step, {name: tensorboard_files.picture(path)})
            self._tensorboard.flush()
            self._send(at_once=True)

    def event(self, step: int, kind: str, facts: Mapping[str, Any]) -> None:
        """Record that something happened at `step`: `kind` names it."""
        self._append({"step": step, "event": kind, **facts})

    def _append(self, record: dict[str, Any]) -> None:
        if self._lines is None:
            return
        with _told(self.path):
            self._lines.append(json.dumps(record).encode() + b"\n")
        self._hold(record)
        if self.trackers is not None:
            self.trackers.record(record)

    def _hold(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self.records = thinned(self.records)

    def flush(self) -> None:
        """Write the records that are held back."""
        if self._lines is not None:
            with _told(self.path):
                self._lines.flush()

    def idle(self) -> None:
        """Write what is held back for long enough; called now and then while nothing is told."""
        if self._lines is not None:
            with _told(self.path):
                self._lines.idle()
                self._send()
        if self.trackers is not None:
            self.trackers.idle()

    def close(self) -> None:
        """Write what is buffered; later records go to another file of TensorBoard's."""
        self.flush()
        self._close_tensorboard()


@contextlib.contextmanager
def _told(path: epath.Path) -> Iterator[None]:
    """Turn an error of the file system about `path` into a UserError."""
    try:
        yield
    except storage.OF_STORES:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise full_disk(path.parent) from error
        raise UserError(
            f"{path} cannot be read and written ({error.strerror or error}); see that "
            f"workdir={path.parent} is there and is yours, and give the same command: it goes on "
            "from the last whole checkpoint"
        ) from error


def _free(workdir: epath.Path) -> epath.Path:
    """Make a new folder for what is set aside."""
    folder = workdir / EARLIER
    taken = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.exists() else []
    place = folder / str(max(taken, default=0) + 1)
    place.mkdir(parents=True)
    return place


@dataclasses.dataclass(frozen=True)
class Read:
    """The content of the files of records.

    Attributes:
        records: oldest first.
        damaged: number of the line, from 1 in the first file on -> its bytes, of lines that are no
            record of a run.
        remarks: a line on them for a person; none where there are none.
        only_cut: whether the last line is all that is damaged, by having no end.
    """

    records: list[dict[str, Any]]
    damaged: dict[int, bytes]
    remarks: list[str]
    only_cut: bool = False


def read(workdir: epath.Path) -> Read:
    """Read the records of the run in `workdir`, and what is damaged in their files.

    Raises:
        UserError: one of the files cannot be read.
    """
    with _told(workdir / NAME):
        parts = _parts(workdir)
    damaged: dict[int, bytes] = {}
    before = 0
    for part in parts:
        damaged |= {before + number: line for number, line in part.damaged.items()}
        before += part.lines
    only_cut = bool(parts) and parts[-1].is_cut and [*damaged] == [before]
    remarks = [part.remark for part in parts if part.damaged]
    return Read([r for part in parts for r in part.records], damaged, remarks, only_cut)


@dataclasses.dataclass(frozen=True)
class _Part:
    """The content of one file of records: sound ones, damaged lines by number, lines in all."""

    path: epath.Path
    records: list[dict[str, Any]]
    damaged: dict[int, bytes]
    lines: int
    is_cut: bool

    @property
    def remark(self) -> str:
        some = ", ".join(map(str, [*self.damaged][:5])) + (", ..." if len(self.damaged) > 5 else "")
        return f"{self.path}: line {some} is damaged and left out"


def _parts(workdir: epath.Path) -> list[_Part]:
    return [_part(path, content) for path, content in record_files.read(workdir)]


def _part(path: epath.Path, content: bytes) -> _Part:
    lines = content.split(b"\n")
    parsed = {n: record_of(line) for n, line in enumerate(lines, 1) if line}
    damaged = {n: lines[n - 1] for n, found in parsed.items() if found is None}
    # The last line has no end where the run was killed, or while it writes: whole or not, it is not
    # counted on.
    is_cut = bool(lines[-1])
    if is_cut:
        parsed[len(lines)], damaged[len(lines)] = None, lines[-1]
    records = [found for found in parsed.values() if found is not None]
    return _Part(path, records, damaged, len(lines) - (not is_cut), is_cut)


def records(workdir: epath.Path) -> list[dict[str, Any]]:
    """Read the sound records of the run in `workdir`, oldest first."""
    return read(workdir).records


# What those who read an event rely on: name -> type.
EVENTS: dict[str, dict[str, type]] = {
    "start": {"examples": int, "steps_per_epoch": int, "schedule_shift": int},
    "finding": {"name": str, "severity": str},
}


def record_of(line: bytes) -> dict[str, Any] | None:
    """Parse a record: an object with a step, of an event or of numbers alone.

    Returns:
        None where `line` is no record.
    """
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not _is_whole(found.get("step")) or found["step"] < 0:
        return None
    if "event" not in found:
        return found if all(map(_is_number, found.values())) else None
    needed = EVENTS.get(found["event"], {}) if isinstance(found["event"], str) else None
    if needed is None or any(type(found.get(name)) is not kind for name, kind in needed.items()):
        return None
    return found


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return type(value) is float or _is_whole(value)
