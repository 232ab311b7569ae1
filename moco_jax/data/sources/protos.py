"""The message tf.train.Example, read without TensorFlow.

Its definition is that of TensorFlow's `example.proto`. The package protobuf parses it, which
Orbax brings along.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from moco_jax.base.errors import UserError

_FIELD = descriptor_pb2.FieldDescriptorProto
_LISTS = {
    "BytesList": _FIELD.TYPE_BYTES,
    "FloatList": _FIELD.TYPE_FLOAT,
    "Int64List": _FIELD.TYPE_INT64,
}


def _example() -> Any:
    """Build the class of the message `Example`."""
    file = descriptor_pb2.FileDescriptorProto(name="example", package="moco", syntax="proto3")
    one, many, message = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REPEATED, _FIELD.TYPE_MESSAGE
    for name, kind in _LISTS.items():
        file.message_type.add(name=name).field.add(name="value", number=1, label=many, type=kind)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, name) in enumerate(
        zip(("bytes_list", "float_list", "int64_list"), _LISTS, strict=True), start=1
    ):
        feature.field.add(
            name=field,
            number=number,
            label=one,
            type=message,
            type_name=f".moco.{name}",
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=_FIELD.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=message, type_name=".moco.Feature")
    features.field.add(
        name="feature",
        number=1,
        label=many,
        type=message,
        type_name=".moco.Features.FeatureEntry",
    )
    file.message_type.add(name="Example").field.add(
        name="features", number=1, label=one, type=message, type_name=".moco.Features"
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("moco.Example"))


_EXAMPLE = _example()


def parse(record: bytes) -> Mapping[str, Any]:
    """Parse the features of one serialized tf.train.Example; raises UserError if it is none."""
    try:
        return _EXAMPLE.FromString(record).features.feature
    except Exception as error:  # protobuf's own class depends on which of its backends is in use
        raise UserError("its records are no tf.train.Example") from error


def value(features: Mapping[str, Any], key: str, kind: str, default: Any = None) -> Any:
    """Return the one value of the feature `key`, and `default` where the example lacks it.

    `kind`: of the feature, as 'bytes_list'.

    Raises:
        ValueError: the feature is of another kind, or has not one value.
    """
    found = features[key].WhichOneof("kind") if key in features else None
    if found is None:
        return default
    if found != kind:
        raise ValueError(f"{key} is a {found}, no {kind}")
    values = getattr(features[key], kind).value
    if len(values) != 1:
        raise ValueError(f"{key} has {len(values)} values")
    return values[0]
