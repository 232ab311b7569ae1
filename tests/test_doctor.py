"""The doctor finds what is wrong, each thing by its own line, lets nothing stop the rest, and changes nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from moco_jax import digests, files
from moco_jax.checks import findings, images, memory, rate, settings, survey, workdir
from moco_jax.checks.examination import Examination, examine
from moco_jax.data.sources.folder import FolderSource
from moco_jax.report.console import Console
from tests.test_checkpoint import files_of, flip
from tests.test_config import RECIPES, load


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
    Image.new("RGB", (50, 50), "blue").save(folder / "png.jpg", "PNG")
    return folder


def small(folder, **changes):
    config = load("folder")
    config.update(dict(
        data_dir=str(folder), arch="resnet10", width=8, stem="cifar_stride2", image_size=32, batch_size=16,
        bn_groups=2, shuffle_groups=2, queue_size=32, eval_batch_size=8, workers=2, epochs=3,
    ))  # fmt: skip
    config.update(changes)
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
        examine(
            config, report, recipe_batch=16, count=None, step=None, out=epath.Path(tmp_path / "out"),
            index_dir=None, place=place and epath.Path(place), allow_change=set(),
        )  # fmt: skip
        return report.marks, out.getvalue()

    return run


def line_with(text, words):
    (found,) = [line for line in text.splitlines() if words in line]
    return found.split(maxsplit=1)[0]


def test_a_good_folder_is_ready(good, doctor, tmp_path):
    marks, text = doctor(small(good), tmp_path / "new")
    assert findings.verdict(marks) == "ready", text
    for words in ("40 images of folder", "2 steps an epoch, 6 in 3 epochs", "looked at all 40 images", "none is damaged",
                  "none is tiny", "none is there twice", "every ending is that of the content",
                  "the train step compiles", "s, measured", "view pairs a second", "the run begins at step 0"):  # fmt: skip
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
    assert findings.verdict(marks) == "not ready: 1 fault, 4 warnings"


def save(place, step):
    """What a run leaves of a checkpoint, its arrays aside: files and their digests."""
    folder = epath.Path(place) / "checkpoints" / str(step)
    for name in ("state/d/array", "about/metadata"):
        files.write(folder / name, f"{name} at {step}".encode())
    digests.write(folder, epath.Path(place) / "digests" / str(step))


@pytest.fixture
def place(tmp_path):
    """A workdir with checkpoints at 2, 4 and 6."""
    for step in (2, 4, 6):
        save(tmp_path / "run", step)
    (tmp_path / "run/config.json").write_text(json.dumps(small("").to_dict()))
    return tmp_path / "run"


def look_at(place, allow_change=(), **changes):
    """The section on a workdir alone."""
    examination, out = begin(small("", **changes))
    examination.workdir(epath.Path(place), set(allow_change))
    return examination.report.marks, out.getvalue()


def test_a_workdir_with_a_damaged_checkpoint_and_another_recipe(place):
    flip(files_of(place, 6)[0], 5)
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    marks, text = look_at(place)
    assert findings.verdict(marks) == "ready, with 1 warning", text
    assert line_with(text, "checkpoint 6 is damaged") == "warning"
    assert line_with(text, "checkpoint 4 is sound: the run goes on after step 4") == "ok"
    changed = look_at(place, temperature=0.1)[1]
    assert line_with(changed, "(temperature: 0.2 -> 0.1)") == "fault"
    assert line_with(changed, "checkpoint 6 is damaged") == "warning"
    allowed = look_at(place, ["temperature"], temperature=0.1)[1]
    assert line_with(allowed, "changed by --allow_change: temperature") == "note"
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_a_finished_run_and_one_without_a_sound_checkpoint_are_told(place):
    (told,) = workdir.checkpoints(epath.Path(place), 6)
    assert "at its end, step 6 of 6" in told.text
    for step in (2, 4, 6):
        flip(files_of(place, step)[0], 0)
    marks, text = look_at(place)
    assert marks.count("fault") == 1, text
    assert line_with(text, "has no sound checkpoint left") == "fault"
    (place / "config.json").write_text("{")
    assert line_with(look_at(place)[1], "config.json is damaged") == "fault"


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
    assert line_with(out.getvalue(), "give a folder of yours: --out=FOLDER") == "fault"


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_give_no_cause_for_advice(name):
    config = load(name)
    assert settings.advice(config, config.batch_size) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 1024}, "lr_reference_batch=256 makes it 0.12"),
        (
            {"bn_groups": 64, "shuffle_groups": 4, "lr_reference_batch": 256},
            "bn_groups=32 makes them 8",
        ),
        ({"shuffle_groups": 1}, "does not shuffle BatchNorm"),
        ({"momentum": 0.9}, "0.9 gives 55.2"),
    ],
)
def test_unusual_settings_get_one_advice_with_a_remedy_that_works(changes, words):
    config = load("imagenet")
    config.update(changes)
    (said,) = settings.advice(config, 256)
    assert said.mark == "warning"
    assert words in said.text


def test_a_sample_is_spread_and_a_full_one_is_everything():
    np.testing.assert_array_equal(survey.spread(7, 9, 0), np.arange(7))
    chosen = survey.spread(1_000_003, 200, 0)
    assert len(set(chosen.tolist())) == 200
    assert np.diff(chosen).min() > 0
    assert np.diff(chosen).max() < 2 * 1_000_003 / 199
    assert (chosen != survey.spread(1_000_003, 200, 1)).any()


def test_a_sample_speaks_for_the_whole(bad):
    source = FolderSource(str(bad))
    wrong = [i for i, name in enumerate(source.files) if name == "cut.jpg"]
    some = survey.survey(source, np.asarray([*wrong, 0, 1, 2]), 1, lambda done, left: None)
    (said,) = images.damaged(some, source.name, True, 100)
    assert said.mark == "warning"
    assert "1 of 4 cannot be decoded, so about 12 of all" in said.text
    assert images.damaged(some, source.name, True, 11)[0].mark == "fault"
    none = survey.survey(source, np.asarray(wrong), 1, lambda done, left: None)
    assert images.damaged(none, source.name, True, 100)[0].text == "none of 1 images can be decoded"


def test_whether_a_host_feeds_its_devices():
    remedies = ["more"]
    assert rate.feeds(1000, 256, 0.5, False, remedies).mark == "ok"
    assert rate.feeds(500, 256, 0.5, False, remedies).mark == "note"
    starved = rate.feeds(100, 256, 0.5, False, remedies)
    assert (starved.mark, starved.details) == ("warning", ("more",))
    assert "steps of 0.5 s ask for 512" in starved.text
    assert "wait 80% of the time" in starved.text
    assert rate.feeds(100, 256, 0.5, True, remedies).mark == "note"


def test_remedies_follow_from_what_is_slow():
    common = dict(cores=8, folder=True, image_size=224, on_device=False, blurs=True)
    slow_disk = rate.remedies(100, 400, 110, workers=0, side=300, **common)
    assert "pack the folder" in slow_disk[0]
    assert any("36 cores" in x for x in slow_disk)
    few_workers = rate.remedies(100, 500, 5000, workers=2, side=2000, **common)
    assert few_workers[0].startswith("--config.workers=0")
    assert "shorter side is 256 instead of 2000" in few_workers[1]
    assert not any("pack" in x for x in few_workers)


def test_errors_that_a_line_can_tell_are_faults_and_bugs_are_not_hidden():
    out = io.StringIO()
    report = findings.Report(Console(out=out), limit=2)
    with report.section("devices"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long list")
    with pytest.raises(ZeroDivisionError), report.section("bug"):
        _ = 1 / 0
    report.add(findings.Finding("note", "seen", ("a", "b", "c")))
    text = out.getvalue()
    assert "out of memory; a smaller batch_size or more devices\n" in text
    assert "and a long list" not in text
    assert text.splitlines()[-3:] == [
        "             a",
        "             b",
        "             and 1 more; --full names all",
    ]
    assert findings.verdict(report.marks) == "not ready: 1 fault"


def test_memory_that_does_not_suffice():
    giga = 10**9

    def mark(limit):
        return memory.step(giga, 8 * giga, giga, giga // 10, limit, "the device has", 256, 65536)[0]

    assert mark(16 * giga).mark == "ok"
    assert mark(10 * giga + 1).mark == "warning"
    assert mark(6 * giga).mark == "fault"
    assert "a batch_size of about 125 fits" in mark(6 * giga).text
    assert mark(giga // 2).text.endswith("take a smaller arch, or take more devices")
    assert mark(0).mark == "note"
    assert memory.host(10**6, 20, 10**6, 2048, 16 * giga)[0].mark == "warning"
    assert memory.host(10**6, 20, 10**5, 2048, 16 * giga)[0].mark == "ok"


def test_room_for_checkpoints():
    mega = 10**6
    assert workdir.room(1000 * mega, 0, 100 * mega, 2).mark == "ok"
    assert workdir.room(300 * mega, 0, 100 * mega, 2).mark == "warning"
    assert workdir.room(300 * mega, 200 * mega, 100 * mega, 2).mark == "ok"
    assert workdir.room(110 * mega, 300 * mega, 100 * mega, 2).mark == "fault"


def command(*words):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, "-m", "moco_jax.doctor", *words], capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


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
