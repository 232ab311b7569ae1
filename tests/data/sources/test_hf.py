"""Saved sets and Parquet folders of Hugging Face's give each part's images; others are refused."""

import json
import os

import numpy as np
import pytest

from moco_jax.base import storage
from moco_jax.base.errors import UserError
from moco_jax.config.registry import has_splits
from moco_jax.data.sources import fingerprint, open_source
from tests.data.sources.tables import pa, parquet, saved, table

CELLS = [bytes([n]) * (n + 1) for n in range(20)]
CELLS[3] = None
KEPT = [cell or b"" for cell in CELLS]


def parts(root):
    """A set with two parts, as DatasetDict.save_to_disk writes it."""
    saved(root / "train", table(CELLS[:12], [n % 2 for n in range(12)], "ab"), "train", files=2)
    saved(root / "test", table(CELLS[12:], [0] * 8, "ab"), "test")
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return str(root)


def everything(source):
    return source.read(np.arange(len(source))).tolist()


def test_each_part_of_a_saved_set_is_read_in_any_order(tmp_path):
    root = parts(tmp_path / "set")
    source = open_source("hf", "train", root)
    order = np.asarray([11, 0, 3, 7, 6])
    assert source.read(order).tolist() == [KEPT[n] for n in order]
    assert source.labels(order).tolist() == [1, 0, 1, 1, 0]
    assert (len(source), source.classes) == (12, ("a", "b"))
    assert source.name(7) == "row 1 of data-00001-of-00002.arrow"
    assert source.names(np.asarray([7])) == ["data-00001-of-00002.arrow/1"]
    assert everything(open_source("hf:image,label", "test", root)) == KEPT[12:]
    assert everything(open_source("hf", "test", f"{root}/test")) == KEPT[12:]
    assert has_splits("hf")
    assert has_splits("hf:image")
    found = fingerprint.of(source)
    os.rename(root, tmp_path / "moved")
    assert fingerprint.of(open_source("hf", "train", str(tmp_path / "moved"))) == found


def test_the_file_format_of_arrow_and_large_columns_are_read_too(tmp_path):
    folder = saved(tmp_path / "set", table(CELLS))
    large = pa.table({"x": pa.array(CELLS, pa.large_binary())})
    with (
        pa.OSFile(f"{folder}/data-00000-of-00001.arrow", "wb") as file,
        pa.ipc.new_file(file, large.schema) as writer,
    ):
        writer.write_table(large.slice(0, 9))
        writer.write_table(large.slice(9))
    assert everything(open_source("hf", "train", folder)) == KEPT


@pytest.mark.parametrize("place", ["data/{}-00000-of-00001", "{}-00000-of-00001-0a1b", "{}/0000"])
def test_the_parquet_files_of_a_part_are_known_by_name_or_folder(tmp_path, place, network):
    for part, some in (("train", CELLS[:12]), ("test", CELLS[12:])):
        path = parquet(tmp_path / f"{place.format(part)}.parquet", table(some))
        with open(path, "rb") as file:
            storage.write(f"gs://bucket/hf/{os.path.relpath(path, tmp_path)}", file.read())
    for root in (str(tmp_path), "gs://bucket/hf"):
        assert everything(open_source("hf", "test", root)) == KEPT[12:]
    storage.remove_folder("gs://bucket/hf")


def test_what_is_no_set_or_has_no_such_part_is_refused_in_one_line(tmp_path, network):
    root = parts(tmp_path / "set")
    for config in ("en", "fr"):
        parquet(tmp_path / f"hub/{config}/train-00000-of-00001.parquet", table(CELLS))
    parquet(tmp_path / "cut/train-00000-of-00002.parquet", table(CELLS))
    (tmp_path / "empty").mkdir()
    arrow = tmp_path / "set/test/data-00000-of-00001.arrow"
    cases = [
        (("hf", "val", root), "has no part split='val'; there is test, train"),
        (("hf", "train", f"{root}/test"), "has no part split='train'; there is test"),
        (("hf", "train", ""), "data_dir='' is no folder; give one that Dataset.save_to_disk"),
        (("hf", "train", str(arrow)), "is no folder"),
        (("hf", "train", str(tmp_path / "empty")), "holds neither state.json nor dataset_dict"),
        (("hf", "train", str(tmp_path / "hub")), "several folders, .*en, .*fr, .* data_dir=.*en$"),
        (("hf", "train", str(tmp_path / "cut")), "holds 1 of the 2 shards train-"),
        (("hf:x", "train", root), "'hf:x': .* has no column 'x'; it has image"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            open_source(*arguments)
        assert "\n" not in str(raised.value)
    storage.write("gs://bucket/saved/state.json", (tmp_path / "set/test/state.json").read_bytes())
    with pytest.raises(UserError, match="read from a disk of this machine; copy it there"):
        open_source("hf", "test", "gs://bucket/saved")


def test_damaged_and_selected_sets_are_refused_in_one_line(tmp_path):
    folder = tmp_path / "set"
    saved(folder, table(CELLS))
    arrow, state = folder / "data-00000-of-00001.arrow", folder / "state.json"
    content, facts = arrow.read_bytes(), json.loads(state.read_text())
    for wrong in (content[: len(content) // 2], b"", b"words" * 99):
        arrow.write_bytes(wrong)
        with pytest.raises(UserError, match=r"arrow is no Arrow file, cut off or damaged"):
            open_source("hf", "train", str(folder))
    arrow.unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow is not there; save the set"):
        open_source("hf", "train", str(folder))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    packed = table([bytes(10_000)] * 9)
    with (
        pa.OSFile(str(arrow), "wb") as file,
        pa.ipc.new_stream(file, packed.schema, options=options) as stream,
    ):
        stream.write_table(packed)
    with pytest.raises(UserError, match="is compressed or damaged, so that no image can be read"):
        open_source("hf", "train", str(folder))
    for wrong, message in (
        ("{", r"state\.json is damaged"),
        ("[]", "it holds no facts"),
        ("{}", "names no files"),
        (json.dumps(facts | {"_indices_data_files": [{"filename": "x"}]}), "flatten_indices"),
        (json.dumps(facts | {"_data_files": []}), "the set that was saved is empty"),
    ):
        state.write_text(wrong)
        with pytest.raises(UserError, match=message):
            open_source("hf", "train", str(folder))


def test_what_the_package_datasets_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    rows = {"image": [{"bytes": c, "path": None} for c in KEPT[4:]], "label": [0, 1] * 8}
    whole = datasets.Dataset.from_dict(rows, features=kinds)
    both = datasets.DatasetDict(train=whole.select(range(10)), test=whole.select([12, 10, 11]))
    both.save_to_disk(str(tmp_path / "set"))
    source = open_source("hf", "train", str(tmp_path / "set"))
    assert everything(source) == KEPT[4:14]
    assert source.labels(np.arange(3)).tolist() == [0, 1, 0]
    assert source.classes == ("a", "b")
    assert everything(open_source("hf", "test", str(tmp_path / "set"))) == [
        KEPT[n] for n in (16, 14, 15)
    ]
    whole.to_parquet(str(tmp_path / "hub" / "train-00000-of-00001.parquet"))
    for dataset in ("hf", "parquet"):
        source = open_source(dataset, "train", str(tmp_path / "hub"))
        assert everything(source) == KEPT[4:]
        assert source.classes == ("a", "b")
