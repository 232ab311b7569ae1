"""Transfer in Detectron2: its configs are the papers', and our weights go by its names and rules.

Configs are compared with the papers' table and with Detectron2's published keys.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install '.[torch]'")
detection = pytest.importorskip("torchvision.models.detection", reason="pip install '.[torch]'")

from configs import imagenet
from moco_jax import encoders
from moco_jax.weights import detectron2, files
from tests import detectron2_stand_in as stand_in

FOLDER = Path(__file__).resolve().parent.parent / "transfer"
SIZES = [640, 672, 704, 736, 768, 800]
COCO = dict(
    sizes=SIZES,
    test_size=800,
    longest=1333,
    batch=16,
    lr=0.02,
    warmup=1000,
    train=["coco_2017_train"],
    test=["coco_2017_val"],
    mask=True,
    keypoints=False,
    classes=80,
)
ONE = dict(steps=[60000, 80000], iterations=90000)
TWO = dict(steps=[120000, 160000], iterations=180000)
C4 = dict(head="Res5ROIHeadsExtraNorm", backbone="build_resnet_backbone", pyramid_norm="")
FPN = dict(
    head="StandardROIHeads", backbone="build_resnet_fpn_backbone", pyramid_norm="naiveSyncBN"
)

# MoCo v1: section 4.2, table 6, appendices A.1 to A.4; the authors' configs of VOC and COCO C4;
# where these are silent, Detectron2's baselines, which the paper names as its code.
TABLE = {
    "voc_c4": dict(
        COCO | C4,
        sizes=[480, 512, 544, 576, 608, *SIZES],
        warmup=100,
        steps=[18000, 22000],
        iterations=24000,
        mask=False,
        classes=20,
        train=["voc_2007_trainval", "voc_2012_trainval"],
        test=["voc_2007_test"],
    ),
    "coco_c4_1x": COCO | C4 | ONE,
    "coco_c4_2x": COCO | C4 | TWO,
    "coco_fpn_1x": COCO | FPN | ONE,
    "coco_fpn_2x": COCO | FPN | TWO,
    "keypoints_fpn_2x": dict(
        COCO | FPN | TWO,
        mask=False,
        keypoints=True,
        classes=1,
        train=["keypoints_coco_2017_train"],
        test=["keypoints_coco_2017_val"],
    ),
    "densepose_fpn_s1x": dict(
        COCO | FPN | {"head": "DensePoseROIHeads"},
        steps=[100000, 120000],
        iterations=130000,
        lr=0.01,
        mask=False,
        classes=1,
        train=["densepose_coco_2014_train", "densepose_coco_2014_valminusminival"],
        test=["densepose_coco_2014_minival"],
    ),
    "lvis_fpn_2x": dict(
        COCO | FPN | TWO,
        classes=1230,
        train=["lvis_v0.5_train"],
        test=["lvis_v0.5_val"],
    ),
    "cityscapes_fpn": dict(
        COCO | FPN,
        sizes=[800, 832, 864, 896, 928, 960, 992, 1024],
        test_size=1024,
        longest=2048,
        batch=8,
        lr=0.01,
        classes=8,
        steps=[18000],
        iterations=24000,
        train=["cityscapes_fine_instance_seg_train"],
        test=["cityscapes_fine_instance_seg_val"],
    ),
}


@pytest.fixture(scope="module")
def script():
    """transfer/train.py as a module."""
    spec = importlib.util.spec_from_file_location("transfer_train", FOLDER / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installed(monkeypatch):
    """Detectron2 and DensePose as if they were installed; the list of what was run."""
    made = stand_in.modules()
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made["detectron2"].runs


@pytest.fixture
def command(script, installed, monkeypatch, capsys):
    """Runs the script with the words of a command line; its status and its one line."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
        try:
            script.run()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def config(name):
    """A config of ours laid over the defaults; an unknown key or a value of another type raises."""
    cfg = stand_in.get_cfg()
    if name.startswith("densepose"):
        cfg.define(stand_in.DENSEPOSE_DEFAULTS)
    cfg.merge_from_file(FOLDER / f"{name}.yaml")
    return cfg


def test_the_table_is_whole():
    assert {p.stem for p in FOLDER.glob("*.yaml") if not p.stem.startswith("base")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_configs_are_the_papers(name):
    cfg = config(name)
    found = dict(
        sizes=list(cfg.INPUT.MIN_SIZE_TRAIN),
        test_size=cfg.INPUT.MIN_SIZE_TEST,
        longest=cfg.INPUT.MAX_SIZE_TRAIN,
        batch=cfg.SOLVER.IMS_PER_BATCH,
        lr=cfg.SOLVER.BASE_LR,
        warmup=cfg.SOLVER.WARMUP_ITERS,
        steps=list(cfg.SOLVER.STEPS),
        iterations=cfg.SOLVER.MAX_ITER,
        train=list(cfg.DATASETS.TRAIN),
        test=list(cfg.DATASETS.TEST),
        mask=cfg.MODEL.MASK_ON,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        head=cfg.MODEL.ROI_HEADS.NAME,
        backbone=cfg.MODEL.BACKBONE.NAME,
        pyramid_norm=cfg.MODEL.FPN.NORM,
    )
    assert found == TABLE[name]
    assert cfg.INPUT.MAX_SIZE_TEST == cfg.INPUT.MAX_SIZE_TRAIN
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.GAMMA) == (0.9, 1e-4, 0.1)
    # All layers are fine-tuned, with trained and synchronised BatchNorm; only C4's head has one.
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.NORM) == (0, "naiveSyncBN")
    assert (cfg.MODEL.ROI_BOX_HEAD.NORM, cfg.MODEL.ROI_MASK_HEAD.NORM) == ("", "")
    assert cfg.TEST.PRECISE_BN.ENABLED
    # The encoder is torchvision's ResNet, fed as in pretraining.
    assert (cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.STRIDE_IN_1X1) == (50, False)
    pretraining = imagenet.get_config("v2")
    assert cfg.INPUT.FORMAT == "RGB"
    np.testing.assert_allclose(cfg.MODEL.PIXEL_MEAN, 255 * np.array(pretraining.mean), rtol=1e-12)
    np.testing.assert_allclose(cfg.MODEL.PIXEL_STD, 255 * np.array(pretraining.std), rtol=1e-12)
    known = set(stand_in.DATASETS) | stand_in.DENSEPOSE_DATASETS
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= known


def test_details_of_detectron2s_baselines():
    keypoints, lvis = config("keypoints_fpn_2x"), config("lvis_fpn_2x")
    densepose = config("densepose_fpn_s1x")
    assert keypoints.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA == 0.5
    assert keypoints.MODEL.RPN.POST_NMS_TOPK_TRAIN == 1500
    assert lvis.DATALOADER == {
        "SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "REPEAT_THRESHOLD": 0.001,
    }
    assert (lvis.TEST.DETECTIONS_PER_IMAGE, lvis.MODEL.ROI_HEADS.SCORE_THRESH_TEST) == (300, 1e-4)
    assert densepose.MODEL.ROI_DENSEPOSE_HEAD.NAME == "DensePoseV1ConvXHead"
    assert densepose.SOLVER.WARMUP_FACTOR == 0.1
    for cfg in (keypoints, lvis, densepose, config("coco_fpn_1x")):
        stages = ["res2", "res3", "res4", "res5"]
        assert cfg.MODEL.RESNETS.OUT_FEATURES == cfg.MODEL.FPN.IN_FEATURES == stages
        assert cfg.MODEL.RPN.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6"]
        assert cfg.MODEL.ROI_HEADS.IN_FEATURES == ["p2", "p3", "p4", "p5"]
        assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == [[32], [64], [128], [256], [512]]
        box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
        assert (box.NAME, box.NUM_FC) == ("FastRCNNConvFCHead", 2)
        assert (box.POOLER_RESOLUTION, mask.NUM_CONV) == (7, 4)


@pytest.mark.parametrize("fault", [{"SOLVER": {"MAX_ITERS": 9}}, {"SOLVER": {"MAX_ITER": 9.0}}])
def test_a_slip_in_a_config_is_seen(fault):
    with pytest.raises((KeyError, ValueError), match=r"SOLVER\.MAX_ITER"):
        stand_in.get_cfg().take(fault)


@pytest.fixture(scope="module")
def encoder():
    """ResNet-50: its variables, two pictures, and the maps C2 to C5 of these, as `[B, C, H, W]`."""
    backbone = encoders.create("resnet50").backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)

    def drawn(leaf):
        if len(leaf.shape) == 1:
            return rng.uniform(0.5, 1, leaf.shape).astype(np.float32)
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(
            np.prod(leaf.shape[:-1]) ** 0.5
        )

    variables = jax.tree.map(drawn, shapes)
    ends = {"layer1_2": "res2", "layer2_3": "res3", "layer3_5": "res4", "layer4_2": "res5"}

    @jax.jit
    def maps(variables, pictures):
        _, state = backbone.apply(
            variables,
            pictures,
            mutable="intermediates",
            capture_intermediates=lambda module, _: module.name in ends,
        )
        kept = state["intermediates"].items()
        return {ends[k]: v["__call__"][0].transpose(0, 3, 1, 2) for k, v in kept}

    pictures = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    pretraining = imagenet.get_config("v2")
    mean, std = np.array(pretraining.mean), np.array(pretraining.std)
    normalised = ((pictures / 255 - mean) / std).astype(np.float32)
    return variables, pictures, jax.tree.map(np.asarray, maps(variables, normalised))


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    """The file that `moco_jax.convert --format=detectron2` writes."""
    path = tmp_path_factory.mktemp("exported") / "r50.pkl"
    files.write(str(path), detectron2.save(encoder[0]), detectron2.AROUND)
    return path


def assert_same(theirs, ours):
    """Within 1e-4 of the largest value."""
    theirs = theirs.detach().numpy()
    assert theirs.shape == ours.shape
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max(), rtol=0)


@pytest.mark.parametrize(
    ("task", "resnet"),
    [
        ("voc_c4", r"(backbone\.(stem|res[234])|roi_heads\.res5\.\d)\."),
        ("coco_fpn_1x", r"backbone\.bottom_up\."),
    ],
)
def test_detectron2_finds_every_entry_and_computes_our_features(
    task, resnet, command, installed, encoder, exported
):
    variables, pictures, maps = encoder
    status, said = command("--config-file", FOLDER / f"{task}.yaml", "MODEL.WEIGHTS", exported)
    assert (status, said) == (0, "")
    (run,) = installed
    model = run.model.eval()
    tensors = {k for k in model.state_dict() if re.match(resnet, k) and "num_batches" not in k}
    assert len(tensors) == 265  # 53 convolutions, each with its four of BatchNorm
    assert set(run.filled) == tensors
    saved = detectron2.save(variables)
    assert sorted(run.filled.values()) == sorted(saved), "every entry is used, and once"
    for name, entry in run.filled.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), saved[entry], err_msg=name)

    with torch.no_grad():
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
        features, regions = model(pixels)
    if task == "voc_c4":
        # The new BatchNorm of the head starts as the identity, but for its epsilon.
        features = {**features, "res5": regions}
    assert set(features) == ({"res4", "res5"} if task == "voc_c4" else set(maps))
    for name, theirs in features.items():
        assert_same(theirs, maps[name])


def test_torchvisions_detector_computes_our_features(encoder, exported):
    """A second writing of the backbone, under names of its own: Faster R-CNN with its pyramid."""
    _, pictures, maps = encoder
    model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=21)
    theirs = {}
    for name, array in files.read(str(exported)).items():
        name = re.sub(r"^res(\d)", lambda found: f"layer{int(found[1]) - 1}", name)
        name = name.replace("stem.conv1.norm", "bn1").replace("stem.", "")
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        theirs[name] = torch.from_numpy(array.copy())
    result = model.backbone.body.load_state_dict(theirs, strict=False)
    assert result.unexpected_keys == []
    assert {k.rpartition(".")[2] for k in result.missing_keys} <= {"num_batches_tracked"}
    cfg = config("coco_fpn_1x")
    pixels = (pictures - np.array(cfg.MODEL.PIXEL_MEAN)) / np.array(cfg.MODEL.PIXEL_STD)
    with torch.no_grad():
        found = model.eval().backbone.body(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
    for ours, theirs in zip(maps.values(), found.values(), strict=True):
        assert_same(theirs, ours)


def test_the_c4_head_ends_in_a_batch_norm(script, installed):
    script.register_head()
    registry = sys.modules["detectron2.modeling.roi_heads"].ROI_HEADS_REGISTRY
    res5 = registry[config("voc_c4").MODEL.ROI_HEADS.NAME](config("voc_c4"), None).res5
    assert [name for name, _ in res5.named_children()] == ["0", "1", "2", "norm"]
    assert isinstance(res5.norm, torch.nn.BatchNorm2d)
    assert res5.norm.num_features == 2048
    for module in res5.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.03)
    out = res5(torch.randn(4, 1024, 14, 14)).detach()
    assert out.shape == (4, 2048, 7, 7)
    np.testing.assert_allclose(out.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(out.var((0, 2, 3)), 1, atol=2e-2)


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("voc_c4", "PascalVOCDetectionEvaluator"),
        ("coco_fpn_2x", "COCOEvaluator"),
        ("keypoints_fpn_2x", "COCOEvaluator"),
        ("lvis_fpn_2x", "LVISEvaluator"),
        ("cityscapes_fpn", "CityscapesInstanceEvaluator"),
    ],
)
def test_each_data_set_has_its_evaluator(task, kind, script, installed):
    (dataset,) = config(task).DATASETS.TEST
    found, on, folder = script.evaluator(dataset, "out/inference")
    assert (found, on) == (kind, dataset)
    assert folder == ("out/inference" if kind in ("COCOEvaluator", "LVISEvaluator") else None)


def test_a_data_set_without_an_evaluator_is_named(script, installed, capsys):
    with pytest.raises(SystemExit):
        script.evaluator("cityscapes_fine_sem_seg_val", "x")
    said = capsys.readouterr().err
    assert "'cityscapes_fine_sem_seg_val' is scored as 'cityscapes_sem_seg'" in said


def test_densepose_trains_with_its_own_trainer(command, installed):
    words = ("--config-file", FOLDER / "densepose_fpn_s1x.yaml", "MODEL.WEIGHTS", "")
    assert command(*words) == (0, "")
    (run,) = installed
    assert run.tested == ["densepose"]
    assert run.filled is None, "no weights were asked for"


def entries(name, width=64):
    """The arrays of an encoder's file as things with a shape."""
    backbone = encoders.create(name, width=width).backbone
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return detectron2.save(jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes))


@pytest.mark.parametrize(
    ("name", "width", "words", "fault"),
    [
        ("resnet50", 64, [], ""),
        (
            "resnet18",
            64,
            ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"],
            "",
        ),
        (
            "resnet18",
            64,
            ["MODEL.RESNETS.DEPTH", "18"],
            "has 3 channels in, 64 after the stem and 64 after res2, and the config 3, 64 and 256",
        ),
        ("resnet34", 64, [], "is of depth 34, and MODEL.RESNETS.DEPTH is 50"),
        (
            "resnet50",
            64,
            ["MODEL.RESNETS.DEPTH", "101"],
            "is of depth 50, and MODEL.RESNETS.DEPTH is 101",
        ),
        ("resnet10", 64, [], "is of depth unknown"),
        (
            "resnet50",
            128,
            [],
            "has 3 channels in, 128 after the stem and 512 after res2, "
            "and the config 3, 64 and 256",
        ),
    ],
)
def test_a_file_that_would_be_left_half_unused_is_known(name, width, words, fault, script):
    cfg = config("coco_fpn_1x")
    cfg.merge_from_list(words)
    found = script.misfit(entries(name, width), cfg)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


@pytest.mark.parametrize(
    ("rename", "words", "fault"),
    [
        (lambda model: model, [], "is of depth 18, and MODEL.RESNETS.DEPTH is 50"),
        (
            lambda model: model,
            ["MODEL.RESNETS.DEPTH", "18"],
            "is of depth 18, and a C4 head is made of bottlenecks; an FPN config takes it",
        ),
        (
            detectron2.to_torchvision,
            [],
            "has no ResNet under Detectron2's names; "
            "moco_jax.convert --format=detectron2 writes them",
        ),
    ],
)
def test_and_refused_in_one_line(rename, words, fault, command, installed, tmp_path):
    path = tmp_path / "x.pkl"
    files.write(str(path), rename(entries("resnet18", 8)), detectron2.AROUND)
    status, said = command("--config-file", FOLDER / "voc_c4.yaml", "MODEL.WEIGHTS", path, *words)
    assert (status, said) == (2, f"error: MODEL.WEIGHTS='{path}' {fault}\n")
    assert installed == []


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "MODEL.WEIGHTS is not given"),
        (["--eval-only"], "MODEL.WEIGHTS is not given"),
        (["MODEL.WEIGHTS", "none.pkl"], "MODEL.WEIGHTS='none.pkl' is no file"),
        (
            ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITERS", "9"],
            "Non-existent config key: SOLVER.MAX_ITERS",
        ),
        (["MODEL.WEIGHTS"], "odd length"),
    ],
)
def test_a_wrong_command_is_one_line(words, fault, command, installed):
    status, said = command("--config-file", FOLDER / "voc_c4.yaml", *words)
    assert (status, said.count("\n")) == (2, 1)
    assert fault in said
    assert installed == []


def test_a_missing_config_file_and_a_missing_densepose_are_one_line(command, monkeypatch):
    status, said = command("--config-file", "none.yaml", "MODEL.WEIGHTS", "")
    reason = "No such file or directory"
    assert said == f"error: --config-file='none.yaml' cannot be read: {reason}\n"
    assert status == 2
    monkeypatch.delitem(sys.modules, "densepose")
    status, said = command("--config-file", FOLDER / "densepose_fpn_s1x.yaml", "MODEL.WEIGHTS", "")
    assert status == 2
    assert said.startswith("error: densepose is not installed; https://")


@pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is not None, reason="Detectron2 is installed"
)
def test_without_detectron2_the_script_says_so_in_one_line():
    command = [sys.executable, str(FOLDER / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: detectron2 is not installed; "
        "https://detectron2.readthedocs.io/tutorials/install.html says how\n"
    )
