"""A run with an online probe is the run without it, to the bit; the probe goes on where it does."""

import functools
import json

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from PIL import Image

from moco_jax import encoders
from moco_jax.base.console import Console
from moco_jax.cli.commands import command_of
from moco_jax.data.damaged import DamagedImages
from moco_jax.monitoring import run_log
from moco_jax.training import feed, loop
from tests import states
from tests.training.test_going_on import Small
from tests.training.test_loop import losses, tiny

pytestmark = pytest.mark.usefixtures("programs_kept")

SMALLEST = dict(arch="tiny", stem="imagenet", width=0, image_size=16, zero_init_residual=False)
SCORED = dict(warmup_epochs=0, monitor_every=1, knn_examples=512, keep=9)
# Of each method the way in which its images arrive.
METHODS = {
    "moco": "host",
    "symmetric": "device",
    "v3": "resident",
    "end_to_end": "resident",
    "memory_bank": "resident",
}


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    monkeypatch.setitem(encoders.BACKBONES, "tiny", functools.partial(Small))


def settings(method="moco", **changes):
    return tiny(f"digits:{method}", **(SMALLEST | SCORED | changes))


def numbers(workdir, name):
    return [r[name] for r in run_log.records(epath.Path(workdir)) if name in r]


def probe_in(workdir, step):
    """Every array of the probe that was saved at `step`."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return states.flatten(reader.restore(epath.Path(workdir) / f"checkpoints/{step}/probe"))


@pytest.mark.parametrize("method", METHODS)
def test_it_changes_nothing_of_the_run(method, tmp_path, capsys):
    common = dict(stop_at_step=3, augment_on=METHODS[method])
    for name, probed in (("with", True), ("without", False)):
        loop.train(settings(method, **common, online_probe=probed), str(tmp_path / name), set())
        assert (" of views  " in capsys.readouterr().out) == probed
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    states.assert_bitwise_equal(*(states.load(tmp_path / n, 3) for n in ("with", "without")))
    assert len(numbers(tmp_path / "with", "probe_train")) == 3
    assert not numbers(tmp_path / "without", "probe_train")
    assert probe_in(tmp_path / "with", 3)["steps"] == 3
    assert not (tmp_path / "without/checkpoints/3/probe").exists()


def test_it_goes_on_to_the_bit_and_begins_where_a_checkpoint_has_none(tmp_path, capsys):
    def train(name, step, **changes):
        loop.train(settings(stop_at_step=step, **changes), str(tmp_path / name), set())
        return capsys.readouterr().out

    train("whole", 6)
    for step in (4, 6):
        assert "the online probe begins" not in train("cut", step)
    assert numbers(tmp_path / "cut", "probe_train") == numbers(tmp_path / "whole", "probe_train")
    states.assert_bitwise_equal(*(probe_in(tmp_path / name, 6) for name in ("cut", "whole")))

    # Without a probe a checkpoint is as versions before it wrote them.
    train("old", 4, online_probe=False)
    assert "the online probe begins here: checkpoint 4 has none like it" in train("old", 6)
    assert losses(tmp_path / "old") == losses(tmp_path / "whole")
    assert len(numbers(tmp_path / "old", "probe_train")) == 2
    assert probe_in(tmp_path / "old", 6)["steps"] == 2


@pytest.mark.parametrize("place", ["host", "device", "resident"])
def test_each_batch_comes_with_the_classes_of_its_images(place):
    config = settings(augment_on=place)
    setup = loop.build(config, "")
    labels = setup.source.labels(np.arange(len(setup.source)))
    rows, images = feed.open_batches(config, setup, 0, DamagedImages(0), Console())
    fed = feed.device_batches(rows, setup.program, images, lambda indices: labels[indices])
    for _ in range(3):
        batch, classes = next(fed)
        np.testing.assert_array_equal(classes, labels[np.asarray(batch.index)])
        assert classes.sharding == batch.index.sharding
    rows.close()


def test_it_finds_what_evaluate_linear_finds(tmp_path):
    """Four colours, a class each, in images of noise: any encoder tells them apart."""
    rng = np.random.default_rng(0)
    for number in range(320):
        colour = np.asarray([(200, 60, 60), (60, 200, 60), (60, 60, 200), (90, 90, 90)])[number % 4]
        place = tmp_path / f"images/{'abcd'[number % 4]}"
        place.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(-60, 60, (20, 20, 3))
        Image.fromarray(np.uint8(colour + noise)).save(place / f"{number}.png")
    images = dict(dataset="folder", data_dir=str(tmp_path / "images"), eval_split="")
    run = dict(epochs=15, monitor_every=15, augment="linear", knn_k=20, augment_on="resident")
    loop.train(settings(**images, **run), str(tmp_path / "run"), set())
    (probe,) = numbers(tmp_path / "run", "probe")
    words = ["--rates=0.1,1", "--decays=0", "--crops=0", "--epochs=10", "--batch_size=64"]
    command_of("evaluate").call(["main", "linear", f"--workdir={tmp_path}/run", *words])
    found = json.loads((tmp_path / "run/evaluate_linear.json").read_text())
    (linear,) = (r["accuracy"] for r in found["results"])
    assert linear > 0.9
    assert abs(probe - linear) <= 0.1
