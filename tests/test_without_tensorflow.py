"""Resident runs, their scores and evaluations where TensorFlow, TFDS and clu are missing."""

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from moco_jax.data import images, packing
from moco_jax.data.sources import open_source
from tests import xla
from tests.data.pictures import decoded, encoded, write
from tests.data.sources.toy_tfds import write_toy
from tests.markdown import ROOT

HIDDEN = ("tensorflow", "tensorflow_datasets", "clu", "tensorboard")
# Goes through command lines in a process for which the packages named first do not exist.
PROGRAM = '''
import json, sys
hidden = set(json.loads(sys.argv[1]))

class Without:
    """A finder of modules that does not find the hidden ones."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        found = name.partition(".")[0] not in hidden
        return self.finder.find_spec(name, path, target) if found else None

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
from moco_jax.cli.commands import command_of
for words in json.loads(sys.argv[2]):
    for stream in (sys.stdout, sys.stderr):
        print("BEGIN", file=stream, flush=True)
    try:
        command_of(words[0]).call(words)
    except SystemExit as error:
        print("ended with", error.code)
loaded = {name.partition(".")[0] for name in sys.modules}
assert not hidden & loaded, hidden & loaded
'''
TINY = (
    "--config.width=4",
    "--config.bn_groups=1",
    "--config.shuffle_groups=1",
    "--config.queue_size=64",
    "--config.log_every=1",
    "--config.monitor_every=1",
    "--config.augment_on=resident",
)
SETS = ("folder", "tar", "tfrecord", "tfds:toy")
IMAGES, SIDES = 40, (36, 44)


def run(lines, hidden):
    """What each of the command `lines` printed, and its errors."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(hidden), json.dumps(lines)]
    found = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": xla.flags(1)}
    done = subprocess.run(command, capture_output=True, text=True, env=found)
    assert done.returncode == 0, done.stderr
    printed = (text.split("BEGIN\n")[1:] for text in (done.stdout, done.stderr))
    return list(zip(*printed, strict=True))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same labelled images as a folder of JPEG and PNG, a tar, packed shards and a TFDS set."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    files = {}
    for number in range(IMAGES):
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        small[..., number % 2] //= 3  # the two classes differ in colour
        pixels = np.asarray(Image.fromarray(small).resize(SIDES[::-1], Image.Resampling.BICUBIC))
        kind = ("JPEG", "PNG")[number // 2 % 2]
        name = f"{('cat', 'dog')[number % 2]}/{number:02d}.{kind.lower()}"
        files[name] = encoded(kind, pixels=pixels)
    folder = write(root / "folder", files)
    (root / "tar").mkdir()
    with tarfile.open(root / "tar/all.tar", "w") as archive:
        for name, content in files.items():
            label = str(int(name.startswith("dog"))).encode()
            for member, text in ((name, content), (name.rpartition(".")[0] + ".cls", label)):
                header = tarfile.TarInfo(member)
                header.size = len(text)
                archive.addfile(header, io.BytesIO(text))
    packing.pack(packing.make_plan(folder, str(root / "tfrecord"), 2, "tfrecord"), lambda *_: None)
    labels = [int(name.startswith("dog")) for name in files]
    write_toy(root / "tfds", [*files.values()], labels, ("cat", "dog"))
    return {kind: str(root / kind.partition(":")[0]) for kind in SETS}


def lines_of(places, out):
    """Command lines of a run on the digits, and of one on each of `places`, with what follows."""
    digits = ["--config.batch_size=256", "--config.epochs=2", "--config.knn_examples=300"]
    lines = [["pretrain", "--config=tests/smallest.py", f"--workdir={out}/digits", *TINY, *digits]]
    lines += [
        ["evaluate", "knn", f"--workdir={out}/digits"],
        ["evaluate", "linear", f"--workdir={out}/digits", "--epochs=1", "--rates=1", "--decays=0"],
        ["report", f"{out}/digits", "--images=30"],
    ]
    for kind in SETS:
        place = f"{out}/{kind.partition(':')[0]}"
        own = [f"--config.dataset={kind}", f"--config.data_dir={places[kind]}"]
        own += ["--config.split=train", "--config.eval_split=", "--config.eval_batch_size=16"]
        own += ["--config.batch_size=16", "--config.epochs=2"]
        lines += [
            ["pretrain", "--config=tests/smallest.py", f"--workdir={place}", *TINY, *own],
            ["evaluate", "knn", f"--workdir={place}", "--k=3"],
        ]
    lines.append(["evaluate", "linear", f"--workdir={out}/tfds", "--epochs=2", "--batch_size=16"])
    lines[-1] += ["--protocol=paper"]
    return lines


@pytest.fixture(scope="module")
def runs(places, tmp_path_factory):
    """Workdirs and prints of all command lines with the packages hidden, and with them there."""
    found = {}
    for name, hidden in (("without", HIDDEN), ("with", ())):
        out = tmp_path_factory.mktemp(name)
        found[name] = out, run(lines_of(places, out), hidden)
    return found


def test_runs_and_evaluations_need_none_of_the_packages(runs, places):
    out, printed = runs["without"]
    for words, (said, errors) in zip(lines_of(places, out), printed, strict=True):
        assert "ended with" not in said, (words, errors)
        if words[0] == "pretrain":
            assert "nothing is written for TensorBoard, for want of the packages clu" in said
            assert "raw pixels" in said
            assert "encoder after" in said
        else:
            assert "TensorBoard" not in said
    for name in ("digits", *(kind.partition(":")[0] for kind in SETS)):
        assert (out / name / "neighbours.png").stat().st_size > 5_000
        assert (out / name / "views.png").stat().st_size > 5_000
        assert not (out / name / "tensorboard").exists()
    assert "data:image/webp" in (out / "digits/report.html").read_text()


def records(place, *names):
    lines = (json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines())
    return [[record[n] for n in names] for record in lines if set(names) <= set(record)]


@pytest.mark.parametrize("name", ["digits", *(kind.partition(":")[0] for kind in SETS)])
def test_numbers_are_those_of_a_run_that_has_the_packages(runs, name):
    without, whole = (runs[which][0] / name for which in ("without", "with"))
    assert len(records(without, "loss")) == (10 if name == "digits" else 4)
    drifts = [["drift"]] if name == "digits" else []  # keys of the others outlast the run
    for names in (["loss"], ["knn", "effective_rank"], *drifts):
        found, expected = records(without, *names), records(whole, *names)
        assert found
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    # Crops of a training on labels differ in some values by a level (`views/pil_crop.py`).
    for kind, apart in (("knn", 1e-6), ("linear", 0.03)):
        if (whole / f"evaluate_{kind}.json").exists():
            results = (
                json.loads((p / f"evaluate_{kind}.json").read_text()) for p in (without, whole)
            )
            found, expected = ([r["accuracy"] for r in result["results"]] for result in results)
            np.testing.assert_allclose(found, expected, rtol=0, atol=apart)
    assert (whole / "tensorboard").exists()


@pytest.mark.parametrize("kind", SETS)
def test_images_are_those_that_tensorflow_decodes(places, kind):
    """PIL's and TensorFlow's pixels are equal, of PNG and of plain JPEG."""
    source = open_source(kind, "train", places[kind])
    assert len(source) == IMAGES
    for record, (expected, ok) in zip(source.read(np.arange(IMAGES)), decoded(source), strict=True):
        assert ok
        np.testing.assert_array_equal(images.decode(source, record), expected)


def test_what_needs_the_packages_is_refused_in_one_line(places, tmp_path):
    resident = ["--config=tests/smallest.py", "--config.augment_on=resident"]
    tfds = [*resident, "--config.dataset=tfds:toy", f"--config.data_dir={places['tfds:toy']}"]
    expected = {
        (
            "pretrain",
            "--config=tests/smallest.py",
            f"--workdir={tmp_path}/a",
        ): "augment_on='host' needs the package tensorflow, which is not installed here;"
        " pip install tensorflow, or --config.augment_on=resident, which holds all images on the"
        " devices",
        (
            "pretrain",
            *tfds,
            "--config.split=train+test",
            "--config.eval_split=",
            f"--workdir={tmp_path}/b",
        ): "dataset='tfds:toy' cannot be read without the package tensorflow_datasets"
        " (split='train+test' is no name, nor NAME[A:B])",
        (
            "pack",
            f"--data_dir={places['folder']}",
            f"--out={tmp_path}/c",
        ): "pack needs the package tensorflow",
    }
    for (said, errors), line in zip(run([*expected], HIDDEN), expected.values(), strict=True):
        assert said == "ended with 2\n"
        *_, last = errors.splitlines()
        assert last.startswith(f"error: {line}")
        assert "Traceback" not in errors
