"""Image datasets that TFDS has prepared, read in any order instead of through its own reader.

TFDS is asked only what its files do not say plainly.
"""

from typing import Any

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.data.sources import arrayrecord, examples, index, store, tfds_files, tfrecord
from moco_jax.data.sources.pixels import RGB, Decoding


class TFDSSource(examples.ExampleSource):
    """A TFDS image dataset prepared as TFRecord or ArrayRecord files."""

    def __init__(
        self,
        name: str,
        split: str,
        data_dir: str,
        index_dir: str | None = None,
        decoding: Decoding = RGB,
    ):
        """Open `split` of the dataset `name` in `data_dir`; '' is TFDS's own folder.

        The index is kept in `index_dir`.

        Raises:
            UserError: it is unknown, not prepared, or holds no image.
        """
        if not name.strip():
            raise UserError(
                f"dataset='tfds:{printable(name)}' names no dataset; give its name behind the"
                " colon, as in tfds:cifar10"
            )
        where = f" --data_dir={printable(data_dir)}" if data_dir else ""
        prepare = f"prepare it with: tfds build {name}{where}"
        slices, features, classes, format_ = _prepared(name, split, data_dir, prepare)
        there = store.infos([part.path for part in slices])
        if None in there:
            lacking = slices[there.index(None)].path
            raise UserError(f"dataset='tfds:{name}' lacks {lacking}; {prepare}")
        label = f"{name} {split}"
        records: examples.Records
        if format_ == "array_record":
            records = arrayrecord.ArrayRecords(slices)
        else:
            records = index.FileRecords(tfrecord.build(slices, index.cache_path(index_dir, label)))
        super().__init__(records, label, features, decoding, classes)


def _prepared(name: str, split: str, data_dir: str, prepare: str) -> tfds_files.Prepared:
    """Find `split` of a prepared dataset, by its files or else by TFDS; `prepare` as in `_open`."""
    try:
        return tfds_files.read(name, split, data_dir)
    except tfds_files.Unread as error:
        lacking = packages.missing(["tensorflow", "tensorflow_datasets"])
        if lacking:
            raise UserError(
                f"dataset='tfds:{printable(name)}' cannot be read without the package"
                f" {lacking[-1]} ({printable(str(error))}): {packages.how_to_have(lacking)}, and"
                f" {prepare}"
            ) from error
    packages.load_tensorflow(f"dataset='tfds:{printable(name)}'")
    builder = _open(name, data_dir, prepare)
    slices, features = _slices(builder, name, split), _features(builder, name)
    classes = builder.info.features[features.label].names if features.label else []
    return tfds_files.Prepared(slices, features, classes, builder.info.file_format.value)


def _open(name: str, data_dir: str, prepare: str) -> Any:
    """Return TFDS's builder of a prepared dataset.

    Raises:
        UserError: TFDS knows no such dataset, or it is not prepared; `prepare` tells how that is
            done.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
        splits = builder.info.splits
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"dataset='tfds:{printable(name)}' is not known to TFDS nor in data_dir={data_dir!r}"
        ) from error
    # A name that is none, and a missing version or config, each raise an error of their own.
    except Exception as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"dataset='tfds:{printable(name)}' is refused by TFDS ({printable(why)}); a name is"
            " as tfds:cifar10, tfds:NAME/CONFIG or tfds:NAME:VERSION"
        ) from error
    if not splits:
        raise UserError(
            f"dataset='tfds:{name}' is not prepared in data_dir={builder.data_dir}; {prepare}"
        )
    return builder


def _slices(builder: Any, name: str, split: str) -> list[tfrecord.Slice]:
    """Return the parts of files that hold `split` of the dataset `name`.

    Raises:
        UserError: there is no such split, or it holds no example.
    """
    splits = builder.info.splits
    try:
        instructions, number = splits[split].file_instructions, splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise tfds_files.no_such_split(name, split, splits) from error
    if number < 1 or any(part.take == 0 or part.take < -1 for part in instructions):
        raise tfds_files.no_example(name, split)
    return [tfrecord.Slice(str(f.filename), f.skip, f.take) for f in instructions]


def _features(builder: Any, name: str) -> examples.Features:
    """Choose the features of the dataset `name` that are image, class and name.

    Raises:
        UserError: none is an image.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    pictures = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    if not pictures:
        raise tfds_files.no_image(name, features)
    classes = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    # Some sets have several kinds of classes, as CIFAR-100; TFDS says which one is the label.
    supervised = [key for key in builder.info.supervised_keys or () if key in classes]
    label = next(iter([*supervised, *classes]), None)
    texts = {k for k, f in features.items() if isinstance(f, tfds.features.Text)}
    names = [key for key in examples.NAME_KEYS if key in texts]
    return examples.Features(pictures[0], label, names[0] if names else None)
