"""The neighbours that a score finds, and their picture: renewed, and kept by a run that goes on."""

import dataclasses
import io
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moco_jax.base import figures
from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.data.sources.memory import ArraySource
from moco_jax.data.views import recipes
from moco_jax.evaluation import knn
from moco_jax.monitoring import neighbours
from moco_jax.monitoring.run_log import Writers
from moco_jax.monitoring.scores import FEW, NEAREST, Monitor
from moco_jax.parallel import mesh as mesh_lib

SIDE, BANK, QUERIES = 8, 90, 24


def source(number, label, classes=True):
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (number, SIDE, SIDE, 3), np.uint8)
    return ArraySource(images, rng.integers(0, 4, number) if classes else None, label)


def monitor_of(devices=2, labelled=True, queries="asked", k=20):
    """Of random images, on so many devices; the encoder is one matrix."""
    mesh = mesh_lib.create_mesh(jax.devices()[:devices])
    encode = jax.jit(
        lambda weights, images: jnp.reshape(images, (len(images), -1)) / 127.5 @ weights - 1,
        out_shardings=mesh_lib.replicated(mesh),
    )
    return Monitor(
        bank=source(BANK, "searched", labelled),
        bank_indices=np.arange(3, BANK),
        queries=source(QUERIES, queries, labelled),
        query_indices=np.arange(QUERIES),
        recipe=recipes.create("digits", SIDE),
        encode=encode,
        mesh=mesh,
        batch_size=16,
        workers=1,
        k=k,
        temperature=0.1,
    )


def weights(seed):
    return np.random.default_rng(seed).normal(size=(SIDE * SIDE * 3, 6)).astype(np.float32)


def picture_of(place, monitor, start, last=40):
    out, where = io.StringIO(), epath.Path(place)
    log = Writers(where, True, start)
    return neighbours.Picture(where, monitor, Console(out=out), log, start, last), log, out


@pytest.fixture
def drawn(monkeypatch):
    """What `figures.neighbours` was given, call by call."""
    calls, draw = [], figures.neighbours

    def record(path, queries, columns, right):
        calls.append((queries, columns, right))
        draw(path, queries, columns, right)

    monkeypatch.setattr(figures, "neighbours", record)
    return calls


CASES = [(2, True, 20), (1, True, 3), (2, False, 20)]


@pytest.mark.parametrize(("devices", "labelled", "k"), CASES)
def test_neighbours_of_a_score_are_those_of_brute_force(devices, labelled, k):
    monitor = monitor_of(devices, labelled, k=k)
    numbers, found = monitor.measure(weights(0))
    encode = partial(monitor.encode, weights(0))
    bank, bank_indices, queries, kept = monitor.features(encode)
    few = np.linspace(0, QUERIES - 1, FEW).astype(int)
    order = np.argsort(-(knn.unit(queries[few]) @ knn.unit(bank).T), axis=1, kind="stable")
    np.testing.assert_array_equal(found.queries, kept[few])
    np.testing.assert_array_equal(found.nearest, bank_indices[order[:, :NEAREST]])
    np.testing.assert_array_equal(found.sample, bank_indices)
    np.testing.assert_array_equal(found.features, bank)
    assert ("knn" in numbers) is labelled
    if labelled:  # the vote is that of k alone
        labels = monitor.bank.labels(bank_indices)
        votes = knn.classify(bank, labels, queries, k, monitor.temperature)
        assert numbers["knn"] == np.mean(votes == monitor.queries.labels(kept))
    seen = monitor.find_neighbours(weights(0))
    np.testing.assert_array_equal(seen.nearest, found.nearest)


def test_the_picture_renews_and_a_run_that_goes_on_has_the_same(tmp_path, drawn):
    monitor = monitor_of()
    finds = {step: monitor.measure(weights(step))[1] for step in (0, 20, 40)}
    whole, log, _ = picture_of(tmp_path / "whole", monitor, 0)
    files = []
    for step, found in finds.items():
        whole.renew(step, found)
        files.append(whole.path.read_bytes())
        if step == 20:
            shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    log.close()
    assert len(set(files)) == 3
    assert [list(columns) for _, columns, _ in drawn] == [
        ["before training"],
        ["before training", "step 20"],
        ["before training", "after"],
    ]
    queries, columns, right = drawn[1]
    np.testing.assert_array_equal(queries, monitor.queries.images[finds[20].queries])
    for title, step in {"before training": 0, "step 20": 20}.items():
        found = finds[step]
        np.testing.assert_array_equal(columns[title], monitor.bank.images[found.nearest])
        same = monitor.bank.labels(found.nearest) == monitor.queries.labels(found.queries)[:, None]
        np.testing.assert_array_equal(right[title], same)

    events = EventAccumulator(str(tmp_path / "whole/tensorboard")).Reload().Tensors("neighbours")
    assert [event.step for event in events] == [0, 20, 40]
    shown = np.asarray(Image.open(io.BytesIO(events[-1].tensor_proto.string_val[2])))
    np.testing.assert_array_equal(shown, np.asarray(Image.open(whole.path).convert("RGB")))

    cut, log, out = picture_of(tmp_path / "cut", monitor, 20)
    cut.renew(40, finds[40])
    log.close()
    assert cut.path.read_bytes() == files[-1]
    assert not out.getvalue()


def test_unlabelled_images_have_no_frames(tmp_path, drawn):
    monitor = monitor_of(labelled=False)
    picture, log, _ = picture_of(tmp_path, monitor, 0)
    picture.renew(0, monitor.measure(weights(0))[1])
    log.close()
    assert [right for *_, right in drawn] == [None]
    assert picture.path.exists()


def test_at_the_end_what_is_missing_is_looked_for(tmp_path, drawn):
    monitor = monitor_of()
    picture, log, out = picture_of(tmp_path, monitor, 0)
    found = picture.complete(40, None, lambda: weights(40), lambda: weights(0))
    np.testing.assert_array_equal(found.nearest, monitor.find_neighbours(weights(40)).nearest)
    assert list(drawn[-1][1]) == ["before training", "after"]

    def gone():
        raise UserError("init_from is gone")

    # Now it is known, and neither is asked for again.
    again, log, out = picture_of(tmp_path, monitor, 40)
    assert again.complete(40, found, gone, gone) is found
    assert len(drawn) == 1
    assert again.before == picture.before
    (tmp_path / "neighbours.json").unlink()
    picture, log, out = picture_of(tmp_path, monitor, 40)
    picture.complete(40, found, gone, gone)
    log.close()
    assert list(drawn[-1][1]) == ["after"]
    assert "init_from is gone; the picture shows the encoder after training alone" in out.getvalue()


def test_the_last_picture_of_a_run_that_ends_early_says_that_it_is_the_last(tmp_path, drawn):
    monitor = monitor_of()
    picture, log, _ = picture_of(tmp_path, monitor, 0, last=40)
    for step in (0, 20):
        found = monitor.measure(weights(step))[1]
        picture.renew(step, found)
    picture.complete(20, found, None, None)
    log.close()
    shown = [list(columns) for _, columns, _ in drawn[1:]]
    assert shown == [["before training", "step 20"], ["before training", "after"]]


def test_what_was_found_in_other_images_is_not_shown(tmp_path, drawn):
    monitor = monitor_of()
    picture, log, _ = picture_of(tmp_path, monitor, 0)
    picture.renew(0, monitor.find_neighbours(weights(0)))
    log.close()
    kept = tmp_path / "neighbours.json"
    assert kept.stat().st_size < 5000
    content = kept.read_text()
    for changed, text in [
        (monitor_of(queries="others"), content),
        (dataclasses.replace(monitor, query_indices=np.arange(0, QUERIES, 2)), content),
        (monitor, content[:100]),
        (monitor, json.dumps(json.loads(content) | {"nearest": {"0": [BANK]}})),
    ]:
        kept.write_text(text)
        picture, log, out = picture_of(tmp_path, changed, 20)
        assert "is damaged or of other images" in out.getvalue()
        picture.renew(20, monitor.find_neighbours(weights(1)))
        log.close()
        assert list(drawn[-1][1]) == ["step 20"]


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(figures, "neighbours", full)
    monitor = monitor_of()
    picture, log, out = picture_of(tmp_path, monitor, 0)
    for step in (0, 20):
        picture.renew(step, monitor.find_neighbours(weights(step)))
    log.close()
    assert out.getvalue().count("neighbours.png fails and is left out from here on") == 1
    assert "no space left" in out.getvalue()
