"""Published numbers, each beside the settings of the run that it belongs to."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moco_jax.config.settings import STRENGTHS

V1, V2 = "MoCo v1, arXiv 1911.05722", "MoCo v2, arXiv 2003.04297"
V3, DEMO = "MoCo v3, arXiv 2104.02057", "the authors' CIFAR-10 demo"
_IMAGENET = dict(dataset="tfds:imagenet2012", image_size=224)
_R50 = _IMAGENET | dict(arch="resnet50", width=0)
_QUEUE = _R50 | dict(
    key_encoder="momentum",
    dictionary="queue",
    batch_size=256,
    queue_size=65536,
    momentum=0.999,
    dim=128,
)
_V1 = _QUEUE | dict(augment="v1", head="linear", lr_schedule="steps", temperature=0.07, epochs=200)
_V1_VIEWS = _QUEUE | dict(augment="v2", head="linear", lr_schedule="steps", epochs=200)
_V2 = _QUEUE | dict(augment="v2", head="mlp", lr_schedule="cosine", temperature=0.2)
_BATCH = dict(augment="v3", key_encoder="momentum", dictionary="batch", batch_size=4096)
_BANK = dict(key_encoder="none", dictionary="memory_bank", bank_negatives=65536)
_DEMO = dict(
    dataset="tfds:cifar10",
    arch="resnet18",
    width=0,
    stem="cifar",
    augment="cifar",
    head="linear",
    batch_size=512,
    queue_size=4096,
    momentum=0.99,
    key_encoder="momentum",
    dictionary="queue",
)

# which evaluation, settings of the run, per cent (top-1; of segmentation, mean IoU), source
NUMBERS: tuple[tuple[str, Mapping[str, Any], str, str], ...] = (
    ("linear", _V1, "60.8 +- 0.2", V1),
    ("linear", _V1 | dict(head="mlp", temperature=0.2), "66.2", f"{V2}, v1 with the MLP head"),
    ("linear", _V1_VIEWS, "63.4", f"{V2}, v1 with v2's views"),
    ("linear", _V2 | dict(lr_schedule="steps", epochs=200), "67.3", f"{V2}, without cosine"),
    ("linear", _V2 | dict(epochs=200), "67.5 +- 0.1", V2),
    ("linear", _V2 | dict(epochs=800), "71.1", V2),
    *(
        ("linear", _V1 | dict(queue_size=4096, momentum=m), number, f"{V1}, K 4096")
        for m, number in ((0.9, "55.2"), (0.99, "57.8"), (0.999, "59.0"), (0.9999, "58.9"))
    ),
    ("linear", _R50 | _BANK | dict(loss="info_nce", temperature=0.07, epochs=200), "58.0", V1),
    ("segmentation of VOC", _V1, "72.5", f"{V1}, table 6, mean of 5 trials"),
    ("segmentation of Cityscapes", _V1, "75.3", f"{V1}, table 6, mean of 5 trials"),
    *(
        ("linear", _R50 | _BATCH | dict(epochs=epochs), number, V3)
        for epochs, number in ((100, "68.9"), (300, "72.8"), (1000, "74.6"))
    ),
    *(
        ("linear", _IMAGENET | _BATCH | dict(arch=arch, width=0, epochs=300), number, V3)
        for arch, number in (("vit_small", "73.2"), ("vit_base", "76.7"))
    ),
    *(
        ("knn", _DEMO | dict(symmetric=symmetric, epochs=epochs), number, DEMO)
        for symmetric, numbers in (
            (False, ("82.6", "86.3", "88.7")),
            (True, ("85.3", "88.5", "89.7")),
        )
        for epochs, number in zip((200, 400, 800), numbers, strict=True)
    ),
)


def of(evaluation: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the published per cent for a run with these settings, and its source.

    None where none of the papers has such a run. `evaluation` is one of those in `NUMBERS`.
    """
    if _other_views(config):
        return None
    for kind, settings, number, source in NUMBERS:
        if kind == evaluation and all(config[key] == value for key, value in settings.items()):
            return number, source
    return None


def _other_views(config: Mapping[str, Any]) -> bool:
    """Whether views have other strengths than their recipe's, which is the papers'."""
    return any(len(config[name]) for name in STRENGTHS)


@dataclasses.dataclass(frozen=True)
class Curve:
    """The kNN accuracy and the loss of a published run, epoch by epoch.

    Attributes:
        knn: number of epochs -> kNN accuracy after them, 0..1.
        loss: number of an epoch, from 1 -> mean loss in it.
        source: who published it.
    """

    knn: Mapping[int, float]
    loss: Mapping[int, float]
    source: str


_DEMO_CURVE = Curve(
    knn={1: 0.320, 5: 0.380, 10: 0.480, 20: 0.614, 50: 0.733, 100: 0.781, 200: 0.826},
    loss={1: 6.96, 3: 7.29, 10: 5.99, 50: 3.19, 200: 2.27},
    source=DEMO,
)
CURVES: tuple[tuple[Mapping[str, Any], Curve], ...] = (
    (
        _DEMO | dict(symmetric=False, epochs=200, temperature=0.1, lr=0.06, weight_decay=5e-4),
        _DEMO_CURVE,
    ),
)


def curve(config: Mapping[str, Any]) -> Curve | None:
    """Return the published curve of a run with these settings; None where there is none."""
    for settings, published in CURVES:
        if not _other_views(config) and all(
            config[key] == value for key, value in settings.items()
        ):
            return published
    return None
