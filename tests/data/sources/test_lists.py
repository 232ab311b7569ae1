"""A list is read in whatever way it is written, or refused with its line; no name is lost in it."""

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.lists import read_list, text_lines
from moco_jax.data.sources.refusals import described
from tests.data.pictures import encoded, write

FILES = [f"{c}/{n}.png" for c in ("ant", "bee cat", "cow,dog") for n in range(4)]
CLASSES = [file.split("/")[0] for file in FILES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lists")
    content = encoded("PNG", pixels=np.zeros((4, 4, 3), np.uint8))
    write(place, dict.fromkeys(FILES, content))
    (place / "home").symlink_to(place)
    return place


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def lines(form, end="\n", files=FILES):
    return end.join(form(file, file.split("/")[0]) for file in files) + end


PLAIN = {
    "unix": lines(lambda f, c: f),
    "crlf": lines(lambda f, c: f, "\r\n"),
    "old mac": lines(lambda f, c: f, "\r"),
    "no last end": lines(lambda f, c: f)[:-1],
    "empty lines": lines(lambda f, c: f, "\n\n  \n"),
    "mark": "\ufeff" + lines(lambda f, c: f),
    "dot slash": lines(lambda f, c: f"./{f}"),
    "trailing blanks": lines(lambda f, c: f + " " * len(c)),
    "leading blanks": lines(lambda f, c: f"  {f}"),
    "double quotes": lines(lambda f, c: quoted(f)),
    "single quotes": lines(lambda f, c: f"'{f}'"),
    "home": lines(lambda f, c: f"~/{f}"),
    "header": "path\n" + lines(lambda f, c: f),
    "empty classes": lines(lambda f, c: f"{f}\t"),
}
CLASSED = {
    "tab": lines(lambda f, c: f"{f}\t{c}"),
    "tab, crlf": lines(lambda f, c: f"{f}\t{c}", "\r\n"),
    "tab, old mac": lines(lambda f, c: f"{f}\t{c}", "\r"),
    "tab, header": "image\tlabel\n" + lines(lambda f, c: f"{f}\t{c}"),
    "blank": lines(lambda f, c: f"{f} {c}"),
    "blanks": lines(lambda f, c: f"{f}    {c}  "),
    "blank, quotes": lines(lambda f, c: f"{quoted(f)} {c}"),
    "csv": lines(lambda f, c: f"{quoted(f)},{quoted(c)}"),
    "csv, header": "path,class\n" + lines(lambda f, c: f"{quoted(f)},{quoted(c)}"),
    "csv, blanks, crlf": lines(lambda f, c: f"{quoted(f)}, {quoted(c)} ", "\r\n"),
    "semicolon": lines(lambda f, c: f"{f};{c}"),
    "semicolon, header": '"file";"class"\n' + lines(lambda f, c: f"{f};{c}"),
}


@pytest.mark.parametrize("way", [*PLAIN, *CLASSED])
def test_a_list_is_read_however_it_is_written(folder, way, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    path = folder / "list"
    path.write_bytes((PLAIN | CLASSED)[way].encode())
    source = FolderSource(str(path))
    assert [source.trouble(i) for i in range(len(source))] == [""] * len(FILES)
    endings = [
        source.files[i].removeprefix("./").removeprefix(f"{folder}/") for i in range(len(source))
    ]
    assert endings == FILES
    assert bool(source.remarks) == ("header" in way)
    numbers = source.labels(np.arange(len(source)))
    if way in PLAIN:
        assert numbers is None
    else:
        assert [source.classes[n] for n in numbers] == CLASSES


def test_a_list_of_utf16_is_read(folder):
    (folder / "list").write_text(PLAIN["crlf"], "utf-16")
    assert len(FolderSource(str(folder / "list"))) == len(FILES)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("gone.png\n", "line 1 (gone.png) is no such file"),
        (
            "gone.png\nalso/gone.png\n",
            "line 1 (gone.png) is no such file, nor are 1 more of its files there",
        ),
        ("gone.png 3\n", "line 1 (gone.png) is no such file"),
        ("7 ant/0.png\n", "line 1 (7 ant/0.png) is no such file"),
        ("ant/0.png,ant/1.png\n", "line 1 (ant/0.png,ant/1.png) is no such file"),
        ("ant\\0.png\n", r"line 1 (ant\0.png) is no such file"),
        ("-rw-r--r-- 1 me me 84 ant/0.png\n", "is no such file"),
        ('["ant/0.png",\n', "line 1"),
        ("ant/0.png,ant,train\n", "line 1 has 3 columns"),
        ("path,class,split\nant/0.png,ant,train\n", "line 2 has 3 columns"),
        ("ant/0.png\nant/1.png,ant\n", "line 2 differs in having a class"),
        ("ant/0.png\nant/1.png ant\n", "line 2 differs in having a class"),
        ("ant/0.png\n\nant/1.png;ant\n", "line 3 differs in having a class"),
        ("ant/0.png ant\nant/1.png\n", "line 2 differs in having a class"),
        ("ant/0.png,ant\nant/1.png\n", "line 2 differs in having a class"),
        ("ant/0.png\nword\n", "line 2 (word) is no such file"),
        ("ant/0.png\n\x1b[2J\n", r"line 2 (\x1b[2J) is no such file"),
        ("ant/0.png\0ant/1.png\0", "line 1 is no path"),
        ("ant/0.png\rant/1.png\n", r"line 1 (ant/0.png\rant/1.png) is no such file"),
        ("ant/0.png\n\t\n", "line 2 differs in having a class"),
        ("ant/0.png\n''\n", "line 2 is no path"),
    ],
)
def test_what_cannot_be_understood_is_refused_with_its_line(folder, content, line):
    path = folder / "list.txt"
    path.write_text(content, newline="")
    with pytest.raises(UserError) as caught:
        FolderSource(str(path))
    said = str(caught.value)
    assert said.startswith(f"data_dir={path}: line ")
    assert line in said
    assert "one image path a line" in said
    assert said.isprintable()


def test_a_file_of_an_odd_name_is_taken_as_it_stands(folder):
    content = (folder / FILES[0]).read_bytes()
    for name in (
        "photo.png copy",
        " lead.png",
        "'quoted.png'",
        "a,b.png",
        "x.png,y",
        "~.png",
        "no ending",
    ):
        write(folder, {name: content})
        (folder / "list").write_text(f"{name}\n")
        source = FolderSource(str(folder / "list"))
        assert (source.files[0], source.trouble(0), source.classes) == (name, "", [])


@pytest.mark.parametrize("seed", range(20))
def test_names_of_any_bytes_are_listed(tmp_path, seed):
    rng = np.random.default_rng(seed)
    made = [
        bytes(b for b in rng.bytes(12) if b not in b"\0/\n\r\t ") + b"%d.png" % n for n in range(5)
    ]
    for name in made:
        (tmp_path / name.decode("utf-8", "surrogateescape")).write_bytes(b"x")
    (tmp_path / "list").write_bytes(b"\n".join(made) + b"\n")
    source = FolderSource(str(tmp_path / "list"))
    assert [source.files[i].encode("utf-8", "surrogateescape") for i in range(5)] == made
    assert all(source.trouble(i) == "" and source.name(i).isprintable() for i in range(5))


def test_what_is_not_there_is_said_as_such(folder):
    (folder / "list").write_text("ant/0.png\ngone.png\nant\n")
    (folder / "list2").write_text("ant/0.png\ngone.png\n")
    with pytest.raises(UserError, match=r"line 3 \(ant\) is no such file"):
        FolderSource(str(folder / "list"))
    source = FolderSource(str(folder / "list2"))
    assert described(source, 1) == f"{folder}/gone.png: no such file or directory"
    with pytest.raises(UserError, match="there is no such file or folder"):
        FolderSource(str(folder / "nothing"))


def test_no_other_character_ends_a_line():
    odd = "a\u2028b\x85c\x0bd\x0ce\x1cf"
    assert text_lines(f"{odd}\n{odd}\r\n".encode()) == [odd, odd, ""]
    assert text_lines(b"caf\xe9\n") == ["caf\udce9", ""]
    with pytest.raises(ValueError, match="no text"):
        text_lines(b"\0\xff\n")


@pytest.mark.parametrize("separator", ["\t", ",", ";", " "])
def test_minus_one_is_no_class_and_other_negative_numbers_are_refused(tmp_path, separator):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"")
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{n}.png{separator}{c}\n" for n, c in enumerate(("0", "-1", "1"))))
    assert read_list(str(path))[1] == ["0", "", "1"]
    path.write_text("".join(f"{n}.png{separator}{c}\n" for n, c in enumerate(("0", "-7", "1"))))
    with pytest.raises(UserError, match="line 2 has the class -7"):
        read_list(str(path))
