"""One run to a workdir: no generated start, stop, kill or suspension lets two runs write.

Workdirs are folders of this machine and buckets.
"""

import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
from functools import partial

import pytest
from etils import epath

from moco_jax.base import storage
from moco_jax.base.errors import Busy, LockLost, UserError
from moco_jax.cli import command_line
from moco_jax.training import loop, messages
from moco_jax.workdir import lock as lock_lib
from moco_jax.workdir import lock_files, processes, run_lock
from moco_jax.workdir.lock import BEAT, LOCK, POLL, SIGN, STALE, Lock
from tests.training.test_loop import tiny
from tests.workdir.simulated_world import World

SEEDS = range(40)


class SlowFolder(lock_files.Folder):
    """A folder in which others may come between any two operations."""

    def __init__(self, folder, world):
        super().__init__(str(folder))
        self._world = world

    def read(self, name):
        self._world.interrupt()
        return super().read(name)

    def write(self, name, content):
        self._world.interrupt()
        super().write(name, content)

    def _make(self, name, content):
        self._world.interrupt()
        made = super()._make(name, content)
        self._world.interrupt()
        return made

    def remove(self, name):
        self._world.interrupt()
        super().remove(name)


class SlowBucket(lock_files.Bucket):
    """Objects in memory, of which each operation takes up to `latency` seconds."""

    objects: dict

    def __init__(self, objects, world, latency):
        super().__init__("gs://bucket/run")
        self.objects, self._world, self._latency = objects, world, latency

    def _wait(self):
        self._world.interrupt()
        self._world.sleep(self._world.random.uniform(0, self._latency))

    def read(self, name):
        self._wait()
        return self.objects.get(name)

    def write(self, name, content):
        self._wait()
        self.objects[name] = content
        self._wait()

    _put = write

    def _make(self, name, content):
        self._wait()
        made = self.objects.setdefault(name, content) is content
        self._wait()
        return made

    def remove(self, name):
        self._wait()
        self.objects.pop(name, None)


def on(host, pid, started=1):
    return processes.Process(host, f"boot of {host}", "pid:[1]", pid, started)


def a_run(world, store, host, pid, seconds):
    """A process that takes the lock, works for so many seconds, and gives it back."""

    def is_gone(process, here):
        return process.host == here.host and process.pid in world.dead

    def live():
        lock = Lock("w", store, on(host, pid), world.clock, world.sleep, is_gone)
        try:
            while not lock.attempt()[0]:
                world.sleep(POLL)
            lock.check()
            world.note("owner")
            end, beat = world.now + seconds, world.now + BEAT
            while world.now < end:
                world.sleep(world.random.uniform(0.1, 3))
                world.interrupt()
                if world.now >= beat:
                    beat = world.now + BEAT
                    lock.renew()
                lock.check()
                world.note("writes")
            world.note("ends")
            lock.release()
        except LockLost:
            world.note("stops")
        except Busy:
            world.note("refused")

    return live


def assert_one_at_a_time(world, runs):
    """Nobody writes after another has become the owner."""
    owner = None
    for when, name, what in world.events:
        if what == "owner":
            owner = name
        assert what != "writes" or name == owner, (when, name, owner)
    assert {
        name for _, name, what in world.events if what in ("ends", "stops", "refused", "killed")
    } == set(runs)


def several(world, store_of, hosts, starts):
    """Between two and five runs."""
    draw, runs = world.random, {}
    for pid in range(1, draw.randint(3, 6)):
        begin = starts()
        run = a_run(world, store_of(), draw.choice(hosts), pid, draw.uniform(5, 150))
        runs[pid] = (begin, run)
    return runs


def slow_store(kind, folder, objects, world):
    if kind == "folder":
        return SlowFolder(folder, world)
    return SlowBucket(objects, world, 0.5)


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_of_runs_that_start_at_one_instant_one_goes_on(kind, tmp_path):
    for seed in SEEDS:
        world, objects = World(seed), {}
        folder = tmp_path / str(seed)
        folder.mkdir()
        store_of = partial(slow_store, kind, folder, objects, world)
        runs = several(world, store_of, ["a", "b", "c"], lambda: 0.0)
        for name, (begin, _) in runs.items():  # that outlives every wait of the others
            runs[name] = (begin, a_run(world, store_of(), world.random.choice("abc"), name, 200))
        world.run(runs)
        assert_one_at_a_time(world, runs)
        ended = [what for _, _, what in world.events if what not in ("writes", "owner")]
        assert sorted(ended) == ["ends", *["refused"] * (len(runs) - 1)]
        assert not list(folder.iterdir())
        assert not objects


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_kills_and_suspensions_never_let_two_runs_write(kind, tmp_path):
    said = set()
    for seed in SEEDS:
        world, objects = World(seed, suspensions=(15, 35, 70, 200), kills=0.003), {}
        folder = tmp_path / str(seed)
        folder.mkdir()
        store_of = partial(slow_store, kind, folder, objects, world)
        runs = several(world, store_of, ["a", "b"], partial(world.random.uniform, 0, 250))
        world.run(runs)
        assert_one_at_a_time(world, runs)
        said |= {what for _, _, what in world.events}
    assert said == {"owner", "writes", "ends", "stops", "refused", "killed"}


def alone(store, host="a", gone=False, world=None):
    """A start beside nobody, and the seconds it waited; `gone`: whether the owner has ended."""
    world = world or World(0)
    waited, lock = [], Lock("w", store, on(host, 99), world.clock, world.sleep, lambda *_: gone)

    def live():
        began = world.now
        lines = []
        taken = False
        while not taken:
            taken, line = lock.attempt()
            lines += [line] if line else []
            if not taken:
                world.sleep(POLL)
        waited.extend([world.now - began, lines])

    world.run({99: (0.0, live)})
    return waited


def test_an_owner_of_this_machine_that_is_gone_is_replaced_at_once_and_another_after_a_minute(
    tmp_path,
):
    rng = random.Random(0)
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        left = Lock(
            "w", lock_files.Folder(str(folder)), on(rng.choice("abc"), rng.randint(1, 10**6))
        )
        assert left.attempt() == (True, "")
        gone = number % 2 == 0
        seconds, lines = alone(lock_files.Folder(str(folder)), gone=gone)
        assert (seconds == 0) if gone else (STALE <= seconds < STALE + 2 * POLL)
        assert len(lines) == (0 if gone else 1)
        assert sorted(p.name for p in folder.iterdir()) == [SIGN, LOCK]
        left.renew()
        with pytest.raises(LockLost, match=r"was taken over by process 99 on a since .*suspended"):
            left.check()


def damaged_locks():
    """Files that no run of this version writes."""
    rng, whole = random.Random(1), lock_lib.Owner("t", "now", on("a", 5)).to_bytes()
    facts = json.loads(whole)
    yield from (
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 4000,
        b"9" * 10**5,
        b"{}",
        b'"\\ud800"',
    )
    yield from (whole[: rng.randrange(len(whole) - 2)] for _ in range(6))
    yield from (rng.randbytes(50) for _ in range(4))
    for changes in (
        dict(lock=2),
        dict(lock="1"),
        dict(pid=-1),
        dict(pid=0),
        dict(pid=2**40),
        dict(pid="7"),
        dict(pid=True),
        dict(host=None),
        dict(started=1.5),
        dict(since=3),
        dict(token=None),
        dict(boot=[]),
    ):
        yield json.dumps(facts | changes).encode()
    yield json.dumps({k: v for k, v in facts.items() if k != "pid"}).encode()


def test_a_damaged_lock_is_waited_for_and_replaced_or_refused_in_one_line(tmp_path):
    members = list(damaged_locks())
    assert len(members) >= 20
    for number, content in enumerate(members):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / LOCK).write_bytes(content)
        store = lock_files.Folder(str(folder))
        seconds, (line,) = alone(store)
        assert STALE <= seconds < STALE + 2 * POLL
        assert "is damaged or of another version" in line
        assert "\n" not in line
        (folder / LOCK).write_bytes(content)
        late = Lock("w", store, on("b", 7), World(0).clock)
        assert late.attempt() == (False, "")
        (folder / SIGN).write_text("another")
        with pytest.raises(Busy, match="cannot read") as caught:
            late.attempt()
        assert "\n" not in str(caught.value)


def test_names_in_a_lock_are_printed_on_one_line(tmp_path):
    odd = processes.Process("a\nb\x1b[31m\u202e", "boot", "n", 3, 1)
    store = lock_files.Folder(str(tmp_path))
    assert Lock("w", store, odd).attempt()[0]
    late = Lock("w\n", store, on("b", 7))
    assert late.attempt() == (False, "")
    (tmp_path / SIGN).write_text("2")
    with pytest.raises(Busy) as caught:
        late.attempt()
    assert str(caught.value).startswith(
        r"workdir=w\n is in use by process 3 on a\nb\x1b[31m\u202e since 2"
    )


def test_an_owner_puts_back_a_lock_that_was_removed_or_damaged_and_yields_to_a_name(tmp_path):
    store, world = lock_files.Folder(str(tmp_path)), World(0)
    lock = Lock("w", store, on("a", 1), world.clock)
    assert lock.attempt()[0]
    own = (tmp_path / LOCK).read_bytes()
    for content in (None, b"", b"{", own[:20]):
        (tmp_path / LOCK).unlink() if content is None else (tmp_path / LOCK).write_bytes(content)
        world.now += BEAT
        lock.renew()
        lock.check()
        assert (tmp_path / LOCK).read_bytes() == own
    (tmp_path / LOCK).write_text('{"lock": 9, "token": "of a later version"}')
    lock.check()  # a sign of life was given less than `SAFE` seconds ago
    world.now += lock_lib.SAFE + 1
    for _ in range(2):
        with pytest.raises(LockLost, match="was taken over by another run"):
            lock.check()
    lock.release()
    assert "later version" in (tmp_path / LOCK).read_text()


def test_after_a_suspension_a_lock_that_is_gone_means_that_another_run_came_and_went(tmp_path):
    store, world = lock_files.Folder(str(tmp_path)), World(0)
    lock = Lock("w", store, on("a", 1), world.clock)
    assert lock.attempt()[0]
    (tmp_path / LOCK).unlink()
    world.now += lock_lib.SAFE + 1
    with pytest.raises(LockLost, match="was taken over by another run"):
        lock.check()
    assert not (tmp_path / LOCK).exists()


def test_a_workdir_that_is_gone_or_fails_ends_the_run_with_one_line(tmp_path, monkeypatch):
    folder, world = tmp_path / "w", World(0)
    folder.mkdir()
    store = lock_files.Folder(str(folder))
    lock = Lock("w", store, on("a", 1), world.clock)
    assert lock.attempt()[0]
    folder.rename(tmp_path / "moved")
    lock.check()
    world.now += lock_lib.SAFE + 1
    with pytest.raises(UserError, match="is gone; was it moved away"):
        lock.check()
    assert not folder.exists()
    (tmp_path / "moved").rename(folder)
    lock.check()

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "read", fail)
    world.now += lock_lib.SAFE + 1
    with pytest.raises(Busy, match=r"cannot be reached .Input/output error"):
        lock.check()


def test_what_a_killed_replacement_left_does_not_keep_others_out_for_ever(tmp_path):
    store = lock_files.Folder(str(tmp_path))
    assert Lock("w", store, on("a", 1)).attempt()[0]
    seen = store.read(LOCK)
    (tmp_path / store._right(LOCK, seen)).write_text("killed")
    seconds, _ = alone(store)
    assert 2 * STALE <= seconds < 2 * STALE + 3 * POLL
    assert sorted(p.name for p in tmp_path.iterdir()) == [SIGN, LOCK]


class Objects(lock_files.Bucket):
    """Objects in memory, at once."""

    def __init__(self, objects):
        super().__init__("gs://bucket/run")
        self.read, self.write = objects.get, objects.__setitem__
        self._put, self._make = self.write, lambda n, c: objects.setdefault(n, c) is c
        self.remove = lambda name: objects.pop(name, None)


def suspended(store, meanwhile):
    """`store`, where `meanwhile` happens after the last look at the lock, before it is replaced."""
    read, looks = store.read, itertools.count(1)

    def then_suspended(name):
        content = read(name)
        if name == LOCK and next(looks) == 2:
            meanwhile()
        return content

    store.read = then_suspended
    return store


@pytest.mark.parametrize("kind", ["folder", "bucket"])
@pytest.mark.parametrize("seed", range(10))
def test_who_was_suspended_while_taking_a_lock_lets_an_owner_notice_first(kind, seed, tmp_path):
    rng, world, objects = random.Random(seed), World(0), {}

    def sleep(seconds):
        world.now += seconds

    def lock_of(pid, around=lambda store: store):
        store = lock_files.Folder(str(tmp_path)) if kind == "folder" else Objects(objects)
        is_gone = lambda process, _: process.pid == 1  # noqa: E731
        return Lock("w", around(store), on("a", pid), world.clock, sleep, is_gone)

    left, owner = lock_of(1), lock_of(2)
    assert left.attempt()[0]

    def meanwhile():
        # It is taken for killed half-way, another run takes the lock, and it wakes up and writes.
        owner._store.unblock(LOCK, owner._store.read(LOCK))
        assert owner.attempt()[0]
        sleep(rng.uniform(lock_lib.SLOW, lock_lib.SAFE / 2))

    late = lock_of(3, lambda store: suspended(store, meanwhile))
    assert late.attempt()[0]
    late.check()
    with pytest.raises(LockLost, match="was taken over by process 3 on a"):
        owner.check()


def test_real_threads_that_take_a_folder_at_once(tmp_path):
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number % 2:  # an owner that has ended is replaced
            assert Lock("w", lock_files.Folder(str(folder)), on("a", 1)).attempt()[0]
        barrier, taken = threading.Barrier(4), []

        def start(pid, folder=folder, barrier=barrier, taken=taken):
            lock = Lock(
                "w", lock_files.Folder(str(folder)), on("a", pid), is_gone=lambda p, _: p.pid == 1
            )
            barrier.wait()
            with contextlib.suppress(Busy):
                for _ in range(5):
                    if lock.attempt()[0]:
                        taken.append(pid)
                        break

        threads = [threading.Thread(target=start, args=(pid,)) for pid in range(2, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1


# Processes


def test_whether_a_process_is_gone():
    here = processes.this()
    assert here.started > 0
    assert not processes.is_gone(here, here)
    with subprocess.Popen([sys.executable, "-ISc", "input()"], stdin=subprocess.PIPE) as other:
        _, _, started = processes._state(other.pid)
        living = processes.Process(here.host, here.boot, here.namespace, other.pid, started)
        assert not processes.is_gone(living, here)
        reused = processes.Process(here.host, here.boot, here.namespace, other.pid, started - 1)
        assert processes.is_gone(reused, here)
        other.kill()
        threading.Event().wait(0.1)
        assert processes.is_gone(living, here), "killed, and not collected yet"
    assert processes.is_gone(living, here)
    rng = random.Random(0)
    for _ in range(20):  # that cannot be known from here
        names = ["host", "boot", "namespace"]
        changed = {
            name: rng.choice(["", f"another {rng.random()}"])
            for name in rng.sample(names, rng.randint(1, 3))
        }
        elsewhere = processes.Process(**(vars(living) | changed))
        assert not processes.is_gone(elsewhere, here)
        assert not processes.is_gone(living, processes.Process(**(vars(here) | changed)))


# Around a run


@pytest.fixture
def quick(monkeypatch):
    """Signs of life a hundred times as fast, waits only ten times, as a busy machine is late."""
    for name, times in dict(BEAT=100, POLL=100, TELL=100, SAFE=10, STALE=10).items():
        monkeypatch.setattr(lock_lib, name, getattr(lock_lib, name) / times)


@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt, SystemExit])
def test_the_lock_and_folders_made_for_it_are_gone_at_every_end(error, tmp_path):
    place = epath.Path(tmp_path / "runs" / "new")

    def live():
        with run_lock.hold(place, print) as lock:
            assert {p.name for p in place.iterdir()} == {LOCK, SIGN}
            lock.check()
            if error:
                raise error

    if error:
        with pytest.raises(error):
            live()
    else:
        live()
    assert not list(tmp_path.iterdir())
    place.mkdir(parents=True)
    (place / "kept").write_text("")
    with run_lock.hold(place, print):
        pass
    assert [p.name for p in place.iterdir()] == ["kept"]


def test_a_second_run_is_refused_and_the_first_goes_on(tmp_path, quick):
    place = epath.Path(tmp_path)
    with run_lock.hold(place, print) as first:
        before = (tmp_path / LOCK).read_bytes()
        message = f"workdir={tmp_path} is in use by process .* on .* since .* UTC; wait until"
        with pytest.raises(Busy, match=message), run_lock.hold(place, print):
            raise AssertionError("two runs")
        first.renew()
        first.check()
        assert (tmp_path / LOCK).read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_held_too(monkeypatch, quick, network):
    place = "gs://bucket/held"
    network.busy = network.cut = 0.1
    with run_lock.hold(place, print) as lock:
        lock.check()
        assert storage.listing(place) == [SIGN, LOCK]
        with (
            pytest.raises(Busy, match="workdir=gs://bucket/held is in use"),
            run_lock.hold(place, print),
        ):
            raise AssertionError("two runs")
    assert not storage.exists(place)
    left = Lock(place, lock_files.store_in(place), on("elsewhere", 5))
    assert left.attempt()[0]
    monkeypatch.setattr(lock_lib, "STALE", 0.5)
    said = []
    with run_lock.hold(place, said.append):
        assert b'"pid": 5,' not in lock_files.store_in(place).read(LOCK)
    assert ["is held by process 5 on elsewhere" in line for line in said] == [True]


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / LOCK).mkdir(parents=True)
    for name in ("file", "file/below", "folder"):
        place = epath.Path(tmp_path / name)
        with (
            pytest.raises(
                UserError, match=r"cannot be written .*choose a folder that you may write to"
            ),
            run_lock.hold(place, print),
        ):
            raise AssertionError


@pytest.mark.parametrize(("kind", "error"), [("busy", Busy), ("refused", UserError)])
def test_other_processes_of_a_run_end_with_the_line_of_the_first(
    kind, error, tmp_path, monkeypatch
):
    monkeypatch.setattr(run_lock.jax, "process_index", lambda: 1)
    told = iter([["waiting", "wait"], ["waiting", ""], [kind, "the line"]])
    monkeypatch.setattr(run_lock.hosts, "broadcast", lambda value: next(told))
    said = []
    with (
        pytest.raises(error, match=r"^the line$"),
        run_lock.hold(epath.Path(tmp_path), said.append),
    ):
        raise AssertionError
    assert said == ["wait"]
    told = iter([["held", ""]])
    with run_lock.hold(epath.Path(tmp_path), said.append) as lock:
        lock.check()
    assert not list(tmp_path.iterdir())


def test_what_passes_by_itself_ends_with_a_status_on_which_schedulers_start_again(
    capsys, monkeypatch
):
    def end(status):
        raise SystemExit(f"at once {status}")

    def main(argv):
        raise argv[0]

    monkeypatch.setattr(command_line.os, "_exit", end)
    for error, status in ((UserError("u"), 2), (Busy("b"), 75), (LockLost("l"), "at once 75")):
        with pytest.raises(SystemExit) as caught:
            command_line.guarded(main, [error])
        assert caught.value.code == status
        assert capsys.readouterr().err == f"error: {error}\n"


def contents(folder):
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_whose_lock_was_taken_writes_nothing_more(tmp_path, monkeypatch):
    progress, found, locks = messages.progress, [], []
    monkeypatch.setattr(Lock, "beat_in_background", lambda lock: locks.append(lock))

    def take(epoch, *arguments):
        text = progress(epoch, *arguments)
        if epoch == 3 / 22:  # after the third step of 22 an epoch
            (tmp_path / LOCK).write_bytes(lock_lib.Owner("other", "now", on("b", 5)).to_bytes())
            locks[0]._safe_from -= lock_lib.SAFE + 1  # it was suspended
            found.append(contents(tmp_path))
        return text

    monkeypatch.setattr(messages, "progress", take)
    with pytest.raises(LockLost, match="was taken over by process 5 on b since now"):
        loop.train(tiny(stop_at_step=6, monitor_every=0), str(tmp_path), set())
    assert contents(tmp_path) == found[0]
    assert not (tmp_path / "checkpoints/6").exists()


def test_a_run_that_ends_or_is_refused_leaves_no_lock(tmp_path):
    place = tmp_path / "run"
    with pytest.raises(UserError):
        loop.train(tiny(batch_size=2048, queue_size=2048), str(place), set())
    assert not (place / LOCK).exists()
    loop.train(tiny(stop_at_step=1, monitor_every=0), str(place), set())
    assert (place / "metrics.jsonl").exists()
    assert not [p for p in place.iterdir() if "lock" in p.name]
