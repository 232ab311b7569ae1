"""Fine-tune and test a detector in Detectron2, starting from a MoCo encoder.

    python transfer/train.py --config-file transfer/voc_c4.yaml --num-gpus 8 MODEL.WEIGHTS r50.pkl

Needs Detectron2 (dense pose also needs its project DensePose) and nothing of moco_jax: r50.pkl
comes from `python -m moco_jax.convert RUN r50.pkl --format=detectron2`, which may run on another
machine. docs/transfer.md says more.
"""

import importlib
import os
import pickle
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

INSTALL = "https://detectron2.readthedocs.io/tutorials/install.html"
DENSEPOSE = "https://github.com/facebookresearch/detectron2/tree/main/projects/DensePose"

# Residual blocks of res2 to res5, by RESNETS.DEPTH; from 50 on they are bottlenecks.
BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def fail(what: str) -> NoReturn:
    """End with one line and status 2."""
    print(f"error: {what}", file=sys.stderr)
    sys.exit(2)


def need(module: str, where: str) -> Any:
    """Import `module`; if its package is missing, end and say that `where` tells how to install."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        beside = "" if missing == package else f", for {package}"
        fail(f"{missing} is not installed{beside}; {where} says how")


def configure(args: Any) -> Any:
    """Detectron2's config, not frozen yet: defaults, then the file, then the command line."""
    config = need("detectron2.config", INSTALL)
    cfg = config.get_cfg()
    try:
        if "DENSEPOSE_ON" in cfg.load_yaml_with_base(args.config_file).get("MODEL", {}):
            need("densepose", DENSEPOSE).add_densepose_config(cfg)
        cfg.merge_from_file(args.config_file)
        cfg.merge_from_list(args.opts)
    except OSError as error:
        fail(f"--config-file={args.config_file!r} cannot be read: {error.strerror or error}")
    except (AssertionError, KeyError, ValueError) as error:
        said = " ".join(str(error).split())
        fail(f"--config-file={args.config_file!r}, or a word after it: {said}")
    return cfg


def check_weights(cfg: Any, args: Any) -> None:
    """End with one line unless MODEL.WEIGHTS fills the network, or is '' to start at random.

    Detectron2 itself would draw at random whatever a file does not fill.
    """
    if args.resume:
        return
    if "MODEL.WEIGHTS" not in args.opts:
        fail(
            "MODEL.WEIGHTS is not given; "
            "add MODEL.WEIGHTS FILE.pkl, or MODEL.WEIGHTS '' to start at random"
        )
    path = cfg.MODEL.WEIGHTS
    if path and "://" not in path and not os.path.isfile(path):
        fail(f"MODEL.WEIGHTS={path!r} is no file")
    if path.endswith(".pkl") and "://" not in path and not args.eval_only:
        with open(path, "rb") as file:
            content = pickle.load(file, encoding="latin1")  # as Detectron2 does a moment later
        wrong = misfit(content.get("model", content), cfg)
        if wrong:
            fail(f"MODEL.WEIGHTS={path!r} {wrong}")


def misfit(model: Mapping[str, Any], cfg: Any) -> str:
    """Why the ResNet among `model`'s arrays is not the one of `cfg`; empty where it is."""
    names = {re.sub(r"^.*?\b(?=stem\.|res\d\.\d)", "", name): name for name in model}
    if "stem.conv1.weight" not in names:
        return (
            "has no ResNet under Detectron2's names; "
            "moco_jax.convert --format=detectron2 writes them"
        )
    depth = cfg.MODEL.RESNETS.DEPTH
    wanted = tuple(cfg.MODEL.RESNETS[key] for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"))
    kind = "conv3" if "res2.0.conv3.weight" in names else "conv2"
    blocks = tuple(
        sum(1 for name in names if re.fullmatch(rf"res{stage}\.\d+\.conv1\.weight", name))
        for stage in (2, 3, 4, 5)
    )
    if blocks != BLOCKS.get(depth) or (kind == "conv3") != (depth >= 50):
        found = [d for d, b in BLOCKS.items() if b == blocks and (kind == "conv3") == (d >= 50)]
        return f"is of depth {found[0] if found else 'unknown'}, and MODEL.RESNETS.DEPTH is {depth}"
    if depth < 50 and cfg.MODEL.ROI_HEADS.NAME.startswith("Res5"):
        return f"is of depth {depth}, and a C4 head is made of bottlenecks; an FPN config takes it"
    stem = model[names["stem.conv1.weight"]].shape
    channels = (stem[0], model[names[f"res2.0.{kind}.weight"]].shape[0])
    if channels != wanted or stem[1] != len(cfg.MODEL.PIXEL_MEAN):
        return (
            f"has {stem[1]} channels in, {channels[0]} after the stem and {channels[1]} after "
            f"res2, and the config {len(cfg.MODEL.PIXEL_MEAN)}, {wanted[0]} and {wanted[1]} "
            "(MODEL.PIXEL_MEAN, RESNETS.*_OUT_CHANNELS)"
        )
    return ""


def register_head() -> None:
    """Register the head 'Res5ROIHeadsExtraNorm': Detectron2's C4 head, a BatchNorm after res5.

    Without it, features of unsupervised pretraining, which are larger than supervised ones, would
    reach the box predictor as they are (MoCo v1, appendix A.1).
    """
    layers = need("detectron2.layers", INSTALL)
    heads = need("detectron2.modeling.roi_heads", INSTALL)

    class Res5ROIHeadsExtraNorm(heads.Res5ROIHeads):  # type: ignore[name-defined]
        """`heads.Res5ROIHeads` whose `res5` ends in a BatchNorm.

        `res5` maps `[N, 1024, 14, 14]` to `[N, 2048, 7, 7]`.
        """

        def __init__(self, cfg: Any, input_shape: Any) -> None:
            super().__init__(cfg, input_shape)
            channels = self.res5[-1].out_channels
            self.res5.add_module("norm", layers.get_norm(cfg.MODEL.RESNETS.NORM, channels))

    heads.ROI_HEADS_REGISTRY.register(Res5ROIHeadsExtraNorm)


def evaluator(dataset: str, folder: str) -> Any:
    """What scores the detections in `dataset`, by the kind that Detectron2 has it registered as."""
    scores = need("detectron2.evaluation", INSTALL)
    kind = need("detectron2.data", INSTALL).MetadataCatalog.get(dataset).evaluator_type
    if kind == "coco":
        return scores.COCOEvaluator(dataset, output_dir=folder)
    if kind == "lvis":
        return scores.LVISEvaluator(dataset, output_dir=folder)
    if kind == "pascal_voc":
        return scores.PascalVOCDetectionEvaluator(dataset)
    if kind == "cityscapes_instance":
        return scores.CityscapesInstanceEvaluator(dataset)
    fail(
        f"DATASETS.TEST={dataset!r} is scored as {kind!r}; "
        "known are coco, lvis, pascal_voc, cityscapes_instance"
    )


def trainer(cfg: Any) -> Any:
    """The class that trains and tests: DensePose's, or Detectron2's with our evaluators."""
    if "DENSEPOSE_ON" in cfg.MODEL:
        return need("densepose.engine", DENSEPOSE).Trainer

    class Trainer(need("detectron2.engine", INSTALL).DefaultTrainer):  # type: ignore[misc]
        """Detectron2's default in everything but the evaluators."""

        @classmethod
        def build_evaluator(cls, cfg: Any, dataset: str, folder: str | None = None) -> Any:
            """See `evaluator`; the results go to OUTPUT_DIR/inference."""
            return evaluator(dataset, folder or os.path.join(cfg.OUTPUT_DIR, "inference"))

    return Trainer


def main(args: Any) -> Any:
    """One process of a run: train and test, or with --eval-only test; the scores."""
    cfg = configure(args)
    cfg.freeze()
    need("detectron2.engine", INSTALL).default_setup(cfg, args)
    register_head()
    Trainer = trainer(cfg)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        checkpoint = need("detectron2.checkpoint", INSTALL)
        checkpointer = checkpoint.DetectionCheckpointer(model, cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return Trainer.test(cfg, model)
    running = Trainer(cfg)
    running.resume_or_load(resume=args.resume)
    return running.train()


def run() -> None:
    """Read the command line, refuse what cannot work, and start a process for each GPU."""
    engine = need("detectron2.engine", INSTALL)
    args = engine.default_argument_parser().parse_args()
    check_weights(configure(args), args)
    engine.launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    run()
