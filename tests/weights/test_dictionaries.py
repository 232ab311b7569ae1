"""The dictionary of weights is found whatever is beside it, and what was taken is said."""

import argparse
import collections
import pickle
import random

import numpy as np
import pytest

from moco_jax.weights import dictionaries, files
from tests.weights.odd_files import put, refusal

WEIGHTS = {"conv.weight": np.ones((2, 3), np.float32), "conv.bias": np.zeros(2, np.float32)}
OTHER = {"conv.weight": np.full((2, 3), 5, np.float32)}
BESIDE = {
    "epoch": 3,
    "acc": 93.2,
    "arch": "resnet50",
    "best": None,
    "done": True,
    "args": argparse.Namespace(lr=0.1),
    "best_acc1": np.float32(77.1),
    "best_acc5": np.array(77.1),
    "optimizer": {"state": {0: {"m": np.ones(3, np.float32)}}, "param_groups": [{"lr": 0.1}]},
    "scheduler": collections.Counter(a=1),
    "metrics": [np.ones(2)],
    "scaler": {"scale": 65536.0},
}


def contents(tmp_path, tree):
    return files.contents(put(tmp_path, "weights.pkl", pickle.dumps(tree)))


def among(rng, tree):
    """`tree` with other things before and behind it."""
    beside = rng.sample(sorted(BESIDE), 5)
    return {n: BESIDE[n] for n in beside[:2]} | tree | {n: BESIDE[n] for n in beside[2:]}


@pytest.mark.parametrize("name", dictionaries.USUAL)
def test_weights_are_found_under_usual_names(tmp_path, name):
    rng = random.Random(name)
    outer = rng.choice(dictionaries.USUAL)
    ordered = collections.OrderedDict(WEIGHTS)
    for tree in (
        {name: WEIGHTS},
        among(rng, {name: ordered}),
        among(rng, {outer: among(rng, {name: WEIGHTS})}),
    ):
        found = contents(tmp_path, tree)
        assert found.remarks == ()
        assert found.arrays.keys() == WEIGHTS.keys()
        np.testing.assert_array_equal(found.arrays["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize("seed", range(24))
def test_of_several_the_first_of_a_known_order_is_taken_and_said(tmp_path, seed):
    rng = random.Random(seed)
    first, second = sorted(rng.sample(dictionaries.USUAL, 2), key=dictionaries.USUAL.index)
    tree = [(first, WEIGHTS), (second, OTHER)]
    rng.shuffle(tree)
    found = contents(tmp_path, among(rng, dict(tree)))
    assert found.remarks == (f"its dictionary {first} is taken, not {second}",)
    np.testing.assert_array_equal(found.arrays["conv.weight"], WEIGHTS["conv.weight"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("model", "ema"),
        ("teacher", "student"),
    ],
)
def test_what_was_trained_comes_before_averages_and_teachers_before_students(first, second):
    assert dictionaries.USUAL.index(first) < dictionaries.USUAL.index(second)


@pytest.mark.parametrize("name", ["resnet", "mine", "generator", "my\nnet"])
def test_an_only_dictionary_of_another_name_is_taken_and_said(tmp_path, name):
    found = contents(tmp_path, {"epoch": 3, name: WEIGHTS, "log": {"loss": np.zeros(3)}})
    assert found.arrays.keys() == WEIGHTS.keys()
    shown = name.replace("\n", "\\n")
    assert found.remarks == (f"its dictionary {shown} is taken",)


def test_two_of_other_names_are_refused_by_name(tmp_path):
    path = put(tmp_path, "weights.pkl", pickle.dumps({"mine": WEIGHTS, "yours": OTHER, "epoch": 3}))
    assert "several dictionaries of arrays, mine, yours" in refusal(files.read, path)


@pytest.mark.parametrize("seed", range(20))
def test_what_stands_among_weights_is_left_out_and_said(tmp_path, seed):
    rng = random.Random(seed)
    plain = [n for n in BESIDE if n not in ("best_acc5",)]
    beside = rng.sample(plain, rng.randrange(1, 5))
    found = contents(tmp_path, WEIGHTS | {name: BESIDE[name] for name in beside})
    assert found.arrays.keys() == WEIGHTS.keys()
    assert found.remarks == (f"left out, as they are no arrays: {', '.join(beside)}",)


@pytest.mark.parametrize(
    "tree",
    [
        [WEIGHTS],
        (WEIGHTS, {}),
        3,
        None,
        {},
        {"epoch": 3},
        {"model": {}},
        {"model": {"a": "text"}},
        {"model": [1]},
        {"optimizer": {"state": {0: {"m": np.ones(3)}}}},
        np.ones(3),
        {"model": {"x": {"y": WEIGHTS}}},
    ],
)
def test_what_holds_none_is_refused(tmp_path, tree):
    path = put(tmp_path, "weights.pkl", pickle.dumps(tree))
    assert "holds no weights by name" in refusal(files.read, path)


def test_arrays_without_a_name_are_refused(tmp_path):
    path = put(tmp_path, "weights.pkl", pickle.dumps({"a": np.ones(2), 3: np.ones(2)}))
    assert "3 among its weights has no name" in refusal(files.read, path)
