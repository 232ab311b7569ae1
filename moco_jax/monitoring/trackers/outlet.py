"""One tracker of a run: what it is to get waits in line, and a thread of its own sends it.

Whatever fails there ends that tracker alone, with one line that says why.
"""

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from moco_jax.monitoring.trackers.items import Item, Marks
from moco_jax.monitoring.trackers.pipe import Child, Failed

ROOM = 20_000  # items that may wait for a tracker that is slow, or hangs for some seconds
BATCH = 500  # items of one message
LAST_SECONDS = 70.0  # in which a process ends that has nothing left to do, or failed


@dataclasses.dataclass(frozen=True)
class Patience:
    """How many seconds a tracker has: to begin, for each answer, and to close.

    Attributes:
        begin: packages are loaded, and servers asked for the run.
        answer: to a message.
        close: until all is sent; the run waits for this.
    """

    begin: float = 150.0
    answer: float = 90.0
    close: float = 30.0


class Outlet:
    """Sends items to the tracker `name`; no call of it waits, save `wait`.

    Attributes:
        name: of the tracker.
        news: lines for the console, which whoever prints there takes out.
        state: 'run' and 'sent' of the tracker's run, for a run that goes on; None before it began.
    """

    def __init__(
        self,
        name: str,
        about: Mapping[str, Any],
        state: Mapping[str, Any] | None,
        history: Iterable[Item],
        patience: Patience,
    ):
        """Start the tracker.

        Args:
            name: of the tracker.
            about: the run, as of `child.Run.begin`.
            state: of an earlier part of the run; None where there was none.
            history: items of that part; what the tracker lacks of them it is sent.
            patience: how long it is waited for.
        """
        self.name, self.news = name, deque[str]()
        self.state = state
        self._about, self._history, self._patience = about, history, patience
        self._failed = False
        self._items: queue.Queue[Item | None] = queue.Queue(ROOM)
        self._child: Child | None = None
        self._lock, self._off = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, item: Item | None) -> None:
        """Add `item` to those that wait; None behind the last."""
        if self._off:
            return
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._switch_off(f"it is {ROOM:,} records behind")

    def finish(self, failed: bool) -> None:
        """Let the tracker close its run behind what waits; `failed`: ours ended by an error."""
        self._failed = failed
        self.put(None)

    def wait(self, deadline: float) -> None:
        """Wait until it has closed; at `deadline`, of the monotonic clock, it is ended."""
        if self._off:
            return
        self._thread.join(max(deadline - time.monotonic(), 0))
        if self._thread.is_alive():
            self._switch_off(f"it did not close within {self._patience.close:g} s")

    def _switch_off(self, reason: str, kill: bool = True) -> None:
        with self._lock:
            if self._off:
                return
            self._off = True
        self.news.append(
            f"{self.name} is off for the rest of this run: {reason}; the run goes on, and what is "
            "missing there is sent when it goes on from a checkpoint"
        )
        if kill and self._child is not None:
            self._child.kill()

    def _run(self) -> None:
        try:
            child = Child(self.name)
            with self._lock:
                self._child, is_off = child, self._off
            if is_off:
                child.kill()
            try:
                self._serve(child)
            except Failed as error:
                self._switch_off(str(error), kill=not error.ends)
            child.end(LAST_SECONDS)
        except Exception as error:  # a tracker is not worth a run
            self._switch_off(repr(error))

    def _serve(self, child: Child) -> None:
        state, patience = self.state or {}, self._patience
        about = {**self._about, "run": state.get("run")}
        begun = child.ask({"do": "begin", "about": about}, patience.begin)
        known = dict(state.get("sent", {})) if begun["went_on"] else {}
        for name, step in begun["sent"].items():
            known[name] = max(step, known.get(name, -1))
        marks = Marks(known)
        self.news.append(f"{self.name}: {begun['where']}")
        self._keep(begun["run"], marks)
        waiting, last = list(self._history), False
        self._history = ()
        while True:
            for first in range(0, len(waiting), BATCH):
                self._send(child, marks, waiting[first : first + BATCH])
                self._keep(begun["run"], marks)
            if last:
                break
            waiting, last = self._take()
        # `wait` says when it is enough.
        child.ask({"do": "close", "failed": self._failed}, 2 * patience.close)

    def _take(self) -> tuple[list[Item], bool]:
        """Wait for an item, and return all that are there; whether no others will come."""
        taken = [self._items.get()]
        while taken[-1] is not None and len(taken) < BATCH and not self._items.empty():
            taken.append(self._items.get())
        return [item for item in taken if item is not None], taken[-1] is None

    def _send(self, child: Child, marks: Marks, waiting: list[Item]) -> None:
        new = [item for item in map(marks.take, waiting) if item is not None]
        if new:
            rows = [(item.kind, item.step, item.content) for item in new]
            child.ask({"do": "write", "items": rows}, self._patience.answer)

    def _keep(self, run: Any, marks: Marks) -> None:
        self.state = {"run": run, "sent": dict(marks.steps)}
