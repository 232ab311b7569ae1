"""Names of any bytes reach consoles, pages, tables and records, each on one line."""

import io
import json
import os
import tarfile

import numpy as np
import pytest

from moco_jax.base.console import Console
from moco_jax.base.errors import UserError
from moco_jax.base.text import from_line, printable
from moco_jax.cli import command_line
from moco_jax.data import packing
from moco_jax.data.pipeline import DamagedImages
from moco_jax.data.sources import names, open_source, remarks_of, store
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.names import Names
from moco_jax.data.sources.refusals import described
from moco_jax.data.sources.tar import TarSource
from moco_jax.doctor import images, survey
from moco_jax.embedding import table
from moco_jax.embedding.encode import Damaged
from moco_jax.embedding.table import Rows
from tests.data.pictures import encoded
from tests.embedding.test_embed import FACTS

SOUND = encoded("PNG", pixels=np.full((4, 4, 3), 99, np.uint8))
ODD = [
    b"caf\xe9",
    b"line\nbreak",
    b"cr\rx",
    b"\x1b[2Jclear",
    "bidi\u202egnp".encode(),
    "sep\u2028x".encode(),
    "nel\x85x".encode(),
    b"tab\tx",
    b"\\xe9",
    b"caf\\xe9",
    "猫".encode(),
    b"$x^$",
    b" lead",
    b"trail ",
    b"quote'\"",
    b"\x7f",
    b"a,b;c",
    b"%s{}",
    b"<b>&amp;",
    "\ufeffmark".encode(),
    b"-flag",
    b"~",
    b"#x",
]


def random_names(seed):
    """Twenty different names of random bytes, but for those that no name may hold, none hidden."""
    rng = np.random.default_rng(seed)
    made = {bytes(b for b in rng.bytes(9) if b not in b"\0/") for _ in range(25)}
    return sorted(name for name in made if name and name[0] != ord("."))[:20]


def fill(folder, made):
    """Image files of these names in `folder`, every other one damaged; the damaged ones."""
    place = os.fsencode(folder)
    os.makedirs(place, exist_ok=True)
    damaged = set()
    for number, name in enumerate(made):
        if number % 2:
            damaged.add(os.fsdecode(name + b".png"))
        with open(os.path.join(place, name + b".png"), "wb") as file:
            file.write(b"words" if number % 2 else SOUND)
    return damaged


def is_line(text):
    return text.isprintable() and bool(text.encode("utf-8"))


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_names_of_any_bytes_are_packed_looked_at_and_kept(tmp_path, seed):
    made = ODD if seed is None else random_names(seed)
    damaged = fill(tmp_path / "images", made)
    every = {os.fsdecode(name + b".png") for name in made}
    plan = packing.make_plan(str(tmp_path / "images"), str(tmp_path / "out"), 2, "tfrecord")
    source = plan.source
    assert {source.files[i] for i in range(len(source))} == every
    assert all(is_line(source.name(i)) for i in range(len(source)))

    packing.pack(plan, lambda *at: None)
    packed = open_source("tfrecord", "train", str(tmp_path / "out"))
    assert set(packed.names(np.arange(len(packed)))) == every - damaged
    assert all(is_line(packed.name(i)) for i in range(len(packed)))
    lines = packing.damaged_names(plan)
    assert {from_line(line).rpartition("images/")[2] for line in lines} == damaged

    found = survey.survey(source, np.arange(len(source)), 1, lambda *at: None)
    said = images.damaged(found, source.name, True, 0)[0]
    assert len(said.details) == len(damaged)
    assert all(map(is_line, said.details))

    told = Damaged(source)
    told.before(np.flatnonzero(found.good))
    told.rest()
    assert {from_line(line) for line in told.names} == damaged
    assert is_line(told.first)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_table_keeps_names_apart_and_gives_them_back(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="pip install '.[parquet]'")
    made = [
        os.fsdecode(name)
        for seed in range(3)
        for name in (*ODD, *random_names(seed), b"nul\0", b"nul")
    ]
    made = list(dict.fromkeys(made))
    path = str(tmp_path / f"x.{ending}")
    with table.writing(path, {**FACTS, "damaged": made}) as write:
        write(Rows(np.ones((len(made), 2), np.float32), made, np.arange(len(made)), None))
    kept = table.opened(path).take("names", np.arange(len(made))).tolist()
    assert [from_line(name) for name in kept] == made
    assert len(set(kept)) == len(made)


def tar(path, members, **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_called_as_their_writer_called_them(tmp_path, format):
    ustar = format == tarfile.USTAR_FORMAT
    folder = "d" * (90 if ustar else 300)
    listed = [f"{folder}/{'f' * (40 if ustar else 250)}_{i}.png" for i in range(5)]
    listed += [f"odd/{os.fsdecode(name)}.png" for name in ODD]
    path = tar(
        tmp_path / "x.tar", [(n, SOUND) for n in listed], format=format, errors="surrogateescape"
    )
    for _ in range(2):  # the second time through the kept index
        source = TarSource(path, str(tmp_path / "index"))
        assert source.names(np.arange(len(source))) == [f"x.tar/{name}" for name in listed]
        assert all(is_line(source.name(i)) for i in range(len(source)))
        assert source.remarks == []


# Members of a tar, and which of them are the images, in their order.
DOTTED = {
    "dates": ([f"d/22.05.{i:02}.png" for i in range(20)], None),
    "hours": ([f"{h:02}.{m:02}.jpg" for h in range(3) for m in range(3)], None),
    "versions": (["v1.2.0.png", "v1.2.1.png", "v1.10.png", "v2.png"], None),
    "decimals": (["x_0.5.png", "x_0.25.png", "x_1.0.png"], None),
    "seconds": (["a.1.5s.png", "a.1.6s.png"], None),
    "with classes": (["7.1.png", "7.1.cls", "7.2.png", "7.2.cls"], [0, 2]),
    "masks of dates": (["1.2.png", "1.2.mask.png", "1.3.png", "1.3.mask.png"], [0, 2]),
    "web data set": (["7.cls", "7.mask.png", "7.png", "8.png"], [2, 3]),
    "words": (["7.left.png", "7.right.png", "8.png"], [0, 2]),
    "mixed": (["7.0.png", "7.1.png", "7.cls"], [0]),
    "single": (["a.b.c.png", "d.e.png"], None),
    "folders": (["1/7.png", "2/7.png"], None),
    "same name twice": (["7.png", "7.png"], [0]),
    "capitals": (["7.PNG", "7.Cls", "X.7.PnG"], [0, 2]),
}


def dotted_at_random(seed):
    """Names of one to four numbers with dots between, perhaps each with a class: all are images."""
    rng = np.random.default_rng(seed)
    depth, with_classes = int(rng.integers(1, 5)), seed % 2
    numbers = {tuple(rng.integers(0, 30, depth).tolist()) for _ in range(int(rng.integers(2, 15)))}
    listed = []
    for number in sorted(numbers):
        name = f"{'d/' * (seed % 3)}{'.'.join(f'{n:02}' for n in number)}"
        listed += [f"{name}.jpg", f"{name}.cls"] if with_classes else [f"{name}.png"]
    return listed, [n for n, name in enumerate(listed) if not name.endswith("cls")]


DOTTED |= {f"random {seed}": dotted_at_random(seed) for seed in range(8)}


@pytest.mark.parametrize("case", DOTTED)
def test_no_image_is_passed_over_without_a_word(tmp_path, case):
    listed, expected = DOTTED[case]
    places = range(len(listed)) if expected is None else expected
    contents = [
        b"%d" % n if name.lower().endswith("cls") else SOUND for n, name in enumerate(listed)
    ]
    source = TarSource(tar(tmp_path / "x.tar", zip(listed, contents, strict=True)))
    assert source.names(np.arange(len(source))) == [f"x.tar/{listed[n]}" for n in places]
    passed = sum(name.lower().endswith("png") or name.endswith("jpg") for name in listed) - len(
        places
    )
    said = [
        f"data_dir={tmp_path}/x.tar: {passed} further images of examples that have one are left out"
    ]
    assert source.remarks == (said if passed else [])
    if case == "with classes":
        np.testing.assert_array_equal(source.labels(np.arange(2)), [1, 3])


def test_what_no_example_is_made_of_is_counted(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in (
            "a.png",
            "__MACOSX/._a.png",
            "__MACOSX/a.png",
            "@eaDir/a.png",
            ".git/b.png",
            "./c/.x.png",
            "b.txt",
            "./c/d.png",
        ):
            member = tarfile.TarInfo(name)
            member.size = len(SOUND)
            archive.addfile(member, io.BytesIO(SOUND))
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("hard.png", tarfile.LNKTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("dir", tarfile.DIRTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.png"
            archive.addfile(member)
    source = TarSource(str(tmp_path / "x.tar"))
    assert source.names(np.arange(2)) == ["x.tar/a.png", "x.tar/./c/d.png"]
    (said,) = source.remarks
    for words in (
        f"3 {names.HIDDEN}",
        f"2 {names.SYSTEM}",
        "3 links, devices and sparse files",
        "1 examples without an image",
    ):
        assert words in said, said


SYSTEMS = [
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "lost+found",
    "@Recycle",
    "System Volume Information",
    "RECYCLER",
    "@tmp",
    "@Recently-Snapshot",
    "@sharesnap",
    "#snapshot",
    "~snapshot",
    "Network Trash Folder",
    "Temporary Items",
]


@pytest.mark.parametrize("system", [*SYSTEMS, *(name.upper() for name in SYSTEMS[1:7])])
def test_folders_of_systems_are_left_out_and_said(tmp_path, system):
    for name in (
        "a.png",
        f"{system}/a.png",
        f"b/{system}/deep/a.png",
        "b/c.png",
        f"b/{system}.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(SOUND)
    source = FolderSource(str(tmp_path))
    assert {source.files[i] for i in range(len(source))} == {"a.png", f"b/{system}.png", "b/c.png"}
    assert remarks_of(source) == [f"data_dir={tmp_path}: 2 {names.SYSTEM} are left out"]


def test_what_a_folder_holds_beside_images_is_said_in_one_line(tmp_path):
    for name in (
        "a.png",
        ".b.png",
        ".git/c.png",
        "e.txt",
        "f.TXT",
        "no_ending",
        "g.\x1b[2J",
        "h/i.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(SOUND)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "z").symlink_to(tmp_path / "h")
    source = FolderSource(str(tmp_path))
    assert len(source) == 2
    (said,) = source.remarks
    assert said == (
        f"data_dir={tmp_path}: 2 {names.HIDDEN}, 1 {names.NO_FILE}, 1 {names.TWICE}, "
        "4 other files there are left out, by their "
        r"ending: 2 .txt, 1 no ending, 1 .\x1b[2j"
    )
    assert FolderSource(str(tmp_path / "h")).remarks == []


def test_names_of_tars_that_are_called_alike_stay_apart(tmp_path):
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        tar(tmp_path / folder / "x.tar", [("0.png", SOUND)])
    source = TarSource(f"{tmp_path}/{{a,b/c}}/x.tar")
    assert source.names(np.arange(2)) == ["a/x.tar/0.png", "b/c/x.tar/0.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_whatever_is_printed_a_console_takes(encoding):
    raw = io.BytesIO()
    console = Console(out=io.TextIOWrapper(raw, encoding, newline="\n"))
    for name in (*ODD, *random_names(7)):
        text = os.fsdecode(name)
        console.facts({"name": text})
        console.line(f"one\n{text.replace(chr(10), '')}")
        console.progress(text)
    content = raw.getvalue().decode(encoding)
    assert content.replace("\n", "").isprintable()
    assert content.count("\n") == 4 * len([*ODD, *random_names(7)])


@pytest.mark.parametrize("name", ODD)
def test_an_error_is_one_line_whatever_it_quotes(name, capsys):
    def main(argv):
        raise UserError(f"data_dir={os.fsdecode(name)} is no folder")

    with pytest.raises(SystemExit) as ended:
        command_line.guarded(main, [])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"error: data_dir={printable(name)} is no folder\n"


def test_damaged_images_are_named_on_one_line(tmp_path, caplog):
    damaged = fill(tmp_path, ODD)
    source, told = FolderSource(str(tmp_path)), DamagedImages(len(ODD))
    for index in range(len(source)):
        if source.files[index] in damaged:
            told.add(described(source, index))
    assert len(told.names) == len(damaged)
    assert all(is_line(record.getMessage()) for record in caplog.records)
    json.dumps(list(told.names)).encode()


def test_an_index_of_a_folder_of_any_name_is_kept(tmp_path):
    for name in (b"caf\xe9", "猫".encode() * 60, b"set{1}", b"[a]"):
        folder = os.path.join(os.fsencode(tmp_path), name)
        os.mkdir(folder)
        path = os.fsdecode(folder)
        tar(f"{path}/x.tar", [("0.png", SOUND)])
        for where in (path, f"{path}/x.tar", f"{path}/*.tar"):
            if where.endswith("*.tar") and "{" in where:
                continue
            assert TarSource(where, str(tmp_path / "index")).names(np.zeros(1, np.int64)) == [
                "x.tar/0.png"
            ]


def test_names_take_their_length_and_four_bytes():
    paths = [f"n{i % 7:04d}/ImageNet_{i:08d}.JPEG" for i in range(10_000)] + ["å", "b\udcff", ""]
    kept = Names(paths)
    assert kept.nbytes <= sum(len(p) + 4 for p in paths) + 16
    both = Names.joined([kept, Names([]), Names(["z"])])
    assert [both[i] for i in range(len(both))] == [*paths, "z"]


def test_a_path_of_a_bucket_that_is_no_utf8_is_an_error_of_the_file():
    with pytest.raises(OSError, match="UTF-8"):
        store.read("gs://bucket/caf\udce9.png")
    with pytest.raises(OSError, match="NUL"):
        store.read("a\0b")
