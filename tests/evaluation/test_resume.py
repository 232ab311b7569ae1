"""Evaluations' trainings that are cut off go on to the bit, from a sound state of their own."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from moco_jax.base.errors import UserError
from moco_jax.data.sources.pixels import RGB
from moco_jax.encoders.resnet import ResNet
from moco_jax.evaluation import finetune, finetune_recipe, linear, resume
from moco_jax.evaluation.images import EvaluationData, Labelled
from moco_jax.evaluation.segmentation import data, fcn, training
from moco_jax.evaluation.segmentation.views import InputSettings
from moco_jax.inference.trained_encoder import TrainedEncoder
from moco_jax.parallel import mesh
from tests import states
from tests.evaluation.scenes import write_voc
from tests.evaluation.test_finetune import QUICK, drawn, tiny
from tests.evaluation.test_linear import data_of, silent, spectrum


class Lines:
    """A console that remembers, and cuts off a training that begins anew."""

    def __init__(self, ends_with=None):
        self.said, self.ends_with = [], ends_with

    def line(self, text):
        self.said.append(text)
        if self.ends_with and text.endswith(self.ends_with):
            raise Cut


class Cut(Exception):
    """Instead of a kill."""


class Steps:
    """Counts the steps that are reported, and cuts the training off after so many."""

    def __init__(self, after=math.inf):
        self.after, self.seen = after, 0

    def __call__(self, text):
        if "step " in text and "features of" not in text:
            self.seen += 1
            if self.seen >= self.after:
                raise Cut


@pytest.fixture(autouse=True)
def _save_whenever_the_time_has_come(monkeypatch):
    monkeypatch.setattr(resume, "SHARE", math.inf)


def two_devices():
    return mesh.create_mesh(jax.devices()[:2])


def fewer(images, number):
    return Labelled(images.source, images.indices[:number], images.classes[:number], images.about)


def small_data(monkeypatch, width):
    """Digits on one device; test images have features of this width that cost nothing."""

    def extract(self, images, *_):
        features = np.random.default_rng(0).normal(size=(len(images.classes), width))
        return features.astype(np.float32), images.classes

    monkeypatch.setattr(EvaluationData, "extract", extract)
    return dataclasses.replace(data_of(150), mesh=mesh.create_mesh(jax.devices()[:1]))


def on_crops(monkeypatch):
    """A run of the training, what may be changed about it, its steps, and where it is cut.

    The cut lies within the second epoch.
    """
    digits = small_data(monkeypatch, 64)
    usual = dict(
        data=digits,
        chosen=linear.Protocol(3, 64, 3.0, "steps"),
        recipe=linear.crop_recipe("digits", digits),
    )

    def run(kept, report, **changes):
        return linear.train_on_crops(encode=spectrum, kept=kept, report=report, **usual | changes)

    other = digits.config.copy_and_resolve_references()
    other.seed = 1
    changes = [
        dict(chosen=linear.Protocol(3, 64, 1.0, "steps")),
        dict(recipe=linear.crop_recipe("linear", digits)),
        dict(data=dataclasses.replace(digits, config=other)),
        dict(data=dataclasses.replace(digits, train=fewer(digits.train, 140))),
        dict(data=dataclasses.replace(digits, test=fewer(digits.test, 140))),
    ]
    return run, changes, 9, 5


def fine_tuning(monkeypatch):
    """DeiT's recipe, which mixes images and whose optimizer counts, on a network with BatchNorm."""
    monkeypatch.setattr(finetune, "encoder_of", lambda config, dtype, drop: tiny(dtype))
    digits = small_data(monkeypatch, 8)
    encoder = tiny(jnp.float32)
    start = TrainedEncoder(encoder, drawn(encoder), digits.config, 0)
    moved = jax.tree.map(lambda x: x * 1.01, start.variables)
    options = finetune.TrainOptions(exact_epochs=True, tests=2)
    usual = dict(
        start=start,
        images=fewer(digits.train, 90),
        how=finetune_recipe.training("deit", 3, 32),
        recipe=linear.crop_recipe("digits", digits),
        options=options,
    )

    def run(kept, report, **changes):
        tuned = finetune.train(digits, report=report, kept=kept, **usual | changes)
        arrays = {"variables": tuned.trained.variables, "classifier": tuned.classifier}
        return arrays, tuned.tested, tuned.accuracies, tuned.loss

    changes = [
        dict(how=finetune_recipe.training("deit", 3, 32, backbone_rate=0.1)),
        dict(images=fewer(digits.train, 89)),
        dict(start=dataclasses.replace(start, variables=moved)),
        dict(recipe=linear.crop_recipe("linear", digits)),
        dict(options=dataclasses.replace(options, scratch=True)),
        dict(options=dataclasses.replace(options, tests=3)),
    ]
    return run, changes, 9, 4


def segmentation(folder):
    backbone = ResNet((1, 1), bottleneck=False, width=4)
    network = fcn.create(backbone, 3, jnp.float32, channels=4)
    lowered = jax.jit(backbone.init).lower(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = lowered.compile(QUICK)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    state = training.start(network, variables, 3, 0)
    voc = str(write_voc(folder, 5, 2))
    inputs = InputSettings((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), workers=2)
    usual = dict(
        scenes=data.open_scenes(voc, "train", RGB, silent),
        chosen=training.Protocol(7, 0.01, 24, 2),
        inputs=inputs,
    )

    one = mesh.create_mesh(jax.devices()[:1])

    def run(kept, report, **changes):
        return training.fine_tune(
            network, state, mesh=one, report=report, kept=kept, **usual | changes
        )

    changes = [
        dict(chosen=training.Protocol(7, 0.02, 24, 2)),
        dict(scenes=data.open_scenes(voc, "val", RGB, silent)),
        dict(inputs=dataclasses.replace(inputs, seed=1)),
        dict(inputs=dataclasses.replace(inputs, mean=(0.5, 0.5, 0.5))),
    ]
    # A step is reported one later, and its state is the one before.
    return run, changes, 7, 4


@pytest.fixture(params=["linear", "finetune", "segmentation"])
def kind(request, tmp_path, monkeypatch):
    if request.param == "linear":
        return on_crops(monkeypatch)
    if request.param == "finetune":
        return fine_tuning(monkeypatch)
    return segmentation(tmp_path / "voc")


def test_a_training_that_was_cut_off_goes_on_to_the_bit(kind, tmp_path):
    run, changes, steps, cut = kind
    console = Lines()
    trainings = resume.Trainings(epath.Path(tmp_path / "evaluate_it"), console, 0)
    whole = run(resume.NOT_KEPT, silent)
    with pytest.raises(Cut):
        run(trainings.one("it, trained"), Steps(cut))
    path = tmp_path / "evaluate_it" / "it_trained.state"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert not console.said

    rest = Steps()
    again = run(trainings.one("it, trained"), rest)
    states.assert_bitwise_equal(states.flatten(whole), states.flatten(again))
    assert console.said == [f"it, trained: goes on after step {cut} ({path})"]
    assert rest.seen == steps - cut

    # One that has ended is not repeated.
    rest = Steps()
    again = run(trainings.one("it, trained"), rest)
    states.assert_bitwise_equal(states.flatten(whole), states.flatten(again))
    assert console.said[1:] == [f"it, trained: goes on after step {steps} ({path})"]
    assert rest.seen == 0

    said = (
        f"it, trained: {path} is of other settings, weights or images and is not used; "
        "the training begins anew"
    )
    for change in changes:
        strict = resume.Trainings(epath.Path(path.parent), Lines(ends_with=said))
        with pytest.raises(Cut):
            run(strict.one("it, trained"), silent, **change)

    trainings.forget()
    assert not path.parent.exists()
    trainings.forget()


def kept(folder, console, *facts, seconds=0):
    return resume.Trainings(epath.Path(folder), console, seconds).one("a 1/2", *facts)


def small():
    layout = mesh.replicated(two_devices())
    return jax.device_put({"a": np.arange(6, dtype=np.float32), "b": (np.int32(3),)}, layout)


def test_what_is_saved_comes_back_on_every_device(tmp_path):
    state, console = small(), Lines()
    one = kept(tmp_path, console, "x")
    assert one.begin(two_devices(), state, 5) == (state, 0, {})
    one.save(7, state, losses=[0.1, math.inf], last=2.5)
    found, step, notes = kept(tmp_path, console, "x").begin(two_devices(), state, 5)
    assert (step, notes) == (7, {"losses": [0.1, math.inf], "last": 2.5})
    states.assert_bitwise_equal(states.flatten(state), states.flatten(found))
    assert found["a"].sharding == state["a"].sharding
    for facts in (("y", 5), ("x", 6), ("x", "5")):
        assert kept(tmp_path, console, facts[0]).begin(two_devices(), state, facts[1])[1] == 0


@pytest.mark.parametrize("damage", ["cut short", "one bit", "empty"])
def test_a_damaged_state_is_named_and_not_used(tmp_path, damage):
    state, console = small(), Lines()
    one = kept(tmp_path, console)
    one.begin(two_devices(), state, None)
    one.save(7, state)
    path = tmp_path / "a_1_2.state"
    content = path.read_bytes()
    place = len(content) - 3
    bad = {
        "cut short": content[:place],
        "one bit": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
        "empty": b"",
    }
    path.write_bytes(bad[damage])
    assert kept(tmp_path, console).begin(two_devices(), state, None) == (state, 0, {})
    assert console.said == [f"a 1/2: {path} is damaged and is not used; the training begins anew"]


def test_a_save_that_fails_leaves_what_was_saved_before(tmp_path, monkeypatch):
    state = small()
    one = kept(tmp_path, Lines())
    one.begin(two_devices(), state, None)
    one.save(7, state)
    before = (tmp_path / "a_1_2.state").read_bytes()

    def full(self, content):
        self.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
    with pytest.raises(UserError, match="is on a full disk"):
        one.save(8, state)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"a_1_2.state": before}


def test_saves_come_when_time_has_passed_and_take_a_small_share_of_it(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(resume, "SHARE", 0.05)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    one, state = kept(tmp_path, Lines(), seconds=60), small()
    one.begin(two_devices(), state, None)

    def due(after):
        now[0] = after
        return one.due(last=False)

    assert [due(t) for t in (1000, 1059, 1060)] == [False, False, True]
    one.save(1, state)
    assert [due(t) for t in (1119, 1120)] == [False, True]
    write = resume.files.write

    def slow(*arguments):
        now[0] += 10
        write(*arguments)

    monkeypatch.setattr(resume.files, "write", slow)
    one.save(2, state)
    assert [due(t) for t in (1130 + 199, 1130 + 200)] == [False, True]
    assert one.due(last=True)
    assert not resume.NOT_KEPT.due(last=True)
