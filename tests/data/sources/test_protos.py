"""tf.train.Example without TensorFlow: the same features, and the same records refused."""

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.data.sources import protos
from tests.data.sources.toy_tfds import example

KINDS = ("bytes_list", "float_list", "int64_list")


def feature(kind, values):
    lists = {"bytes_list": tf.train.BytesList, "float_list": tf.train.FloatList}
    return tf.train.Feature(**{kind: lists.get(kind, tf.train.Int64List)(value=values)})


def serialized(**features):
    whole = tf.train.Features(feature=features)
    return tf.train.Example(features=whole).SerializeToString()


def plain(features):
    """Features by name: their kind and values."""
    kinds = {name: found.WhichOneof("kind") for name, found in features.items()}
    return {n: (k, list(getattr(features[n], k).value) if k else None) for n, k in kinds.items()}


def test_features_are_tensorflows():
    features = {
        "image": feature("bytes_list", [bytes(range(256))]),
        "several": feature("bytes_list", [b"", b"a\0"]),
        "numbers": feature("int64_list", [0, -1, 2**63 - 1, -(2**63)]),
        "shares": feature("float_list", [0.5, -1e30]),
        "none": feature("int64_list", []),
        "empty": tf.train.Feature(),
        "caf\u00e9": feature("int64_list", [7]),
    }
    record = serialized(**features)
    assert plain(protos.parse(record)) == plain(features)
    assert plain(protos.parse(b"")) == {}


def test_damaged_records_are_damaged_to_both():
    record = example(image=bytes(range(200)), label=300, name=b"caf\xc3\xa9")
    rng = np.random.default_rng(0)
    damaged = [record[:n] for n in range(len(record))]
    for _ in range(2000):
        changed = bytearray(record)
        changed[rng.integers(len(record))] = rng.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for content in damaged:
        try:
            expected = plain(tf.train.Example.FromString(content).features.feature)
        except Exception:  # protobuf's own class depends on its backend
            refused += 1
            with pytest.raises(UserError, match=r"no tf\.train\.Example"):
                protos.parse(content)
        else:
            assert plain(protos.parse(content)) == expected
    assert 100 < refused < len(damaged)


@pytest.mark.parametrize(
    "record",
    [
        serialized(),
        serialized(label=tf.train.Feature()),
        serialized(label=feature("int64_list", [5])),
        serialized(label=feature("int64_list", [])),
        serialized(label=feature("int64_list", [5, 6])),
        serialized(label=feature("float_list", [5])),
        serialized(label=feature("bytes_list", [b"5"])),
    ],
)
def test_a_single_value_is_what_parse_single_example_finds(record):
    spec = {"label": tf.io.FixedLenFeature([], tf.int64, -1)}
    try:
        expected = int(tf.io.parse_single_example(record, spec)["label"])
    except tf.errors.InvalidArgumentError:
        with pytest.raises(ValueError, match="label"):
            protos.value(protos.parse(record), "label", "int64_list", -1)
    else:
        assert protos.value(protos.parse(record), "label", "int64_list", -1) == expected
