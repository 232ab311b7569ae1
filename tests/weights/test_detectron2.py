"""Detectron2's names: as its converter and the MoCo authors' write them, and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.weights import detectron2, torchvision


def variables(name="resnet50", **options):
    backbone = encoders.create(name, width=8, **options).backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)


def converted(name):
    """The rule of the authors' detection/convert-pretrain-to-detectron2.py."""
    if "layer" not in name:
        name = "stem." + name
    for t in (1, 2, 3, 4):
        name = name.replace(f"layer{t}", f"res{t + 1}")
    for t in (1, 2, 3):
        name = name.replace(f"bn{t}", f"conv{t}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_names_and_values_are_those_of_the_authors_converter(name):
    ours = variables(name)
    theirs = {converted(k): v for k, v in torchvision.save(ours).items() if "num_batches" not in k}
    saved = detectron2.save(ours)
    assert saved.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(saved[key], value)


def test_names_and_shapes_of_a_bottleneck():
    saved = {k: v.shape for k, v in detectron2.save(variables()).items()}
    norm = ("weight", "bias", "running_mean", "running_var")
    expected = {"stem.conv1.weight": (8, 3, 7, 7)}
    expected |= {f"stem.conv1.norm.{leaf}": (8,) for leaf in norm}
    for place, shape in {
        "conv1": (8, 8, 1, 1),
        "conv2": (8, 8, 3, 3),
        "conv3": (32, 8, 1, 1),
        "shortcut": (32, 8, 1, 1),
    }.items():
        expected[f"res2.0.{place}.weight"] = shape
        expected |= {f"res2.0.{place}.norm.{leaf}": shape[:1] for leaf in norm}
    assert {k: v for k, v in saved.items() if k.startswith(("stem.", "res2.0."))} == expected
    assert {k.split(".")[0] for k in saved} == {"stem", "res2", "res3", "res4", "res5"}
    assert "res5.2.conv3.norm.running_var" in saved
    assert "res5.1.shortcut.weight" not in saved


def test_there_and_back_keeps_every_bit():
    ours = variables()
    again = detectron2.load(detectron2.save(ours), ours)
    assert jax.tree.structure(again) == jax.tree.structure(ours)
    jax.tree.map(np.testing.assert_array_equal, again, ours)


def test_faults_are_named_and_other_encoders_refused():
    ours = variables("resnet18")
    model = detectron2.save(ours)
    del model["res3.0.shortcut.norm.bias"]
    with pytest.raises(UserError, match=r"missing layer2\.0\.downsample\.1\.bias"):
        detectron2.load(model, ours)
    with pytest.raises(UserError, match="7x7 stem"):
        detectron2.save(variables("resnet18", stem="cifar"))
