"""Packed images read back as they were; packing cut off goes on, and mixes with no other."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from moco_jax.base.errors import UserError
from moco_jax.data import packing
from moco_jax.data.sources import open_source
from moco_jax.data.sources.pixels import Decoding
from tests.data.pictures import decoded, encoded, write
from tests.data.sources.test_pixels import npy


class Cut(Exception):
    """Stands for whatever ends a process."""


def quiet(shard, image):
    pass


def images(tmp_path):
    files = {f"{'cat' if n % 2 else 'dog'}/{n}.jpg": encoded(quality=50 + n) for n in range(9)}
    files["cat/z.png"] = encoded("PNG")
    return write(tmp_path / "images", files | {"dog/bad.jpg": b"words"}), files


def read_back(out, format="tfrecord"):
    source = open_source(format, "train", str(out))
    found, every = {}, np.arange(len(source))
    for record, label in zip(source.read(every), source.labels(every), strict=True):
        feature = tf.train.Example.FromString(record).features.feature
        name, image = (feature[key].bytes_list.value[0] for key in ("name", "image"))
        found[name.decode()] = (image, label)
    assert len(found) == len(source)
    return found


@pytest.mark.parametrize("format", ["tfrecord", "arrayrecord"])
@pytest.mark.parametrize("shards", [0, 3, 11])
def test_bytes_names_and_labels_read_back(tmp_path, format, shards):
    if format == "arrayrecord":
        pytest.importorskip("array_record", reason="pip install '.[arrayrecord]'")
    folder, files = images(tmp_path)
    out, seen = tmp_path / "out", []
    plan = packing.make_plan(folder, str(out), shards, format)
    packing.pack(plan, lambda *at: seen.append(at))
    expected = {name: (content, int(name.startswith("dog"))) for name, content in files.items()}
    assert read_back(out, format) == expected
    assert [image for _, image in seen] == list(range(11))
    assert packing.damaged_names(plan) == [f"{folder}/dog/bad.jpg"]
    assert json.loads((out / "pack.json").read_text())["classes"] == ["cat", "dog"]
    assert len([n for n in os.listdir(out) if n.startswith("images-")]) == (shards or 1) + 1


def test_packing_goes_on_and_keeps_finished_shards(tmp_path):
    folder, files = images(tmp_path)
    out = tmp_path / "out"
    plan = packing.make_plan(folder, str(out), 4, "tfrecord")

    def cut(shard, image):
        if image == 6:
            raise Cut

    with pytest.raises(Cut):
        packing.pack(plan, cut)
    kept = {n: (out / n).stat().st_mtime_ns for n in os.listdir(out) if n.endswith("tfrecord")}
    assert len(kept) == 2
    with pytest.raises(UserError, match="holds 2 of the 4 shards images-"):
        open_source("tfrecord", "train", str(out))
    seen = []
    packing.pack(plan, lambda *at: seen.append(at))
    assert seen[0] == (2, 5)
    assert all((out / n).stat().st_mtime_ns == time for n, time in kept.items())
    assert not [n for n in os.listdir(out) if n.endswith(".part")]
    assert {name: content for name, (content, _) in read_back(out).items()} == files
    packing.pack(plan, cut)  # nothing is left to do


def contents(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


def test_four_workers_one_of_them_killed_and_repeated_pack_what_one_packs(tmp_path):
    folder, files = images(tmp_path)
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert packing.pack(packing.make_plan(folder, str(alone), 8, "tfrecord"), quiet) == []
    assert {name: content for name, (content, _) in read_back(alone).items()} == files

    def worker(part, seen=quiet):
        plan = packing.make_plan(folder, str(out), 8, "tfrecord")
        return packing.pack(plan, seen, part, 4)

    def cut(shard, image):
        if shard == 6:
            raise Cut

    assert worker(3) == [0, 1, 2, 4, 5, 6]
    with pytest.raises(Cut):
        worker(2, cut)
    # As kill -9 leaves it.
    (out / "images-00006-of-00008.tfrecord.part").write_bytes(b"half a record")
    assert worker(0) == [1, 5, 6]
    assert worker(1) == [6]
    assert "manifest.json" not in os.listdir(out)
    shards = []
    assert worker(2, lambda shard, image: shards.append(shard)) == []
    assert set(shards) == {6}
    assert contents(out) == contents(alone)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["damaged"] == [f"{folder}/dog/bad.jpg"]
    assert manifest["images"] == sum(shard["images"] for shard in manifest["shards"]) == 10
    assert [shard["bytes"] for shard in manifest["shards"]] == [
        (out / shard["file"]).stat().st_size for shard in manifest["shards"]
    ]
    with pytest.raises(UserError, match=r"part=4 of parts=4: parts count from 0"):
        worker(4)


def test_of_two_workers_that_begin_at_once_with_other_images_one_is_refused(tmp_path):
    folder, _ = images(tmp_path)
    out = tmp_path / "out"
    plan = packing.make_plan(folder, str(out), 4, "tfrecord")

    def other_claims(shard, image):
        facts = json.loads((out / "pack.json").read_text())
        (out / "pack.json").write_text(json.dumps(facts | {"images": 12}))

    with pytest.raises(UserError, match=r"another packing \(images: 12 -> 11\)"):
        packing.pack(plan, other_claims, 1, 2)
    assert os.listdir(out) == ["pack.json"]


def test_another_packing_is_refused(tmp_path):
    folder, _ = images(tmp_path)
    out = str(tmp_path / "out")
    packing.pack(packing.make_plan(folder, out, 2, "tfrecord"), quiet)
    other = write(tmp_path / "other", {"cat/0.jpg": encoded()})
    with pytest.raises(UserError, match=r"another packing \(shards: 2 -> 3\)"):
        packing.pack(packing.make_plan(folder, out, 3, "tfrecord"), quiet)
    with pytest.raises(UserError, match=r"another packing \(data_dir: .*; images: 11 -> 1"):
        packing.pack(packing.make_plan(other, out, 0, "tfrecord"), quiet)
    os.rename(f"{folder}/cat/1.jpg", f"{folder}/cat/renamed.jpg")
    with pytest.raises(UserError, match=r"another packing \(names_sha256"):
        packing.pack(packing.make_plan(folder, out, 2, "tfrecord"), quiet)
    os.remove(f"{out}/pack.json")
    with pytest.raises(UserError, match=r"holds images-00000-of-00002.tfrecord and no pack.json"):
        packing.pack(packing.make_plan(folder, out, 2, "tfrecord"), quiet)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_pack_json_is_named(tmp_path, content):
    folder, _ = images(tmp_path)
    out = tmp_path / "out"
    plan = packing.make_plan(folder, str(out), 2, "tfrecord")
    out.mkdir()
    (out / "pack.json").write_bytes(content)
    with pytest.raises(UserError, match=r"pack\.json is damaged .*; give another --out"):
        packing.pack(plan, quiet)


def test_a_repaired_image_is_no_longer_called_damaged(tmp_path):
    folder, _ = images(tmp_path)
    out = tmp_path / "out"
    plan = packing.make_plan(folder, str(out), 1, "tfrecord")
    packing.pack(plan, quiet)
    assert packing.damaged_names(plan) == [f"{folder}/dog/bad.jpg"]
    # As a call leaves it that is cut off between the list and the shard's name.
    os.remove(plan.path(0))
    (tmp_path / "images/dog/bad.jpg").write_bytes(encoded())
    packing.pack(plan, quiet)
    assert packing.damaged_names(plan) == []
    assert len(read_back(out)) == 11


def test_an_error_of_reading_is_not_called_one_of_writing(tmp_path, monkeypatch):
    folder, _ = images(tmp_path)
    plan = packing.make_plan(folder, str(tmp_path / "out"), 1, "tfrecord")

    def fail(*_):
        raise tf.errors.DataLossError(None, None, "no more images")

    monkeypatch.setattr(packing.rewriting, "decode_or_flag", fail)
    with pytest.raises(UserError, match=r"data_dir=.*images cannot be read \(no more images\)"):
        packing.pack(plan, quiet)


def test_a_list_without_classes_is_packed(tmp_path):
    images(tmp_path)
    (tmp_path / "list.txt").write_text("images/cat/1.jpg\nimages/dog/2.jpg\n")
    out = str(tmp_path / "out")
    packing.pack(packing.make_plan(str(tmp_path / "list.txt"), out, 1, "tfrecord"), quiet)
    source = open_source("tfrecord", "train", out)
    assert source.labels(np.arange(2)) is None
    assert source.name(1).startswith("images/dog/2.jpg: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out", 12, "tfrecord"), "shards=12 must be from 1 to 11"),
        (("out", -1, "tfrecord"), "shards=-1 must be from 1 to 11"),
        (("out", 1, "zip"), "format='zip' is unknown; use one of tfrecord, arrayrecord"),
        (("", 1, "tfrecord"), "out='' names no folder"),
        (("file/out", 1, "tfrecord"), "file/out cannot be written .*the same command goes on"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path, arguments, message):
    folder, _ = images(tmp_path)
    (tmp_path / "file").write_text("")
    out = str(tmp_path / arguments[0]) if arguments[0] else ""
    with pytest.raises(UserError, match=message):
        packing.pack(packing.make_plan(folder, out, *arguments[1:]), quiet)


def test_damage_alone_is_refused(tmp_path):
    folder = write(tmp_path / "images", {"a.jpg": b"words"})
    with pytest.raises(UserError, match=r"none of the 1 images can be decoded; .*a\.jpg"):
        packing.pack(packing.make_plan(folder, str(tmp_path / "out"), 0, "tfrecord"), quiet)


def test_the_command_says_what_it_did(tmp_path):
    folder, _ = images(tmp_path)
    code = """
import sys
from moco_jax.cli import pack
from moco_jax.data.packing import effect

effect.VIEWS = "digits"
out, *folders = sys.argv[1:]
pack.COMMAND.call(["pack", f"--data_dir={folders[0]}", f"--out={out}_raw", "--format=raw"])
for folder in folders:
    pack.COMMAND.call(["pack", f"--data_dir={folder}", f"--out={out}", "--shards=2"])
"""
    command = [sys.executable, "-c", code, f"{tmp_path}/out", folder, "/no/such"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert "shard 2/2  image 11/11" in ended.stdout, ended.stderr
    assert f"--config.dataset=tfrecord --config.data_dir={tmp_path}/out_raw" in ended.stdout
    assert "views differ by 0.00 of 255 gray levels in the mean (10 images" in ended.stdout
    assert f"--config.dataset=tfrecord --config.data_dir={tmp_path}/out" in ended.stdout
    assert f"named in {tmp_path}/out/*.damaged.txt: {folder}/dog/bad.jpg" in ended.stdout
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("error: data_dir=/no/such is no folder")


def test_images_of_other_channels_are_packed_where_that_is_said(tmp_path):
    content = npy(np.zeros((8, 9, 5), np.float32))
    files = {f"{n}.npy": content for n in range(3)} | {"colour.jpg": encoded()}
    folder, out = write(tmp_path / "images", files), tmp_path / "out"
    decoding = Decoding(channels=5, white=1)
    plan = packing.make_plan(folder, str(out), 1, "tfrecord", decoding)
    packing.pack(plan, quiet)
    assert [os.path.basename(name) for name in packing.damaged_names(plan)] == ["colour.jpg"]
    source = open_source("tfrecord", "train", str(out), None, decoding)
    assert [(image.shape, sound) for image, sound in decoded(source)] == [((8, 9, 5), True)] * 3
    with pytest.raises(UserError, match=r"another packing \(channels: 5 -> 3; white: 1 -> 0"):
        packing.pack(packing.make_plan(folder, str(out), 1, "tfrecord"), quiet)
