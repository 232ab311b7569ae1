"""What a start trusts of a workdir: damage is named; a refusal changes nothing and comes again."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax import config as config_lib
from moco_jax.base import digests, files, storage
from moco_jax.base.errors import LockLost, UserError
from moco_jax.training import checkpoint, orbax_logging
from moco_jax.weights import workdir as weights_workdir
from moco_jax.workdir import integrity, recipe_check
from tests.config.test_config import load
from tests.method.test_finite import B, begin, method_of, optimizers

SETTINGS = json.loads(json.dumps(load("digits").to_dict()))
STEPS = (20, 30, 40)


def save(place, step, **changes):
    """What a run leaves of a checkpoint, its arrays aside."""
    folder = epath.Path(place) / "checkpoints" / str(step)
    about = {"format_version": 2, "step": step, "config": SETTINGS} | changes
    files.write(folder / "about/metadata", json.dumps(about).encode())
    for name in ("state/d/array", "state/tree", "marker"):
        files.write(folder / name, f"{name} at {step}".encode() * 9)
    digests.write(folder, epath.Path(place) / "digests" / str(step))


@pytest.fixture
def place(tmp_path):
    for step in STEPS:
        save(tmp_path / "run", step)
    (tmp_path / "run/config.json").write_text(json.dumps(SETTINGS))
    return epath.Path(tmp_path / "run")


def tree(place):
    found = {}
    for folder, folders, names in os.walk(place):
        for name in [*folders, *names]:
            path = os.path.join(folder, name)
            plain = os.path.isfile(path) and not os.path.islink(path)
            found[path] = pathlib.Path(path).read_bytes() if plain else os.lstat(path).st_ino
    return found


NAMES = [
    "040",
    "0",
    "00",
    "+7",
    "-3",
    " 8",
    "8 ",
    "1e2",
    "4_0",
    "4.0",
    "0x28",
    "²",
    "³¹",
    "٣",
    "४०",
    "①",
    "Ⅳ",
    "abc",
    "40.orbax-checkpoint-tmp",
    "40~",
    "é",
    "9" * 25,
    "\udcff",
    "a\nb",
    "__MACOSX",
]


@pytest.mark.parametrize("folder", [True, False])
def test_stray_names_are_no_steps(place, folder):
    """Twenty-five names, as folders and as files."""
    for name in NAMES:
        path = os.path.join(place, "checkpoints", name)
        os.mkdir(path) if folder else open(path, "w").close()
    before = tree(place)
    assert [s for s in integrity.steps(place) if s] == [40, 30, 20]
    shutil.rmtree(place / "checkpoints/0") if folder else os.remove(place / "checkpoints/0")
    before = tree(place)
    assert integrity.find(place) == (40, [integrity.Examined(40, [], True)])
    assert tree(place) == before


def damage(place, kind, rng):
    """Do to the checkpoint of step 40 what `kind` says."""
    folder, record = place / "checkpoints/40", place / "digests/40"
    names = sorted(p for p in digests._listing(folder))
    path = folder / names[rng.integers(len(names))]
    content = path.read_bytes()
    if kind == "a link to nothing":
        path.unlink()
        os.symlink("nowhere", path)
    elif kind == "a link to itself":
        path.unlink()
        os.symlink(path.name, path)
    elif kind == "a pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "one bit":
        at = int(rng.integers(len(content)))
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    elif kind == "renamed":
        folder.rename(place / "checkpoints/50")
    elif kind == "renamed with its digests":
        folder.rename(place / "checkpoints/50")
        record.rename(place / "digests/50")
    elif kind == "a file in its place":
        folder.rmtree()
        folder.write_bytes(b"")
    elif kind == "no about":
        (folder / "about").rmtree()
        digests.write(folder, record)
    elif kind == "about of no settings":
        content = rng.choice([b"[]", b"null", b"\xff", b"{}", b"[" * 9999])
        (folder / "about/metadata").write_bytes(content)
        digests.write(folder, record)
    elif kind == "digests are a pipe":
        record.unlink()
        os.mkfifo(record)
    elif kind == "digests are a folder":
        record.unlink()
        record.mkdir()
    elif kind == "digests of a list":
        body = b"[1]"
        record.write_bytes(digests.hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    elif kind == "a later step without content":
        (place / "checkpoints/60").mkdir()
        path.unlink()


KINDS = [
    "a link to nothing",
    "a link to itself",
    "a pipe",
    "a folder",
    "gone",
    "cut",
    "one bit",
    "renamed",
    "a file in its place",
    "renamed with its digests",
    "no about",
    "about of no settings",
    "digests are a pipe",
    "digests are a folder",
    "digests of a list",
    "a later step without content",
]


def test_parts_of_checkpoints_in_a_bucket_are_removed_and_damaged_ones_moved(network):
    """A save or a removal that was killed leaves there what Orbax has not marked as whole."""
    place = files.absolute("gs://bucket/parts")
    for step in (3, 6, 9):
        storage.write(f"{place}/checkpoints/{step}/state/array", b"content")
    storage.write(f"{place}/checkpoints/6/commit_success.txt", b"")
    digests.write(place / "checkpoints/6", place / "digests/6")
    storage.write(f"{place}/checkpoints/6/state/array", b"changed")
    remarks = integrity.set_aside(place, integrity.examine(place))
    part, moved, _ = remarks
    assert part.startswith("checkpoint 9 is damaged (it was not finished); the part")
    assert "checkpoint 6 is damaged (gs://bucket/parts/checkpoints/6/state/array has" in moved
    found = re.sub(r"6_\d+", "6_TIME", " ".join(storage.find(str(place))))
    assert found == "damaged/6_TIME/commit_success.txt damaged/6_TIME/state/array digests/6"


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_wrong_with_the_newest_the_one_before_it_is_found(place, kind):
    """Sixteen kinds, each at three places that are drawn: forty-eight members."""
    kept = place.parent / "kept"
    shutil.copytree(place, kept)
    for seed in range(3):
        damage(place, kind, np.random.default_rng(seed))
        before = tree(place)
        step, examined = integrity.find(place)
        assert step == 30
        assert [c.step for c in examined if c.wrong], kind
        assert all(len(str(c).splitlines()) == 1 for c in examined)
        assert tree(place) == before
        said = integrity.set_aside(place, examined)
        assert len(said) == sum(bool(c.wrong) for c in examined)
        assert integrity.find(place) == (30, [integrity.Examined(30, [], True)])
        shutil.rmtree(place)
        shutil.copytree(kept, place)


def test_one_process_reads_a_checkpoint_and_tells_the_others(place, monkeypatch):
    told = []

    def broadcast(value):
        told.append(value)
        return json.loads(json.dumps(told[0]))

    monkeypatch.setattr(weights_workdir.hosts, "broadcast", broadcast)
    (place / "checkpoints/40/marker").write_bytes(b"")
    assert weights_workdir.sound_step(str(place)) == 30
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(integrity, "examine", None)
        assert weights_workdir.sound_step(str(place)) == 30
    (place / "checkpoints").rmtree()
    del told[:]
    for _ in range(2):
        with pytest.raises(UserError, match=r"run has no sound checkpoint$"):
            weights_workdir.sound_step(str(place))
        monkeypatch.setattr(jax, "process_index", lambda: 1)


def lose(place, seed):
    """Leave no checkpoint that a run can go on from, in a way that `seed` draws."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        (place / "digests").rmtree()
    elif seed % 3 == 1:
        for step in STEPS:
            (place / "digests" / str(step)).unlink()
    else:
        for step in STEPS:
            (place / "checkpoints" / str(step) / "marker").write_bytes(rng.bytes(4))
        if rng.random() < 0.5:
            (place / "digests/40").unlink()
    for step in STEPS[: rng.integers(0, 2)]:
        (place / "checkpoints" / str(step)).rmtree()


@pytest.mark.parametrize("seed", range(24))
def test_a_refusal_comes_again_and_nothing_is_moved(place, seed):
    lose(place, seed)
    before, said = tree(place), []
    for _ in range(2):
        with pytest.raises(UserError) as raised:
            integrity.set_damaged_aside(place)
        said.append(str(raised.value))
        assert tree(place) == before
    assert said[0] == said[1]
    assert len(said[0].splitlines()) == 1
    assert f"{place}/digests" in said[0] or "has no sound checkpoint left" in said[0]
    assert "give another workdir" in said[0]


def test_a_run_that_was_ended_while_it_saved_its_first_checkpoint_begins_anew(place):
    for step in STEPS[1:]:
        (place / "checkpoints" / str(step)).rmtree()
    for record in (place / "digests").iterdir():
        record.unlink()
    assert len(integrity.set_damaged_aside(place)) == 1
    assert integrity.find(place) == (None, [])


@pytest.mark.parametrize("name", list(config_lib.RECIPE))
def test_a_recipe_is_held_against_the_checkpoint_and_config_json(place, name):
    """Every recipe setting, wherever the other value stands."""
    value = SETTINGS[name]
    if isinstance(value, bool):
        other = not value
    elif isinstance(value, list):
        other = [*value, 7]
    else:
        other = value + 1 if isinstance(value, int | float) else f"{value}_other"
    changed = SETTINGS | {name: other}
    path = place / "config.json"
    assert recipe_check.recipe_changes(place, SETTINGS, set(), 40) == {}
    for content in (json.dumps(SETTINGS), None, "null", json.dumps(changed)):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        before = tree(place)
        for _ in range(2):
            with pytest.raises(UserError, match=f"--allow_change={name}"):
                recipe_check.claim_workdir(place, changed, set(), 40)
            assert tree(place) == before
        assert set(recipe_check.recipe_changes(place, changed, {name}, 40)) == {name}
    with pytest.raises(
        UserError, match=f"{name}: .*--allow_change={name}"
    ):  # config.json alone differs
        recipe_check.recipe_changes(place, SETTINGS, set(), 40)


ODD = [
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"true",
    b"",
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"lr": 1',
    b"NaN",
    b"[{}]",
    b"\0" * 9,
    b"{} {}",
    b"{'lr': 1}",
    b"\xef\xbb\xbf{}",
    b'"',
    b"-",
    b"1e999",
    b"[null]",
    b'{"a": "\xe9"}',
]


@pytest.mark.parametrize("content", ODD, ids=repr)
def test_a_config_json_that_holds_no_settings(place, content):
    """Twenty-one contents are mended from a checkpoint, or refused in one line if there is none."""
    path = place / "config.json"
    path.write_bytes(content)
    (line,) = recipe_check.mended(place, 40)
    assert len(line.splitlines()) == 1
    assert "config.json is damaged" in line
    assert recipe_check.settings(place).lr == SETTINGS["lr"]
    assert recipe_check.claim_workdir(place, SETTINGS, set(), 40) == {}
    assert json.loads(path.read_text()) == SETTINGS
    assert recipe_check.mended(place, 40) == []
    (place / "checkpoints").rmtree()
    path.write_bytes(content)
    for look in (
        lambda: recipe_check.settings(place),
        lambda: recipe_check.claim_workdir(place, SETTINGS, set()),
    ):
        with pytest.raises(UserError, match=r"config.json is damaged") as raised:
            look()
        assert len(str(raised.value).splitlines()) == 1
    assert path.read_bytes() == content


def test_a_value_of_another_type_in_config_json_is_named(place):
    (place / "config.json").write_text(json.dumps(SETTINGS | {"lr": "fast"}))
    with pytest.raises(UserError, match="is damaged: lr='fast' must be a number"):
        recipe_check.settings(place)


ERRORS = [
    OSError(5, "Input/output error"),
    OSError(30, "Read-only file system"),
    OSError(28, "No space left on device"),
    OSError(2, "No such file or directory"),
    PermissionError(13, "Permission denied"),
    ValueError("NOT_FOUND: tensorstore"),
    RuntimeError("two\nlines"),
    KeyError("name"),
    TimeoutError(),
    MemoryError(),
    AssertionError("", 3),
]


def save_and_wait(saving, state):
    saving.save(6, state, {"batch_size": B}, {})
    saving.good()


@pytest.mark.parametrize("where", ["manager", "digests"])
def test_a_save_that_fails_is_one_line_and_loses_nothing(tmp_path, monkeypatch, where, capfd):
    """Eleven errors at two moments of a save."""
    state, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    place = epath.Path(tmp_path)
    saving = checkpoint.Checkpoints(place, 2)
    for step in (2, 4):
        saving.save(step, state, {"batch_size": B}, {})
    assert "Checkpoint 4 is good" in saving.good()
    for error in ERRORS:
        with monkeypatch.context() as patch:

            def fail(*_, error=error, **__):
                raise error

            if where == "manager":
                patch.setattr(saving.manager, "save", fail)
            else:
                patch.setattr(checkpoint.digests, "write", fail)
            with pytest.raises(
                UserError, match=r"workdir=.*(could not be saved|full disk)"
            ) as raised:
                save_and_wait(saving, state)
            assert len(str(raised.value).splitlines()) == 1
        assert "Checkpoint 4 is good" in saving.good()
        if where == "digests":
            shutil.rmtree(place / "checkpoints/6")
            saving.manager.reload()
    saving.close()
    assert {2, 4} >= set(integrity.steps(place)) >= {4}
    assert integrity.find(place)[0] == 4
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_checkpoint_does_not_count_before_the_records_up_to_it_are_written(tmp_path):
    state, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    saving, place = checkpoint.Checkpoints(epath.Path(tmp_path), 2), epath.Path(tmp_path)
    saving.save(2, state, SETTINGS | {"batch_size": B}, {}, lambda: None)
    assert "Checkpoint 2 is good" in saving.good()
    found = []

    def recorded():
        found.append((place / "digests/4").exists())
        raise LockLost("another run has the workdir")

    saving.save(4, state, SETTINGS | {"batch_size": B}, {}, recorded)
    with pytest.raises(LockLost, match="another run"):
        saving.good()
    saving.close()
    assert found == [False]
    assert not (place / "digests/4").exists()
    assert "Checkpoint 2 is good" in saving.good()


@pytest.mark.parametrize("other", [0, 3, 5, 400])
def test_a_state_of_another_step_than_its_checkpoint_is_passed_over(tmp_path, other):
    state, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    saving = checkpoint.Checkpoints(epath.Path(tmp_path), 2)
    for step, inside in ((2, 2), (4, other)):
        kept = dataclasses.replace(state, step=jnp.asarray(inside, state.step.dtype))
        saving.save(step, kept, SETTINGS | {"batch_size": B}, {})
        saving.good()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    step, found, (said,) = saving.go_on(4, [], like, B)
    saving.close()
    assert (step, int(found.step), integrity.find(epath.Path(tmp_path))[0]) == (2, 2, 2)
    assert f"checkpoint 4 is damaged (it was saved at step {other}); moved to" in said


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, number):
    state, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    saving = checkpoint.Checkpoints(epath.Path(tmp_path), 2)
    for step in (2, 4):
        saving.save(step, state, {"batch_size": B}, {})
    leaves, tree = jax.tree.flatten(state.params)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(number)
    bad = dataclasses.replace(state, params=jax.tree.unflatten(tree, leaves))
    for _ in range(2):
        with pytest.raises(UserError, match=r"step 6: .* not finite .* Checkpoint 4 is good"):
            saving.save(6, bad, {"batch_size": B}, {})
    saving.close()
    assert integrity.steps(epath.Path(tmp_path)) == [4, 2]


def test_whoever_saves_keeps_orbaxs_lines_back(tmp_path):
    log = logging.getLogger("absl")
    for known in [f for f in log.filters if isinstance(f, orbax_logging._Filter)]:
        log.removeFilter(known)
    checkpoint.Checkpoints(epath.Path(tmp_path), 2).close()
    assert any(isinstance(known, orbax_logging._Filter) for known in log.filters)


@pytest.mark.parametrize("kind", ["moved", "another", "no checkpoints", "digests"])
def test_a_workdir_that_is_taken_away_is_one_line(tmp_path, kind, capfd):
    state, _ = begin(method_of("queue"), optimizers.sgd(0.9, 0.0))
    place = tmp_path / "run"
    place.mkdir()
    saving = checkpoint.Checkpoints(epath.Path(place), 2)
    saving.save(2, state, {"batch_size": B}, {})
    saving.good()
    if kind in ("moved", "another"):
        place.rename(tmp_path / "away")
    if kind == "another":
        place.mkdir()
    if kind in ("no checkpoints", "digests"):
        gone = place / ("digests" if kind == "digests" else "checkpoints")
        shutil.rmtree(gone)
        gone.write_text("")
    with pytest.raises(
        UserError, match=r"workdir=.*(was moved, removed|could not be saved)"
    ) as raised:
        save_and_wait(saving, state)
    with contextlib.suppress(UserError):  # it may be told once more
        saving.close()
    assert len(str(raised.value).splitlines()) == 1
    assert "Traceback" not in "".join(capfd.readouterr())
    if kind in ("moved", "another"):
        assert integrity.find(epath.Path(tmp_path / "away"))[0] == 2
        assert not (place / "checkpoints").exists()


def test_lines_of_orbax_alone_are_kept_back():
    orbax_logging.silence()
    orbax_logging.silence()
    log = logging.getLogger("absl")
    assert sum(isinstance(f, orbax_logging._Filter) for f in log.filters) == 1

    def passes(path, level, told):
        record = logging.LogRecord("absl", level, path, 1, "said", (), told)
        return all(f.filter(record) for f in log.filters)

    orbax = "/lib/site-packages/orbax/checkpoint/x.py"
    error = (ValueError, ValueError(), None)
    assert not passes(orbax, logging.ERROR, error)
    assert not passes(orbax, logging.WARNING, None)
    assert passes(orbax, logging.ERROR, None)
    assert passes("/lib/site-packages/clu/x.py", logging.ERROR, error)


def test_where_config_json_and_checkpoint_disagree_both_are_named(place):
    (place / "config.json").write_text(json.dumps(SETTINGS | {"temperature": 0.9}))
    own = SETTINGS["temperature"]
    said = f"temperature: 0.9 in config.json, {own} in checkpoint 40 -> {own}"
    with pytest.raises(UserError, match=said):
        recipe_check.recipe_changes(place, SETTINGS, set(), 40)


def test_callbacks_of_a_save_that_has_ended_are_passed_over_and_all_else_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    orbax_logging.silence()
    orbax_logging.silence()
    for error in (
        RuntimeError("Event loop is closed"),
        RuntimeError("x"),
        ValueError("loop is closed"),
    ):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert [str(found.exc_value) for found in told] == ["x", "loop is closed"]
