"""The page on a run whose files may hold anything: damage is left out and said, the rest stays."""

import html
import json
import random

import numpy as np
import pytest
from etils import epath
from PIL import Image

from moco_jax.base.errors import UserError
from moco_jax.monitoring import run_log
from moco_jax.report.page import images, records, render
from moco_jax.report.page import run as runs_lib
from moco_jax.report.page.renewal import Renewal, SlowParts
from tests.report.test_page import Page, tiny, write_run

START = {"step": 0, "event": "start", "examples": 1437, "steps_per_epoch": 22, "schedule_shift": 0}
# JSON values of every kind, as text; NaN and the infinities are what Python writes.
VALUES = (
    "null",
    "true",
    '"text"',
    '"\\ud800 \\u202e \\u0000"',
    "[]",
    "[[1, null]]",
    "{}",
    '{"a": {"b": []}}',
    "-1",
    "0",
    "2.5",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "-1e308",
    "1e-320",
    "9" * 400,
    str(2**60),
    '""',
)
KEYS = (
    "step",
    "loss",
    "top1",
    "knn",
    "raw_knn",
    "feature_spread",
    "raw_feature_spread",
    "lr",
    "drift",
    "momentum",
    "images_per_second",
    "waiting_share",
    "effective_rank",
    "grad_norm",
    "spread",
    "event",
    "versions",
    "steps_per_epoch",
    "schedule_shift",
    "examples",
    "code",
    "command",
    "time",
    "devices",
    "hosts",
)
GOOD = [
    {"step": 11, "loss": 6.25, "top1": 0.125, "lr": 0.06},
    {"step": 22, "knn": 0.625, "feature_spread": 0.5},
    {"step": 33, "loss": 5.75, "top1": 0.25, "lr": 0.03},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workdir without checkpoints, whose files the tests write over."""
    return epath.Path(write_run(tmp_path_factory.mktemp("damage") / "run", tiny(), None))


def shown(place):
    """The page, and the lines on what it leaves out."""
    run, said = runs_lib.read([str(place)])[0], []
    return Page(render.page([run], [SlowParts()], say=said.append)), said


def write_records(place, *lines):
    kept = [json.dumps(START), *lines]
    (place / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))


def _line(chosen):
    """A record in which some values are of kinds that no run writes, or what is no record."""
    if chosen.random() < 0.15:
        return chosen.choice(VALUES)
    names = dict.fromkeys(chosen.sample(KEYS, chosen.randrange(1, 6)))
    members = {"step": str(chosen.randrange(50))} if chosen.random() < 0.8 else {}
    if chosen.random() < 0.4:
        members["event"] = chosen.choice(['"start"', '"finding"', '"spike"', '"gradient_spike"'])
    members |= {name: chosen.choice(VALUES) for name in names if chosen.random() < 0.8}
    return "{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}"


@pytest.mark.parametrize("seed", range(24))
def test_records_of_any_json_leave_a_page_with_the_others(place, seed):
    chosen = random.Random(seed)
    lines = [_line(chosen) for _ in range(chosen.randrange(1, 8))]
    write_records(place, *map(json.dumps, GOOD), *lines)
    page, said = shown(place)
    text = (place / "metrics.jsonl").read_text()
    unusable = [
        line
        for line in text.splitlines()
        if run_log.record_of(line.encode()) is None or records.wrong(json.loads(line))
    ]
    assert any(f"{len(unusable)} of {len(text.splitlines())} records" in s for s in said) == bool(
        unusable
    )
    # Nothing but records is left out: what is kept of them does not make a part fail.
    assert len(said) == bool(unusable), said
    rows = {tuple(row) for row in page.table("Contrastive loss")}
    assert {row[1] for row in rows} >= {"6.25", "5.75"}
    assert "62.5" in {row[1] for row in page.table("kNN accuracy, per cent")}
    every = "".join(html.unescape(a.get("aria-label") or "") for _, a in page.elements)
    assert "\ud800" not in every


def test_what_a_record_must_be():
    sound = [
        START,
        *GOOD,
        {"step": 3, "event": "skipped_step", "grad_norm": "nan", "indices": [1]},
        {"step": 3, "loss": float("nan")},
    ]
    assert records.sound(sound, ()) == (sound, [])
    for record, words in {
        "7": "it is 7 and no object",
        '{"loss": 1}': "step=None is no number",
        '{"step": true}': "step=True",
        '{"step": -1}': "step=-1",
        '{"step": 1e3}': "step=1000.0",
        '{"step": 1, "loss": "6"}': "loss='6' is no number",
        '{"step": 1, "loss": true}': "loss=True is no number",
        '{"step": 1, "event": []}': "event=[] is no name",
        '{"step": 1, "event": "start", "examples": 5}': "steps_per_epoch=None",
    }.items():
        kept, (said,) = records.sound([*sound, json.loads(record)], ())
        assert kept == sound
        assert words in said
        assert said.startswith(f"1 of {len(sound) + 1} records")


@pytest.mark.parametrize("seed", range(24))
def test_evaluations_of_any_json_are_shown_or_left_out_and_said(place, seed):
    chosen = random.Random(seed)
    write_records(place)
    good = {
        "evaluation": "knn",
        "step": 44,
        "published": None,
        "results": [{"k": 20, "accuracy": 0.5}],
    }
    (place / "evaluate_good.json").write_text(json.dumps(good))
    members = {name: json.dumps(value) for name, value in good.items()}
    inner = f'[{{"k": {chosen.choice(VALUES)}, "accuracy": {chosen.choice(VALUES)}}}]'
    members |= chosen.choice(
        [
            {"results": chosen.choice(VALUES)},
            {"results": inner},
            {"published": chosen.choice(VALUES)},
            {"step": chosen.choice(VALUES)},
            {"evaluation": chosen.choice(VALUES)},
        ]
    )
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in members.items()) + "}"
    if chosen.random() < 0.3:
        text = chosen.choice([*VALUES, text[: len(text) // 2], "", "\x00", "[" * 10**5])
    (place / "evaluate_odd.json").write_text(text)
    page, said = shown(place)
    assert page.table("Results of good, run")[1] == ["20", "50.00 %"]
    told = any(line.startswith("run: the evaluation odd, as ") for line in said)
    here = any(name.startswith("How odd") for name, _ in page.tables)
    assert told != here
    assert len(said) == told
    for path in place.glob("evaluate_*.json"):
        path.unlink()


def test_evaluations_that_are_no_text_or_no_file(place):
    write_records(place)
    (place / "evaluate_a.json").write_bytes(b"\xff\xfe{}")
    (place / "evaluate_b.json").mkdir()
    _, said = shown(place)
    (place / "evaluate_a.json").unlink()
    (place / "evaluate_b.json").rmdir()
    assert [line.split(",")[0] for line in said] == [
        "run: the evaluation a",
        "run: the evaluation b",
    ]


@pytest.mark.parametrize("seed", range(24))
def test_damaged_pictures_are_left_out_and_said(place, seed):
    """A run's picture, with bytes changed or cut off: shown if PIL reads it, else said."""
    rng, path = np.random.default_rng(seed), place / "neighbours.png"
    write_records(place)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(str(path))
    content = bytearray(path.read_bytes())
    if seed % 3 == 0:
        content = content[: int(rng.integers(len(content)))]
    for at in rng.integers(0, max(len(content), 1), 3) if seed % 3 == 1 else ():
        content[at] ^= int(rng.integers(1, 256))
    if seed % 3 == 2:  # the header alone: sizes that are not there
        content[16:24] = rng.bytes(8)
    path.write_bytes(bytes(content))
    run, said = runs_lib.read([str(place)])[0], []
    look = SlowParts(missing={"map": "run: neighbours and map, as there is no checkpoint"})
    page = Page(render.page([run], [look], say=said.append))
    drawn = [a for a in page.of("img") if "as run drew them last" in a["alt"]]
    told = [line for line in said if line.startswith("run: the picture that it drew, as ")]
    assert len(drawn) + len(told) == 1
    assert len(said) == 1 + len(told)
    if seed % 3 == 0:
        assert told
    path.unlink()


def test_a_picture_of_many_pixels_is_not_decoded(tmp_path):
    path = epath.Path(tmp_path / "x.png")
    Image.new("1", (9000, 9000)).save(str(path))
    with pytest.raises(UserError, match="9000 x 9000 pixels; 20,000,000 are shown at most"):
        images.picture_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "7",
        '"x"',
        '{"epochs": "many"}',
        '{"lr": [1]}',
        '{"arch": 5}',
        '{"mean": {"a": 1}}',
        '{"batch_size": null}',
        "{",
    ],
)
def test_settings_of_another_shape_are_refused_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged") as error:
        runs_lib.read([str(tmp_path)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"epochs": 0}',
        '{"batch_size": 0}',
        '{"arch": "none"}',
        '{"augment": "?"}',
        '{"lr": NaN}',
        '{"key_encoder": "?"}',
        '{"dictionary": "?"}',
    ],
)
def test_settings_that_no_run_has_leave_what_does_not_need_them(tmp_path, text):
    place = epath.Path(write_run(tmp_path / "run", tiny(), None, []))
    whole = json.loads((place / "config.json").read_text()) | json.loads(text)
    (place / "config.json").write_text(json.dumps(whole))
    run, said = runs_lib.read([str(place)])[0], []
    page = Page(render.page([run], [SlowParts()], say=said.append))
    assert "All settings" in [name for name, _ in page.tables]
    assert all(line.startswith(("run: ", "the ", "curves, ")) and "\n" not in line for line in said)


def test_a_look_that_fails_in_any_way_is_said(place, monkeypatch):
    def fails(run):
        raise KeyError("params")

    write_records(place)
    monkeypatch.setattr(images, "view_pairs", fails)
    run = runs_lib.read([str(place)])[0]
    look = Renewal(0, print).at(run)
    assert look.missing == {"views": "run: view pairs, as KeyError 'params'"}


def test_folders_that_are_no_steps_are_no_checkpoints(place):
    for name in ("²", "044", "x", "44"):
        (place / "digests" / name).mkdir(parents=True, exist_ok=True)
    (place / "checkpoints" / "44").mkdir(parents=True, exist_ok=True)
    run = runs_lib.read([str(place)])[0]
    assert run.checkpoint() == 44
