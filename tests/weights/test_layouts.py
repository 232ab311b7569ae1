"""Names and shapes of strangers: wrappers come off, and what fits no encoder is one line that names
the file.
"""

import random

import jax
import numpy as np
import pytest

from moco_jax.base import files as paths
from moco_jax.base.errors import UserError
from moco_jax.inference import trained_encoder
from moco_jax.weights import bridge, files, layouts
from tests.weights.odd_files import network, refusal

NETWORK = network()
WRAPPERS = (
    "module.",
    "model.",
    "net.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    return str(tmp_path_factory.mktemp("weights") / "weights.safetensors")


def put(path, arrays):
    files.write(path, arrays, {})
    return path


@pytest.mark.parametrize("seed", range(40))
def test_wrappers_come_off_in_whichever_order(seed):
    rng = random.Random(seed)
    before = "".join(rng.choices(WRAPPERS, k=rng.randrange(1, 5)))
    within = rng.choice(["", *WRAPPERS[3:]])  # of a part of the network alone
    wrapped = {
        before + name.replace("layer2.", f"layer2.{within}"): a for name, a in NETWORK.items()
    }
    wrapped |= {"n_averaged": np.array(3)} if rng.random() < 0.3 else {}
    found = layouts.bare(wrapped)
    assert list(found) == list(NETWORK)
    assert all(found[name] is NETWORK[name] for name in NETWORK)


@pytest.mark.parametrize("prefix", ["encoder_q.", "backbone.", "resnet.", "encoder."])
def test_names_that_say_whose_it_is_stay(prefix):
    wrapped = {f"module.{prefix}{name}": array for name, array in NETWORK.items()}
    assert list(layouts.bare(wrapped)) == [prefix + name for name in NETWORK]


def test_names_that_wrappers_alone_tell_apart_are_refused():
    with pytest.raises(UserError, match="differ only"):
        layouts.bare({"a.weight": np.ones(1), "_orig_mod.a.weight": np.zeros(1)})


def test_a_wrapped_network_is_the_network(path):
    whole = bridge.load(put(path, NETWORK))
    found = bridge.load(put(path, {f"model._orig_mod.{n}": a for n, a in NETWORK.items()}))
    jax.tree.map(np.testing.assert_array_equal, found.query, whole.query)


@pytest.mark.parametrize("seed", range(20))
def test_numbers_alone_are_of_no_network(path, seed):
    rng = random.Random(seed)
    layers = {}
    for number in [*sorted(rng.sample(range(9), rng.randrange(2, 6))), 0]:
        shape = rng.choice([(8, 3, 3, 3), (8, 3, 7, 7), (8,), (4, 8), (8, 3, 3), ()])
        layers[f"{number}.weight"] = np.ones(shape, np.float32)
        layers[f"{number}.bias"] = np.ones(8, np.float32)
    assert refusal(bridge.load, put(path, layers)).startswith(f"{path}: ")


def misfit(rng):
    """The network with entries gone, renamed, of other shapes, types or ranks."""
    arrays = dict(NETWORK)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(sorted(arrays))
        how = rng.randrange(6)
        array = arrays.pop(name)
        if how == 1:
            arrays[
                rng.choice(
                    ["", "a\nb", "cls_token", "pos_embed", "0.weight", "1.2.weight", name + "\x1b"]
                )
            ] = array
        elif how == 2:
            arrays[name] = array.reshape(-1)
        elif how == 3:
            arrays[name] = array[None]
        elif how == 4:
            arrays[name] = array[..., :0] if array.ndim else array
        elif how == 5:
            arrays[name] = np.ones((), np.float32)
    return arrays


@pytest.mark.parametrize("seed", range(30))
def test_what_fits_no_encoder_is_one_line(path, seed):
    arrays = misfit(random.Random(seed))
    try:
        bridge.load(put(path, arrays))
    except UserError:
        assert refusal(bridge.load, path).startswith(f"{path}: ")
    else:
        needed = {n for n in NETWORK if not n.startswith("fc.") and "num_batches" not in n}
        assert needed <= arrays.keys()
        assert all(arrays[name].shape == NETWORK[name].shape for name in needed)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (1 << 30, 3, 0, 0)),
        ("conv1.weight", (8, 1 << 30, 0, 7)),
        ("pos_embed", (1, 1 << 30, 0)),
        ("cls_token", (1, 0, 1 << 30)),
    ],
)
def test_shapes_without_values_take_no_memory(path, name, shape):
    arrays = NETWORK | {name: np.zeros(shape, np.float32)}
    assert "weights do not fit" in refusal(bridge.load, put(path, arrays))


@pytest.mark.parametrize("seed", range(20))
def test_weights_that_are_not_finite_are_refused_by_name(path, seed):
    rng = random.Random(seed)
    name = rng.choice([n for n in NETWORK if not n.startswith("fc.") and "num_batches" not in n])
    value = rng.choice([np.nan, np.inf, -np.inf, 1e300])
    array = NETWORK[name].astype(np.float64 if value == 1e300 else rng.choice(["f2", "f4", "f8"]))
    array[tuple(rng.randrange(n) for n in array.shape)] = value
    said = refusal(bridge.load, put(path, NETWORK | {name: array}))
    assert said.startswith(f"{path}: {name} is not finite: 1 of its {array.size:,} values")


def test_a_variance_below_0_is_refused_and_a_classifier_may_be_anything(path):
    said = refusal(
        bridge.load, put(path, NETWORK | {"bn1.running_var": np.full(8, -1, np.float32)})
    )
    assert said == f"{path}: bn1.running_var has a variance of -1, and none is below 0"
    arrays = NETWORK | {"fc.weight": np.full((3, 64), np.nan, np.float32)}
    assert "fc.weight" in bridge.load(put(path, arrays)).left_out


ADDRESSES = [
    f"{scheme}://example.com/{name}"
    for scheme in ("http", "https", "ftp", "hf", "file", "HTTPS", "az", "git+ssh")
    for name in ("r50.pth", "model.safetensors", "a b.pkl", "")
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_are_refused_in_one_line(address):
    for call in (bridge.load, bridge.is_run, trained_encoder.load, files.read, paths.absolute):
        if not (
            call is files.read and address.endswith("/")
        ):  # without an ending it is refused for that
            assert "is an address" in refusal(call, address)
