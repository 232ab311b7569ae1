"""Recipes of fine-tuning: SGD as ResNets are fine-tuned, or DeiT's for ViTs."""

import dataclasses
from typing import Any

import numpy as np

from moco_jax.method import optimizers

MIN_STEPS = 1000  # 20 epochs of 1 % of ImageNet, in batches of 256


@dataclasses.dataclass(frozen=True)
class Training:
    """A fine-tuning recipe.

    Learning rates are those of the batch that the recipe is for; they fall along a cosine, at
    every step.

    Attributes:
        optimizer: 'sgd' (momentum 0.9) or 'adamw' (no decay on class token and parameters of
            rank 0 and 1).
        epochs, batch_size: length, and images at a step.
        backbone_rate, classifier_rate: at the start, or after the warm-up.
        scratch_rate: of both where training starts from random weights.
        weight_decay: as the optimizer has it.
        warmup: share of the epochs in which the rates rise from 0.
        smoothing: share of each target that all classes divide among them.
        mixup, cutmix: as in `mixing.draw`.
        drop_path: of a ViT's last block.
        layer_decay: of a ViT: the rate of each layer, as a multiple of that of the layer above
            it.
    """

    optimizer: str
    epochs: int
    batch_size: int
    backbone_rate: float
    classifier_rate: float
    scratch_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.0
    smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    layer_decay: float = 1.0


RECIPES = ("sgd", "deit")


def training(recipe: str, epochs: int = 0, batch_size: int = 0, **changes: Any) -> Training:
    """Return one of `RECIPES` with changes; zeros and None keep the recipe's own values.

    'sgd': as ResNets are fine-tuned on 1 and 10 % of ImageNet (arXiv 2006.09882): no decay, a
    classifier's rate twenty times the backbone's. 'deit' (arXiv 2012.12877), by which MoCo v3
    fine-tunes its ViT-B: rates follow the batch.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    if recipe == "sgd":
        own = Training("sgd", epochs or 20, batch_size or 256, 0.01, 0.2, 0.1)
    else:
        batch_size = batch_size or 1024
        rate = 5e-4 * batch_size / 512
        own = Training(
            "adamw",
            epochs or 150,
            batch_size,
            rate,
            rate,
            rate,
            weight_decay=0.05,
            warmup=1 / 30,
            smoothing=0.1,
            mixup=0.8,
            cutmix=1.0,
            drop_path=0.1,
        )
    return dataclasses.replace(own, **given)


def shape(how: Training, number: int, devices: int, exact_epochs: bool) -> tuple[int, int, int]:
    """Return images at a step, steps in an epoch and epochs, for `number` images.

    A batch is no larger than all images, but for what makes it divide over `devices`. With
    `exact_epochs` epochs are the recipe's; without, there are more where these have fewer than
    `MIN_STEPS` steps.
    """
    batch = min(how.batch_size, -(-number // devices) * devices)
    steps = -(-number // batch)
    epochs = how.epochs if exact_epochs else max(how.epochs, -(-MIN_STEPS // steps))
    return batch, steps, epochs


def schedule(how: Training, epochs: int, steps: int) -> np.ndarray:
    """Return the factor on the learning rates at each step, float32."""
    rate_at = optimizers.learning_rate(
        1.0,
        schedule="cosine_per_step",
        epochs=epochs,
        steps_per_epoch=steps,
        warmup_epochs=how.warmup * epochs,
    )
    return optimizers.values(rate_at, epochs * steps).astype(np.float32)
