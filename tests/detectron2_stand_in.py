"""A stand-in for the parts of Detectron2 that this project leans on, after its published source.

It has Detectron2's defaults, data sets, names, and loading by name. Detectron2 has no package to
install, so `modules()` gives tests small modules in its place. Networks are plain PyTorch under
Detectron2's names; nothing trains.
"""

import argparse
import pickle
import types
from ast import literal_eval
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

# detectron2/config/defaults.py: the keys that our configs or `train.py` use, with their defaults.
DEFAULTS = {
    "VERSION": 2,
    "OUTPUT_DIR": "./output",
    "MODEL.WEIGHTS": "",
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.PIXEL_MEAN": [103.530, 116.280, 123.675],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.FPN.IN_FEATURES": [],
    "MODEL.FPN.NORM": "",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_BOX_HEAD.NAME": "",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 256,
    "INPUT.FORMAT": "BGR",
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "DATASETS.TRAIN": (),
    "DATASETS.TEST": (),
    "DATALOADER.SAMPLER_TRAIN": "TrainingSampler",
    "DATALOADER.REPEAT_THRESHOLD": 0.0,
    "SOLVER.MAX_ITER": 40000,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.STEPS": (30000,),
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WARMUP_FACTOR": 1.0 / 1000,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.REFERENCE_WORLD_SIZE": 0,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PRECISE_BN.ENABLED": False,
}

# projects/DensePose/densepose/config.py, likewise.
DENSEPOSE_DEFAULTS = {
    "MODEL.DENSEPOSE_ON": True,
    "MODEL.ROI_DENSEPOSE_HEAD.NAME": "",
    "MODEL.ROI_DENSEPOSE_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_DENSEPOSE_HEAD.NUM_COARSE_SEGM_CHANNELS": 2,
}

# detectron2/data/datasets/builtin.py: which there are, and what each is evaluated as.
DATASETS = {
    "voc_2007_trainval": "pascal_voc",
    "voc_2012_trainval": "pascal_voc",
    "voc_2007_test": "pascal_voc",
    "coco_2017_train": "coco",
    "coco_2017_val": "coco",
    "keypoints_coco_2017_train": "coco",
    "keypoints_coco_2017_val": "coco",
    "lvis_v0.5_train": "lvis",
    "lvis_v0.5_val": "lvis",
    "cityscapes_fine_instance_seg_train": "cityscapes_instance",
    "cityscapes_fine_instance_seg_val": "cityscapes_instance",
    "cityscapes_fine_sem_seg_val": "cityscapes_sem_seg",
}
# projects/DensePose/densepose/data/datasets/coco.py.
DENSEPOSE_DATASETS = {
    "densepose_coco_2014_train",
    "densepose_coco_2014_valminusminival",
    "densepose_coco_2014_minival",
}

# detectron2/layers/batch_norm.py, get_norm: synchronised over one process, both are BatchNorm2d.
NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.BatchNorm2d, "naiveSyncBN": nn.BatchNorm2d}

BLOCKS = {50: (3, 4, 6, 3)}


class Node(dict):
    """A config as in yacs: keys and types are the defaults', and a file inherits from _BASE_."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def define(self, flat):
        for key, value in flat.items():
            *path, leaf = key.split(".")
            node = self
            for name in path:
                node = node.setdefault(name, Node())
            node[leaf] = value

    @staticmethod
    def load_yaml_with_base(path):
        content = yaml.safe_load(Path(path).read_text())
        base = content.pop("_BASE_", None)
        if not base:
            return content
        return over(Node.load_yaml_with_base(Path(path).parent / base), content)

    def merge_from_file(self, path):
        self.take(self.load_yaml_with_base(path))

    def merge_from_list(self, words):
        assert len(words) % 2 == 0, f"Override list has odd length: {words}"
        for key, word in zip(words[::2], words[1::2], strict=True):
            try:
                value = literal_eval(word)
            except (ValueError, SyntaxError):
                value = word
            for name in reversed(key.split(".")):
                value = {name: value}
            self.take(value)

    def take(self, given, where=""):
        for name, value in given.items():
            key = f"{where}.{name}".lstrip(".")
            if name not in self:
                raise KeyError(f"Non-existent config key: {key}")
            if isinstance(self[name], Node):
                self[name].take(value, key)
                continue
            both = {type(value), type(self[name])}
            if len(both) > 1 and both != {list, tuple}:
                raise ValueError(
                    f"Type mismatch ({type(self[name])} vs. {type(value)}) for config key: {key}"
                )
            self[name] = type(self[name])(value)

    def freeze(self):
        self["frozen"] = True


def over(base, content):
    """`content` laid over `base`, dictionary by dictionary."""
    both = {k: over(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in content.items()}
    return {**base, **both}


def get_cfg():
    cfg = Node()
    cfg.define(DEFAULTS)
    return cfg


# detectron2/layers/wrappers.py and modeling/backbone/resnet.py: a convolution holds its norm, and
# a block holds its shortcut.


class Conv2d(nn.Conv2d):
    """Its weights are whatever lies in memory: they come from a file, or a test sets them."""

    def __init__(self, inner, outer, kernel, stride=1, norm=None):
        super().__init__(inner, outer, kernel, stride, kernel // 2, bias=False)
        self.norm = norm

    def reset_parameters(self):
        pass

    def forward(self, x):
        return self.norm(super().forward(x))


class Stem(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv1 = Conv2d(3, 64, 7, 2, norm(64))

    def forward(self, x):
        return nn.functional.max_pool2d(self.conv1(x).relu(), 3, 2, 1)


class BottleneckBlock(nn.Module):
    def __init__(self, inner, outer, stride, stride_in_1x1, norm):
        super().__init__()
        narrow, self.out_channels = outer // 4, outer
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = Conv2d(inner, outer, 1, stride, norm(outer)) if inner != outer else None
        self.conv1 = Conv2d(inner, narrow, 1, first, norm(narrow))
        self.conv2 = Conv2d(narrow, narrow, 3, second, norm(narrow))
        self.conv3 = Conv2d(narrow, outer, 1, 1, norm(outer))

    def forward(self, x):
        y = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


def stage(number, cfg):
    """res2 to res5."""
    outer = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2 ** (number - 2)
    inner = 64 if number == 2 else outer // 2
    norm, in_1x1 = NORMS[cfg.MODEL.RESNETS.NORM], cfg.MODEL.RESNETS.STRIDE_IN_1X1
    first = BottleneckBlock(inner, outer, 1 if number == 2 else 2, in_1x1, norm)
    others = BLOCKS[cfg.MODEL.RESNETS.DEPTH][number - 2] - 1
    return nn.Sequential(
        first, *(BottleneckBlock(outer, outer, 1, in_1x1, norm) for _ in range(others))
    )


class ResNet(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wanted = cfg.MODEL.RESNETS.OUT_FEATURES
        self.stem = Stem(NORMS[cfg.MODEL.RESNETS.NORM])
        for number in range(2, 1 + max(int(name[-1]) for name in self.wanted)):
            self.add_module(f"res{number}", stage(number, cfg))

    def forward(self, x):
        outputs = {}
        for name, module in self.named_children():
            x = module(x)
            outputs[name] = x
        return {name: outputs[name] for name in self.wanted}


class FPN(nn.Module):
    """Its names; the pyramid itself is not computed."""

    def __init__(self, cfg):
        super().__init__()
        self.bottom_up = ResNet(cfg)
        norm = NORMS[cfg.MODEL.FPN.NORM]
        for number, name in enumerate(cfg.MODEL.FPN.IN_FEATURES, start=2):
            inner = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 2 ** (int(name[-1]) - 2)
            self.add_module(f"fpn_lateral{number}", Conv2d(inner, 256, 1, 1, norm(256)))
            self.add_module(f"fpn_output{number}", Conv2d(256, 256, 3, 1, norm(256)))

    def forward(self, x):
        return self.bottom_up(x)


class Res5ROIHeads(nn.Module):
    """Without pooler and masks; the whole map is the region."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.res5 = stage(5, cfg)
        self.box_predictor = nn.Linear(self.res5[-1].out_channels, cfg.MODEL.ROI_HEADS.NUM_CLASSES)

    def forward(self, features):
        return self.res5(features["res4"])


class StandardROIHeads(nn.Module):
    """The box head's names, the mask head's where there is one."""

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.box_head = nn.ModuleDict({"fc1": nn.Linear(49, 8), "fc2": nn.Linear(8, 8)})
        if cfg.MODEL.MASK_ON:
            self.mask_head = nn.ModuleDict({"mask_fcn1": nn.Conv2d(8, 8, 3)})

    def forward(self, features):
        return features


class Registry(dict):
    def register(self, thing):
        assert thing.__name__ not in self, f"{thing.__name__} was already registered"
        self[thing.__name__] = thing


class Network(nn.Module):
    def __init__(self, cfg, heads):
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1), False)
        kinds = {"build_resnet_backbone": ResNet, "build_resnet_fpn_backbone": FPN}
        self.backbone = kinds[cfg.MODEL.BACKBONE.NAME](cfg)
        rpn_head = nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3)})
        self.proposal_generator = nn.ModuleDict({"rpn_head": rpn_head})
        self.roi_heads = heads[cfg.MODEL.ROI_HEADS.NAME](cfg, None)

    def forward(self, pixels):
        features = self.backbone((pixels - self.pixel_mean) / self.pixel_std)
        return features, self.roi_heads(features)


def pairs(model, entries):
    """Which entry fills which tensor: the longest name that the tensor's ends in, cut at a dot.

    As in c2_model_loading.align_and_update_state_dicts, another shape is left out, and one entry
    for two tensors is an error.
    """
    found, used = {}, set()
    for name in sorted(model):
        fitting = [e for e in entries if name == e or name.endswith("." + e)]
        entry = max(fitting, key=len, default=None)
        if entry is None or tuple(model[name].shape) != tuple(entries[entry].shape):
            continue
        if entry in used:
            raise ValueError("Cannot match one checkpoint key to multiple keys in the model.")
        used.add(entry)
        found[name] = entry
    return found


def load(model, path):
    """DetectionCheckpointer on a .pkl of Detectron2's own kind; what filled what."""
    with open(path, "rb") as file:
        content = pickle.load(file, encoding="latin1")
    assert {"model", "__author__"} <= content.keys(), "else it is taken for a file of Caffe2"
    assert content["__author__"] != "Caffe2", "else names are rewritten"
    entries = content["model"]
    if content.get("matching_heuristics", False):
        found = pairs(model.state_dict(), entries)
    else:
        found = {name: name for name in model.state_dict() if name in entries}
    tensors = {name: torch.from_numpy(np.asarray(entries[e])) for name, e in found.items()}
    model.load_state_dict(tensors, strict=False)
    return found


def modules():
    """Fresh stand-ins for `detectron2` and `densepose`, by module name.

    `detectron2.runs` notes what was run.
    """
    heads, runs = Registry(), []
    heads.register(Res5ROIHeads)
    heads.register(StandardROIHeads)

    class DefaultTrainer:
        def __init__(self, cfg):
            self.cfg, self.model, self.filled, self.tested = cfg, self.build_model(cfg), None, []
            runs.append(self)

        @classmethod
        def build_model(cls, cfg):
            return Network(cfg, heads)

        def resume_or_load(self, resume):
            if self.cfg.MODEL.WEIGHTS and not resume:
                self.filled = load(self.model, self.cfg.MODEL.WEIGHTS)

        def train(self):
            self.tested = self.test(self.cfg, self.model)

        @classmethod
        def test(cls, cfg, model):
            return [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]

    def parser():
        parser = argparse.ArgumentParser()
        parser.add_argument("--config-file", default="")
        parser.add_argument("--resume", action="store_true")
        parser.add_argument("--eval-only", action="store_true")
        for name, value in (("--num-gpus", 1), ("--num-machines", 1), ("--machine-rank", 0)):
            parser.add_argument(name, type=int, default=value)
        parser.add_argument("--dist-url", default="tcp://127.0.0.1:1")
        parser.add_argument("opts", nargs=argparse.REMAINDER)
        return parser

    def launch(main, num_gpus, num_machines=1, machine_rank=0, dist_url=None, args=()):
        assert num_gpus == args[0].num_gpus
        main(*args)

    def named(name):
        return lambda dataset, *, output_dir=None: (name, dataset, output_dir)

    def densepose_trainer():
        members = {"build_evaluator": classmethod(lambda *_: "densepose")}
        return type("Trainer", (DefaultTrainer,), members)

    def add_densepose_config(cfg):
        cfg.define(DENSEPOSE_DEFAULTS)
        heads["DensePoseROIHeads"] = StandardROIHeads

    evaluators = (
        "COCOEvaluator",
        "LVISEvaluator",
        "PascalVOCDetectionEvaluator",
        "CityscapesInstanceEvaluator",
    )
    catalog = types.SimpleNamespace(
        get=lambda name: types.SimpleNamespace(evaluator_type=DATASETS[name])
    )
    content = {
        "detectron2": {"runs": runs},
        "detectron2.config": {"get_cfg": get_cfg},
        "detectron2.layers": {"get_norm": lambda norm, channels: NORMS[norm](channels)},
        "detectron2.data": {"MetadataCatalog": catalog},
        "detectron2.evaluation": {name: named(name) for name in evaluators},
        "detectron2.modeling": {},
        "detectron2.modeling.roi_heads": {
            "ROI_HEADS_REGISTRY": heads,
            "Res5ROIHeads": Res5ROIHeads,
        },
        "detectron2.engine": {
            "DefaultTrainer": DefaultTrainer,
            "default_argument_parser": parser,
            "default_setup": lambda cfg, args: None,
            "launch": launch,
        },
        "densepose": {"add_densepose_config": add_densepose_config},
        "densepose.engine": {"Trainer": densepose_trainer()},
    }
    made = {}
    for name, members in content.items():
        made[name] = types.ModuleType(name)
        made[name].__path__ = []
        vars(made[name]).update(members)
    return made
