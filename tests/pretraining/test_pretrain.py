"""One call goes from images to a report, an encoder for other tools, and a page on its use."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import moco_jax
from moco_jax.base.errors import UserError
from moco_jax.cli.commands import command_of
from moco_jax.config import recipe_files
from moco_jax.pretraining import work

TINY = dict(width=8, epochs=2, stem="imagenet", cpu_devices=0, eval_batch_size=64, workers=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 96 small pictures in two classes: light ones and dark ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(96):
        base = (60, 190)[number % 2]
        pixels = np.clip(base + rng.normal(0, 40, (30, 40, 3)), 0, 255).astype(np.uint8)
        place = folder / ("dark", "light")[number % 2] / f"{number}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place)
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """What one call makes of them, and what it prints."""
    out = tmp_path_factory.mktemp("made") / "encoder"
    return moco_jax.pretrain(data=photos, out=out, recipe="folder:cpu", **TINY), out


def test_scores_report_and_recipe_are_there(made, capsys):
    found, out = made
    assert found.finished
    assert {"raw_knn", "knn_before", "knn", "loss"} <= found.scores.keys()
    assert 0.4 < found.scores["knn"] <= 1
    assert found.verdict in str(found)
    assert "data:image/png;base64," in found._repr_html_()
    assert b"<html" in (out / "report.html").read_bytes()
    chosen = recipe_files.load(str(out / "recipe.py"))
    saved = json.loads((out / "config.json").read_text())
    assert {k: v for k, v in saved.items() if k != "workers"} == json.loads(
        json.dumps({k: v for k, v in chosen.to_dict().items() if k != "workers"})
    )
    assert chosen.image_size == 32
    assert re.search(
        r"config.image_size = 32  # the images' shorter side is 30", (out / "recipe.py").read_text()
    )
    # The same call finds it done, and leaves the same.
    again = moco_jax.pretrain(data=chosen.data_dir, out=out, recipe="folder:cpu", **TINY)
    assert again.scores == found.scores
    assert "epochs took" not in capsys.readouterr().out


def test_the_page_is_true(made, photos, monkeypatch):
    """Each block of Python on the page runs, and its encoder gives ours."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    _, out = made
    text = (out / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    monkeypatch.chdir(out)
    features = {}
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    chosen = recipe_files.load("recipe.py")
    scaled = ((images / 255 - chosen.mean) / chosen.std).astype(np.float32).transpose(0, 3, 1, 2)
    for block in blocks:
        known: dict = {}
        if "transformers" in block:
            pytest.importorskip("transformers")
        exec(block.replace("FOLDER", str(photos)), known)
        encoder = known["encoder"]
        if "import moco_jax" in block:
            assert known["features"].shape == (96, 64)
            features["moco_jax"] = np.asarray(encoder(images))
            continue
        with torch.no_grad():
            made_of = encoder.eval()(torch.from_numpy(scaled))
        pooled = getattr(made_of, "pooler_output", made_of)
        features["transformers" if "transformers" in block else "torch"] = pooled.reshape(4, -1)
    assert features.keys() == {"moco_jax", "torch", "transformers"}
    for name in ("torch", "transformers"):
        np.testing.assert_allclose(features[name], features["moco_jax"], atol=2e-5)


def test_wrong_words_are_one_line(photos, tmp_path):
    with pytest.raises(UserError, match=r"^epoch is not a setting; did you mean epochs"):
        moco_jax.pretrain(data=photos, out=tmp_path / "x", epoch=3)
    with pytest.raises(UserError, match="none is not there"):
        moco_jax.pretrain(data=photos / "none", out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data=x"], "--data=x needs --out too"),
        (["--out=x"], "--out=x needs --data too"),
        (["--data=x", "--out=y", "--workdir=z"], "--workdir=z goes with --config"),
        (["--config=digits", "--workdir=z", "--minutes=3"], "it is --config.minutes=3"),
        (["--data=x", "--out=y", "--config.epoch=3"], "did you mean epochs"),
        (["--data=x", "--out=y", "--allow_change=lr"], "--allow_change goes with --config"),
        (["--data=x", "--out=y", "--distributed"], "--distributed goes with --config"),
        (["--data=none", "--out=y", "--config", "nothing"], "nothing"),
    ],
)
def test_wrong_flags_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        command_of("pretrain").call(["moco-pretrain", *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize(
    "words", [["--config=configs/digits.py:v3"], ["--config", "configs/digits.py:v3"]]
)
def test_a_recipe_is_named_in_one_word_or_two(words, monkeypatch):
    asked = []

    def run(*arguments):
        asked.append(arguments)
        return "", 0

    monkeypatch.setattr(work, "run", run)
    call = ["moco-pretrain", "--data=x", *words, "--out=y", "--config.epochs=3", "--minutes=2"]
    command_of("pretrain").call(call)
    assert asked == [("x", "y", "configs/digits.py:v3", 2.0, {"epochs": 3})]
