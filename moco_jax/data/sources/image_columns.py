"""Which columns of a table are images and classes: by type, and by Hugging Face's own words."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from moco_jax.base.errors import UserError
from moco_jax.base.text import printable

LABEL_NAMES = ("label", "labels", "class")  # looked for where nothing says what is a class
_FEATURES = b"huggingface"  # key of the schema's metadata under which the kinds of columns stand


class Columns(NamedTuple):
    """The columns of a table that are read.

    Attributes:
        image: the column of images.
        leaf: where its bytes are, as Parquet writes it: 'image.bytes', or 'image'.
        label: the column of classes; '' for none.
        classes: the names of the classes, where numbers in `label` have names.
        remark: what is to be said of the choice, '' for nothing.
    """

    image: str
    leaf: str
    label: str
    classes: tuple[str, ...]
    remark: str


def _kinds(schema: Any) -> Mapping[str, Any]:
    """Return what Hugging Face says of each column; {} where nothing is said."""
    try:
        said = json.loads((schema.metadata or {})[_FEATURES])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _leaf(field: Any) -> str:
    """Return where the bytes of images in a column are, as 'image.bytes'; '' for no images."""
    from pyarrow import types

    if _is_bytes(field.type):
        return field.name
    if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_bytes(field.type.field("bytes").type) else ""
    return ""


def is_text(kind: Any) -> bool:
    """Whether values of this type of pyarrow's are texts, names of classes."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def _is_class(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_boolean(kind) or is_text(kind)


def choose(schema: Any, dataset: str, where: str) -> Columns:
    """Choose the columns of a table with this `schema` of pyarrow's.

    Args:
        schema: of the table.
        dataset: the setting, as 'parquet' or 'parquet:IMAGE,LABEL'.
        where: how messages call the table.

    Raises:
        UserError: what is named is not there or of another type, or several could be meant.
    """
    kind, _, wanted = dataset.partition(":")
    image, _, label = (word.strip() for word in wanted.partition(","))
    kinds, fields = _kinds(schema), {field.name: field for field in schema}
    for name in filter(None, (image, label)):
        if name not in fields:
            raise UserError(
                f"dataset={printable(dataset)!r}: {where} has no column {printable(name)!r}; it has"
                f" {_listed(schema)}"
            )
    if image and not _leaf(fields[image]):
        raise UserError(
            f"dataset={printable(dataset)!r}: the column {printable(image)!r} of {where} is"
            f" {fields[image].type}; images are encoded bytes, or a struct that holds them as bytes"
        )
    if not image:
        image = _image(schema, kinds, kind, where)
    remark, names = "", [] if label else _labels(schema, kinds)
    if len(names) > 1:
        remark = (
            f"{where}: classes are those of the column {printable(names[0])}; dataset="
            f"'{kind}:{printable(image)},{printable(names[1])}' takes another"
        )
    label = label or next(iter(names), "")
    if label and (label == image or not _is_class(fields[label].type)):
        raise UserError(
            f"dataset={printable(dataset)!r}: the column {printable(label)!r} of {where} is"
            f" {fields[label].type}; classes are whole numbers or texts, so name another, or none"
        )
    said = kinds.get(label)
    called = said.get("names") if isinstance(said, dict) else None
    named = isinstance(called, list) and all(isinstance(name, str) for name in called)
    classes = tuple(called or ()) if named and label and not is_text(fields[label].type) else ()
    return Columns(image, _leaf(fields[image]), label, classes, remark)


def _image(schema: Any, kinds: Mapping[str, Any], kind: str, where: str) -> str:
    """Return the one column that holds images."""
    fitting = [field.name for field in schema if _leaf(field)]
    said = [name for name in fitting if _says(kinds, name) == "Image"]
    others = [name for name in fitting if _says(kinds, name) in ("", "Value")]
    found = said or others
    if not found:
        raise UserError(
            f"{where} has no column of encoded images (bytes, or a struct that holds them as"
            f" bytes); its columns are {_listed(schema)}"
        )
    if len(found) > 1:
        raise UserError(
            f"{where} has several columns that may be images, {', '.join(map(printable, found))};"
            f" name one: dataset='{kind}:{printable(found[0])}'"
        )
    return found[0]


def _says(kinds: Mapping[str, Any], name: str) -> str:
    said = kinds.get(name)
    return str(said.get("_type", "")) if isinstance(said, dict) else ""


def _labels(schema: Any, kinds: Mapping[str, Any]) -> list[str]:
    """Return the columns that are classes by what is said of them, or else by name and type."""
    fields = {field.name: field for field in schema}
    said = [n for n in fields if _says(kinds, n) == "ClassLabel" and _is_class(fields[n].type)]
    named = [name for name in LABEL_NAMES if name in fields and _is_class(fields[name].type)]
    return said or named[:1]


def _listed(schema: Any, most: int = 12) -> str:
    shown = [f"{printable(field.name)} ({str(field.type)[:40]})" for field in schema][:most]
    return ", ".join(shown) + (", ..." if len(schema) > most else "")
