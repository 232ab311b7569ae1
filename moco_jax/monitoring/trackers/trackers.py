"""The trackers of a run: all that is recorded is handed to each, and their news are printed.

Only the process that writes records has them, and only the journal's thread calls them. A run that
goes on continues the trackers' runs, by what is kept in `trackers.json` in its workdir.
"""

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from moco_jax.base import files, storage
from moco_jax.monitoring.trackers import items
from moco_jax.monitoring.trackers.outlet import Outlet, Patience

NAME = "trackers.json"
PROJECT = "moco_jax"
SECONDS, SECONDS_REMOTE = 1.0, 10.0  # between two writings of it, here and to a bucket


class Trackers:
    """Hands the records of one run to its trackers; nothing that they do ends or delays the run."""

    def __init__(
        self,
        names: Iterable[str],
        workdir: epath.Path,
        say: Callable[[str], None],
        patience: Patience | None = None,
    ):
        """Make ready for trackers with these `names`; `begin` starts them.

        Args:
            names: of the setting `track`.
            workdir: of the run.
            say: prints a line.
            patience: how long trackers are waited for; None for the usual.
        """
        self._names, self._workdir = tuple(names), workdir
        self._say, self._patience = say, patience or Patience()
        self._outlets: list[Outlet] = []
        self._states: dict[str, Any] = {}
        self._pause = SECONDS_REMOTE if files.is_remote(workdir) else SECONDS
        self._written = time.monotonic() - self._pause

    def begin(self, settings: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
        """Start them; they get the `settings` of the run, and what they lack of its `records`."""
        self._states = self._read()
        folder = None if files.is_remote(self._workdir) else str(self._workdir)
        about = {
            "project": PROJECT,
            "name": self._workdir.name,
            "folder": folder,
            "settings": dict(settings),
        }
        history = [items.of_record(record, is_live=False) for record in records]
        for name in self._names:
            known = self._states.get(name)
            self._outlets.append(Outlet(name, about, known, history, self._patience))

    def record(self, record: Mapping[str, Any]) -> None:
        """Hand over a record, as it is in `metrics.jsonl`."""
        self._put(items.of_record(record, is_live=True))

    def picture(self, step: int, name: str, path: epath.Path) -> None:
        """Hand over the PNG at `path`, as it is at `step`."""
        content = base64.b64encode(files.read(path)).decode()
        self._put(items.Item(items.PICTURE, step, {name: content}))

    def _put(self, item: items.Item) -> None:
        for outlet in self._outlets:
            outlet.put(item)
        self.idle()

    def idle(self) -> None:
        """Print what they have to say, and keep where they are; called now and then."""
        self.tell()
        self.save()

    def tell(self) -> None:
        """Print what they have to say."""
        for outlet in self._outlets:
            while outlet.news:
                self._say(outlet.news.popleft())

    def close(self, failed: bool) -> None:
        """Send what is left, for some seconds at most; `failed`: the run ended by an error."""
        deadline = time.monotonic() + self._patience.close
        for outlet in self._outlets:  # all close side by side
            outlet.finish(failed)
        for outlet in self._outlets:
            outlet.wait(deadline)
        self.save(at_once=True)
        self.tell()

    def save(self, at_once: bool = False) -> None:
        """Write `trackers.json`, if there is news and some time has passed, or `at_once`.

        Where that fails a run that goes on may send some records twice, and no more.
        """
        now = time.monotonic()
        if not at_once and now < self._written + self._pause:
            return
        states = self._states | {o.name: o.state for o in self._outlets if o.state}
        if states == self._states:
            return
        self._written = now
        try:
            files.write(self._workdir / NAME, json.dumps(states).encode())
        except OSError as error:
            if at_once:
                self._say(f"{self._workdir / NAME} cannot be written: {error.strerror or error}")
            return
        self._states = states

    def _read(self) -> dict[str, Any]:
        path = self._workdir / NAME
        try:
            if not path.exists():
                return {}
            found = json.loads(files.read(path))
            known = {name: state for name, state in dict(found).items() if _is_state(state)}
            whole = len(known) == len(found) and isinstance(found, dict)
        except storage.OF_STORES:
            raise
        except (ValueError, TypeError, OSError, RecursionError):
            known, whole = {}, False
        if not whole:
            self._say(f"{path} is damaged: trackers begin new runs, with all records of this one")
        return known


def _is_state(found: Any) -> bool:
    if not isinstance(found, dict) or found.keys() != {"run", "sent"}:
        return False
    sent = found["sent"]
    return isinstance(sent, dict) and all(type(step) is int for step in sent.values())
