"""The doctor tells each thing that is wrong by a line, lets none stop the rest, changes nothing."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from PIL import Image

from moco_jax.base import findings
from moco_jax.base.console import Console
from moco_jax.data.sources.folder import FolderSource
from moco_jax.doctor import images, rate, survey
from moco_jax.doctor.examination import Examination, Options, examine
from tests import smallest
from tests.config.test_config import load


def write_images(folder: Path, count: int = 40) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        patches = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        patches.resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{number:03}.jpg")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "good"
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """Forty good images and one of every fault."""
    folder = tmp_path_factory.mktemp("data") / "bad"
    write_images(folder)
    content = (folder / "000.jpg").read_bytes()
    (folder / "copy.jpg").write_bytes(content)
    Image.open(folder / "001.jpg").save(folder / "copied_pixels.png")
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("a page, not an image")
    (folder / "list.txt").write_text("not listed")
    Image.new("RGB", (9, 5), "red").save(folder / "tiny.png")
    Image.new("RGBA", (50, 50), (0, 0, 255, 9)).save(folder / "png.jpg", "PNG")
    return folder


SMALL = {
    "arch": smallest.ARCH,
    "width": 8,
    "stem": "cifar_stride2",
    "image_size": 32,
    "batch_size": 16,
    "bn_groups": 2,
    "shuffle_groups": 2,
    "queue_size": 32,
    "eval_batch_size": 8,
    "workers": 2,
    "epochs": 3,
}


def small(folder, **changes):
    config = load("folder")
    config.update(SMALL | {"data_dir": str(folder)} | changes)
    return config


def begin(config, step=None):
    """An examination, and what it prints."""
    out = io.StringIO()
    return Examination(config, findings.Report(Console(out=out)), step), out


@pytest.fixture
def doctor(tmp_path, monkeypatch):
    """A round that makes view pairs for an instant; returns the marks and the text."""
    monkeypatch.setattr(rate, "SECONDS", 0.1)
    monkeypatch.setattr(rate, "READ_SECONDS", 0.01)

    def run(config, place=None):
        out = io.StringIO()
        report = findings.Report(Console(out=out))
        out_dir, place = epath.Path(tmp_path / "out"), place and epath.Path(place)
        examine(config, report, Options(recipe_batch=16, out=out_dir, place=place))
        return report.marks, out.getvalue()

    return run


def line_with(text, words):
    (found,) = [line for line in text.splitlines() if words in line]
    return found.split(maxsplit=1)[0]


def test_a_good_folder_is_ready(good, doctor, tmp_path):
    marks, text = doctor(small(good), tmp_path / "new")
    assert findings.verdict(marks) == "ready", text
    for words in (
        "40 images of folder",
        "2 steps an epoch, 6 in 3 epochs",
        "looked at all 40 images",
        "none is damaged",
        "drawn: crop 20 to 100 %",
        "none is tiny",
        "none is there twice",
        "every ending is that of the content",
        "the train step compiles",
        "s, measured",
        "view pairs a second",
        "the run begins at step 0",
    ):
        assert line_with(text, words) in ("ok", "note"), text
    sheet = np.asarray(Image.open(tmp_path / "out/views.png").convert("RGB"))
    assert sheet.shape[0] > 500
    assert sheet.std() > 30
    assert not (tmp_path / "new").exists()


def test_every_fault_of_a_folder_has_its_line(bad, monkeypatch):
    monkeypatch.setattr(rate, "SECONDS", 0.1)
    examination, out = begin(small(bad, max_bad_images=2), step=1e-5)
    examination.settings(16)
    examination.dataset(None)
    examination.images(None)
    examination.input_rate()
    marks, text = examination.report.marks, out.getvalue()
    expected = {
        "3 of 47 cannot be decoded": "fault",
        "1 of 47 are tiny": "warning",
        "2 of 47 are copies of others": "warning",
        "1 of 47 have transparent parts": "warning",
        "1 of 47 have an ending that is not their content's": "warning",
        "1 other files there are left out, by their ending: 1 .txt": "note",
        "the devices would wait": "warning",
    }
    for words, mark in expected.items():
        assert line_with(text, words) == mark, text
    for name, why in (
        ("cut.jpg", "JPEG that is cut"),
        ("empty.jpg", "empty"),
        ("text.jpg", "no image"),
        ("tiny.png", "9 x 5"),
        ("png.jpg", "PNG"),
        ("000.jpg", "copy.jpg (the same bytes)"),
        ("001.jpg", "copied_pixels.png (the same pixels)"),
    ):
        assert any(name in x and why in x for x in text.splitlines()), (name, text)
    assert findings.verdict(marks) == "not ready: 1 fault, 5 warnings"


def test_a_config_that_cannot_run_does_not_stop_the_rest(bad, doctor, tmp_path):
    (tmp_path / "file").write_text("")
    marks, text = doctor(small(bad, batch_size=15), tmp_path / "file")
    assert line_with(text, "batch_size=15 does not divide into bn_groups=2") == "fault"
    assert line_with(text, "not examined until the settings' fault is mended") == "note"
    assert line_with(text, "3 of 47 cannot be decoded") == "warning"
    assert line_with(text, "view pairs a second; --step_seconds=S") == "note"
    assert line_with(text, "is a file; give a folder") == "fault"
    assert marks.count("fault") == 2
    marks, text = doctor(small(tmp_path / "none", augment="v9"))
    assert line_with(text, "augment='v9' is unknown") == "fault"
    assert line_with(text, "none is no folder") == "fault"
    assert text.count("not examined until") == 4
    assert findings.verdict(marks) == "not ready: 2 faults"


def test_images_that_the_devices_will_hold(good, bad, doctor):
    marks, text = doctor(small(good, augment_on="resident", augment="cifar"))
    assert findings.verdict(marks) == "ready", text
    for words in (
        "all are 60 x 48 pixels",
        "the 40 images take 43.2 kB of it on each device; a step moves its batch's, 138 kB",
        "s, measured",
        "this host says of which images",
        "the run's 6 steps take about",
    ):
        assert line_with(text, words) == "ok", text
    examination, out = begin(small(bad, augment_on="resident"))
    examination.devices()
    examination.settings(16)
    examination.devices()
    assert out.getvalue().count("not examined until") == 2
    examination.dataset(None)
    examination.images(None)
    assert line_with(out.getvalue(), "images differ in size, and augment_on='resident'") == "fault"
    assert "tiny.png: 9 x 5" in out.getvalue()


def test_too_few_images_for_a_batch_are_looked_at_all_the_same(good, tmp_path, monkeypatch):
    monkeypatch.setattr(rate, "SECONDS", 0.1)
    examination, out = begin(small(good, batch_size=64, queue_size=64))
    examination.settings(64)
    examination.dataset(None)
    examination.views(epath.Path(tmp_path / "views.png"))
    examination.input_rate()
    text = out.getvalue()
    assert line_with(text, "has 40 examples in split 'train', fewer than batch_size=64") == "fault"
    assert line_with(text, "view pairs a second") == "note"
    assert (tmp_path / "views.png").exists()
    (tmp_path / "file").write_text("")
    examination.views(epath.Path(tmp_path / "file/views.png"))
    assert line_with(out.getvalue(), "make room, or make its folder writable") == "fault"


def test_a_sample_speaks_for_the_whole(bad):
    source = FolderSource(str(bad))
    wrong = [i for i, name in enumerate(source.files) if name == "cut.jpg"]
    some = survey.survey(source, np.asarray([*wrong, 0, 1, 2]), 1, lambda done: None)
    (said,) = images.damaged(some, source.name, True, 100)
    assert said.severity == "warning"
    assert "1 of 4 cannot be decoded, so about 12 of all" in said.text
    assert images.damaged(some, source.name, True, 11)[0].severity == "fault"
    none = survey.survey(source, np.asarray(wrong), 1, lambda done: None)
    assert images.damaged(none, source.name, True, 100)[0].text == "none of 1 images can be decoded"


def command(*words):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "moco_jax.doctor", *words]
    return subprocess.run(program, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--config=configs/RECIPE.py is needed"),
        (["--config=configs/digits.py", "--sample=0"], "sample"),
    ],
)
def test_a_wrong_command_line_ends_with_one_line_and_status_2(words, message):
    ended = command(*words)
    assert ended.returncode == 2
    (said,) = [x for x in ended.stderr.splitlines() if x.startswith("error:")]
    assert message in said


def test_the_command_ends_with_verdict_and_status(tmp_path):
    words = [
        "--config=configs/folder.py",
        "--config.batch_size=30",
        f"--config.data_dir={tmp_path}/none",
    ]
    ended = command(*words, f"--out={tmp_path}/out")
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout.splitlines()[-1] == "verdict: not ready: 2 faults"
