"""The command line of evaluation on a run's workdir, the published numbers, and what is refused."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks import machine
from moco_jax.base.errors import UserError
from moco_jax.cli import evaluate
from moco_jax.cli.evaluations import common, linear
from moco_jax.evaluation import images, published
from moco_jax.evaluation.images import open_evaluation_data, require_alike
from moco_jax.inference import trained_encoder
from moco_jax.inference.trained_encoder import TrainedEncoder
from moco_jax.parallel import mesh
from moco_jax.training import assembly, checkpoint
from moco_jax.weights import bridge
from moco_jax.weights import files as weight_files
from moco_jax.workdir import recipe_check
from tests import states
from tests.command_lines import command_lines, ended, own_lines, started
from tests.config.test_config import load
from tests.data.pictures import encoded, write
from tests.evaluation.scenes import CLASSES, write_voc


def tiny(**changes):
    config = load("digits")
    config.update(dict(width=8, bn_groups=1, shuffle="none", queue_size=256))
    config.update(dict(workers=2, eval_batch_size=480) | changes)
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that has not moved its weights: query and momentum encoder are the untrained one."""
    place, config = epath.Path(tmp_path_factory.mktemp("run")), tiny()
    one = mesh.create_mesh(jax.devices()[:1])
    lowered = assembly.program(config, one, 1437).initial.lower()
    # Compiled in a fourth of the time.
    state = lowered.compile({"xla_backend_optimization_level": 0})()
    recipe_check.claim_workdir(place, config.to_dict(), set())
    checkpoints = checkpoint.Checkpoints(place, 2)
    checkpoints.save(4, state, config.to_dict(), {})
    checkpoints.close()
    return place


def test_command_lines(workdir, tmp_path):
    at = f"--workdir={workdir}"
    (tmp_path / "empty").mkdir()
    packed = f"{tmp_path}/tuned.safetensors"
    can_pack = importlib.util.find_spec("safetensors") is not None
    save = [f"--save={packed}"] if can_pack else []
    voc = write_voc(tmp_path / "voc", 3, 2)
    scenes = ["segmentation", at, f"--data_dir={voc}"]
    config = tiny()
    path = str(tmp_path / f"moco.{'pth' if importlib.util.find_spec('torch') else 'safetensors'}")
    bridge.save(bridge.load(str(workdir)), path, "moco")
    weights = [f"--weights={path}", f"--out={tmp_path}/out", "--image_size=32"]
    for name in ("mean", "std"):
        weights.append(f"--{name}={','.join(map(str, config[name]))}")
    digits = "--dataset=digits"
    grid = ["--rates=0.1,1", "--decays=0", "--which=key", "--augment=digits"]
    steps = ["--batch_size=64", "--augment=digits", "--tests=2"]
    splits = ["--train_split=train", "--test_split=test"]
    works = [
        ["knn", at, "--untrained", "--k=20,2000", "--temperature=0.1", f"--beside={workdir}"],
        ["linear", at, "--epochs=2", *grid, f"--beside={workdir}"],
        ["linear", at, "--protocol=paper", "--epochs=1", "--batch_size=480", "--augment=digits"],
        ["finetune", at, "--labels=15", "--scratch", "--epochs=3", *steps, *save],
        [*scenes, "--iterations=3", "--crop=32", "--batch_size=4"],
        ["knn", *weights, f"--stem={config.stem}", digits, *splits, "--k=20", "--temperature=0.1"],
    ]
    fails = [
        ["knn"],
        ["knn", f"--workdir={tmp_path}/empty"],
        ["nearest", at],
        ["knn", "--workdir=none", "--k=0"],
        ["knn", at, f"--data_dir={tmp_path}/empty"],
        ["knn", at, "--which=both"],
        ["knn", at, "--dataset=folder", f"--data_dir={tmp_path}/none"],
        ["linear", at, "--protocol=paper", "--batch_size=3"],
        ["knn", at, "--step=99"],
        ["segmentation", at],
        [*scenes, "--batch_size=3"],
        [*scenes, "--test_split=test"],
        ["knn", *weights],
        ["knn", weights[0], digits],
        ["knn", *weights, digits, "--mean=a,b"],
        ["knn", f"--workdir={path}"],
        ["finetune", at, "--labels=0.5"],
        ["finetune", at, "--labels=1,101"],
        ["finetune", at, "--layer_decay=0.75"],
        ["finetune", at, f"--save={tmp_path}/tuned.safetensors"],
        ["finetune", at, "--labels=100", "--save=tuned.pth"],
        ["finetune", at, f"--subset={tmp_path}/none.txt"],
        ["finetune", at, "--batch_size=3"],
        ["knn", at, f"--beside={tmp_path}/none.pth"],
        ["knn", at, f"--beside={workdir},{workdir},{workdir}"],
    ]
    printed = command_lines("moco_jax.evaluate", [*works, *fails])
    knn, linear, paper, finetune, segmented, others, *refused = printed
    assert "k=2000 is cut to 1437" in knn[0]
    assert "untrained  20" in knn[0]
    assert "published" not in knn[0]
    written = json.loads((workdir / "evaluate_knn.json").read_text())
    assert {(r["encoder"], r["k"]) for r in written["results"]} == {
        (encoder, k) for encoder in ("trained", "untrained", workdir.name) for k in (20, 1437)
    }
    assert (written["step"], written["features"]) == (4, "backbone")
    of = {(r["encoder"], r["k"]): r["accuracy"] for r in written["results"]}
    assert of["trained", 20] == pytest.approx(of["untrained", 20], abs=0.003)  # but for rounding
    assert of["trained", 1437] == pytest.approx(of["untrained", 1437], abs=0.003)
    assert of[workdir.name, 20] == of["trained", 20] > 0.3

    assert "key, step 4" in linear[0]
    assert "untrained" not in linear[0]
    assert "the best learning rate" in linear[0]
    assert f"\n{workdir.name}  " in linear[0]
    other = "1 epochs with batches of 480 instead of 100 with 256"
    assert f"not the protocol itself: {other}" in paper[0]
    written = json.loads((workdir / "evaluate_linear.json").read_text())
    assert (written["protocol"], written["features"]) == ("paper", "backbone")
    assert written["rate"] == 30.0
    assert 0.05 < written["results"][0]["accuracy"] < 1

    assert "15 %    216     3" in finetune[0]
    written = json.loads((workdir / "evaluate_finetune.json").read_text())
    tuned, scratch = written["results"]
    assert (tuned["encoder"], scratch["encoder"]) == ("fine-tuned", "from scratch")
    assert (tuned["images"], tuned["tested_after_epochs"]) == (216, [2, 3])
    assert tuned["accuracy"] == tuned["accuracy_by_epoch"][-1]
    # The run has not moved its weights, so that the two differ in their rates alone.
    assert scratch["accuracy_by_epoch"] != tuned["accuracy_by_epoch"]
    assert not (workdir / "evaluate_finetune").exists()  # no states are left behind
    if can_pack:
        saved = weight_files.read(packed)
        assert saved["fc.weight"].shape == (10, 64)
        assert set(bridge.load(packed, stem="cifar_stride2").left_out) == {"fc.weight", "fc.bias"}
        before = bridge.load(str(workdir)).query["params"]["backbone"]["conv1"]["kernel"]
        moved = np.abs(saved["conv1.weight"].transpose(2, 3, 1, 0) - before).max()
        assert 0 < moved < 0.1

    other = "iterations 3 instead of 30000, crop 32 instead of 513, batch_size 4 instead of 16"
    assert f"not the protocol itself: {other}" in segmented[0]
    assert "published" not in segmented[0]
    written = json.loads((workdir / "evaluate_segmentation.json").read_text())
    (result,) = written["results"]
    assert (written["iterations"], written["rate"], written["test_images"]) == (3, 0.003, 2)
    assert list(result["iou"]) == list(CLASSES)
    known = [share for share in result["iou"].values() if share is not None]
    assert result["mean_iou"] == pytest.approx(np.mean(known))
    assert f"mean       {100 * result['mean_iou']:.2f} %" in segmented[0]

    assert "resnet10, query, of a file" in others[0]
    written = json.loads((tmp_path / "out" / "evaluate_knn.json").read_text())
    assert (written["of"], written["step"], len(written["results"])) == (path, 0, 1)
    assert written["results"][0]["accuracy"] == pytest.approx(of["trained", 20], abs=0.003)

    words = (
        "--workdir=FOLDER of a run is needed",
        "is no workdir",
        "one of knn, linear, finetune, segmentation is needed",
        "--k=0: must be whole numbers with commas between them, at least 1",
        "empty says where images are",
        "--which",
        "none is no folder",
        "--batch_size=3 does not divide over 2 devices",
        "has no checkpoint of step 99",
        "--data_dir=FOLDER is needed",
        "--batch_size=3 does not divide",
        "test.txt is missing; splits there are train, val",
        "does not say which images to evaluate",
        "needs --out=FOLDER",
        "--mean=a,b must be a list of numbers",
        "is no workdir of a run",
        "10 classes need at least --labels=0.6959",
        "--labels=1,101: must be numbers with commas between them, above 0 and at most 100 each",
        "--layer_decay=0.75 is for the layers of a ViT",
        "there are 3 trainings",
        "--save=tuned.pth must end in .safetensors",
        "none.txt is no text file",
        "--batch_size=3 does not divide over 2 devices",
        "none.pth",
        "twice; once is enough",
    )
    for (printed, errors), expected in zip(refused, words, strict=True):
        assert printed.endswith("ended with 2\n")
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, errors
        assert expected in lines[0]
        assert "Traceback" not in errors


def joined(lines, port, number):
    """The same for one of two processes, which find each other with the first of `lines`."""
    words = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={number}"]
    return [[*lines[0], *words], *lines[1:]]


def test_two_hosts_find_what_one_finds(workdir, tmp_path):
    """Two processes of two devices each find what one of four finds, except for rounding.

    Every evaluation is made.
    """
    at, voc = f"--workdir={workdir}", write_voc(tmp_path / "voc", 4, 5)
    lines = [
        ["knn", at, "--k=20", "--temperature=0.1"],
        ["linear", at, "--epochs=2", "--rates=0.1,1,10", "--decays=0", "--augment=digits"],
        ["linear", at, "--protocol=paper", "--epochs=1", "--batch_size=480", "--augment=digits"],
        ["finetune", at, "--labels=15", "--epochs=1", "--batch_size=64", "--augment=digits"],
        ["segmentation", at, f"--data_dir={voc}", "--iterations=2", "--crop=32", "--batch_size=4"],
    ]
    one, two = (
        [[*words, f"--out={tmp_path}/{who}{n}"] for n, words in enumerate(lines)]
        for who in ("one", "two")
    )
    can_pack = importlib.util.find_spec("safetensors") is not None
    if can_pack:
        one[3].append(f"--save={tmp_path}/one.safetensors")
        two[3].append(f"--save={tmp_path}/two.safetensors")
    port = machine.free_port()
    processes = [
        started("moco_jax.evaluate", some, devices)
        for some, devices in ((one, 4), (joined(two, port, 0), 2), (joined(two, port, 1), 2))
    ]
    try:
        alone, first, second = map(ended, processes)
    finally:
        for process in processes:
            process.kill()
    for n, words in enumerate(lines):
        assert "4 x cpu on 1 host(s)" in alone[n][0]
        assert "4 x cpu on 2 host(s)" in first[n][0]
        assert not own_lines(second[n][0])
        name = f"evaluate_{words[0]}.json"
        expected, found = (
            json.loads((tmp_path / f"{who}{n}" / name).read_text()) for who in ("one", "two")
        )
        assert [p.name for p in (tmp_path / f"two{n}").iterdir()] == [name]
        states.assert_close(states.flatten(expected["results"]), states.flatten(found["results"]))
    if can_pack:
        whole, ours = (weight_files.read(f"{tmp_path}/{who}.safetensors") for who in ("one", "two"))
        states.assert_close(whole, ours)


@pytest.mark.parametrize(
    ("evaluation", "recipe", "number"),
    [
        ("linear", "imagenet:v1", "60.8 +- 0.2"),
        ("linear", "imagenet:v2", "67.5 +- 0.1"),
        ("linear", "imagenet:v2_800ep", "71.1"),
        ("linear", "imagenet_v3:resnet50", "68.9"),
        ("linear", "imagenet_v3:resnet50_1000ep", "74.6"),
        ("linear", "imagenet_v3:vit_small", "73.2"),
        ("knn", "cifar10:demo", "82.6"),
        ("knn", "cifar10:symmetric", "85.3"),
        ("knn", "cifar10:cpu", None),
        ("knn", "imagenet:v1", None),
        ("linear", "digits", None),
        ("segmentation of VOC", "imagenet:v1", "72.5"),
        ("segmentation of Cityscapes", "imagenet:v1", "75.3"),
        ("segmentation of VOC", "imagenet:v2", None),
    ],
)
def test_published_numbers_stand_beside_their_recipes(evaluation, recipe, number):
    found = published.of(evaluation, load(recipe))
    assert (found and found[0]) == number


def folder(place, classes):
    rng = np.random.default_rng(0)
    images = {
        f"{name}/{n}.png": encoded("PNG", pixels=rng.integers(0, 256, (8, 8, 3), np.uint8))
        for name in classes
        for n in range(4)
    }
    return write(place, images)


def test_folders_of_other_images(tmp_path):
    train_dir = folder(tmp_path / "train", ["cat", "dog"])
    same = folder(tmp_path / "test", ["cat", "dog"])
    other = folder(tmp_path / "other", ["cat", "emu"])
    plain = folder(tmp_path / "plain", ["all"])
    config = tiny()
    two = open_evaluation_data(config, "", dataset="folder", data_dir=train_dir, test_data_dir=same)
    assert (len(two.train.indices), len(two.test.indices), two.classes) == (8, 8, 2)
    assert not two.own
    one = open_evaluation_data(config, "", dataset="folder", data_dir=train_dir)
    assert (len(one.train.indices), len(one.test.indices)) == (7, 1)
    assert "a tenth of" in one.test.about
    assert list(one.train.classes_of(one.train.indices[2:4])) == list(one.train.classes[2:4])
    for message, words in {
        "have different classes.*dog, emu": dict(data_dir=train_dir, test_data_dir=other),
        "has no labels": dict(data_dir=plain),
        "has no splits": dict(data_dir=train_dir, test_split="test"),
    }.items():
        with pytest.raises(UserError, match=message):
            open_evaluation_data(config, "", dataset="folder", **words)


def test_each_encoder_sees_the_images_as_it_was_trained_on_them(tmp_path):
    config = tiny(mean=(0.1, 0.1, 0.1))
    data = open_evaluation_data(config, "")
    seen_by = data.seen_by(TrainedEncoder(None, {}, config, 1))
    assert seen_by is data
    other = tiny(image_size=48, mean=(0.4, 0.5, 0.6), eval_batch_size=3, dataset="")
    seen = data.seen_by(TrainedEncoder(None, {}, other, 0))
    assert (seen.recipe.image_size, seen.config.mean) == (48, (0.4, 0.5, 0.6))
    assert (seen.config.eval_batch_size, seen.train) == (480, data.train)
    grey = tiny(channels=1, mean=(0.1,), std=(0.25,))
    with pytest.raises(UserError, match="evaluated here, and an encoder beside"):
        data.seen_by(TrainedEncoder(None, {}, grey, 0))
    # Pixels are read for all alike: whose run had read them otherwise is not judged by these.
    for name, value in (("background", 255), ("exif_rotation", True), ("white", 4095.0)):
        other = tiny(**{name: value})
        with pytest.raises(UserError, match=rf"\(it\) was trained with {name}={value}: it would"):
            require_alike(config, other, "it")
        other.dataset = ""  # a file does not say how its images were read
        require_alike(config, other, "it")


def task_of(**encoders):
    class Given:
        protocol, epochs, batch_size, augment = "v3", 1, 480, "digits"

    lines = []
    console = SimpleNamespace(line=lines.append)
    kept = SimpleNamespace(one=lambda *facts: None)
    return common.Task(encoders, "query", None, console, None, kept, Given()), lines


def test_an_encoder_without_a_head_is_named_before_anything_is_computed():
    config, bare = tiny(), tiny(dataset="")
    whole = TrainedEncoder(None, {"params": {"head": {}}}, config, 4)
    task, _ = task_of(trained=whole, theirs=TrainedEncoder(None, {"params": {}}, bare, 0))
    common.require_fair(task, "backbone")
    with pytest.raises(UserError, match="the weights of 'theirs' have none; --features=backbone"):
        common.require_fair(task, "output")


def test_each_encoder_of_a_table_is_trained_on_at_the_rate_of_its_kind(monkeypatch):
    """MoCo v3's protocol has another rate for a ViT than for a ResNet."""
    config, vit = tiny(), tiny(arch="vit_small", dataset="")
    task, lines = task_of(
        trained=TrainedEncoder(None, {}, config, 4), theirs=TrainedEncoder(None, {}, vit, 0)
    )
    monkeypatch.setattr(images.EvaluationData, "encoder", lambda self, trained, kind: None)
    monkeypatch.setattr(
        linear.linear,
        "train_on_crops",
        lambda data, encode, chosen, *rest: (chosen.rate, [chosen.rate]),
    )
    found = linear._on_crops(task, open_evaluation_data(config, ""), "backbone")
    rates = {r["encoder"]: r["rate"] for r in found["results"]}
    assert rates == pytest.approx({"trained": 0.1 * 480 / 256, "theirs": 3 * 480 / 256})
    assert rates["trained"] == found["rate"]
    assert "5.625" in lines[-1]


def test_names_beside_are_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trained_encoder, "load", lambda place, which: (place, which))
    monkeypatch.setattr(trained_encoder, "is_run", lambda place: "trained" in place)
    places = ["trained", "a/x.pth", "b/x.pth", "x.pth/", "untrained"]
    found = evaluate.load_beside(places, {"trained", "untrained"}, "key")
    assert [*found.values()] == [(p, "key" if "trained" in p else "query") for p in places]
    assert {"x.pth", "b/x.pth", "x.pth/"} < found.keys()
    assert not {"trained", "untrained"} & found.keys()
    with pytest.raises(UserError, match=r"names \./a/x.pth twice"):
        evaluate.load_beside(["a/x.pth", "./a/x.pth"], set())
    with pytest.raises(UserError, match=r"--beside=a/x\.pth, has a comma too many"):
        evaluate.load_beside(["a/x.pth", ""], set())
