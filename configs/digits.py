"""The embedded default: 1,797 handwritten digits on 32 x 32 canvases; minutes on a CPU."""

from typing import Any

from moco_jax.config import default_config, pick_variant

BANK = dict(key_encoder="none", dictionary="memory_bank", bank_negatives=1024, shuffle="none")
METHODS: dict[str, dict[str, Any]] = {
    "moco": {},
    "symmetric": dict(symmetric=True),
    "end_to_end": dict(key_encoder="query", dictionary="batch"),
    "memory_bank": BANK,
    "memory_bank_nce": BANK | dict(loss="nce"),
    "v3": dict(
        dictionary="batch",
        symmetric=True,
        times_2t=True,
        head="v3_resnet",
        predictor="v3_resnet",
        head_width=512,
        bn_groups=1,
        shuffle="none",
        zero_init_residual=True,
        lr_schedule="cosine_per_step",
        warmup_epochs=5,
        momentum_schedule="cosine",
    ),
}
# Learning rates of methods, as multiples of MoCo's.
RATES = {"v3": 5.0, "memory_bank_nce": 1 / 6}


def get_config(variant: str = ""):
    """Return the recipe: variants are `moco` (small MoCo v2, the default) and others of METHODS."""
    variant = pick_variant(variant, METHODS)
    config = default_config()
    config.dataset, config.eval_split = "digits", "test"
    config.image_size, config.augment = 32, "digits"
    config.mean, config.std = (0.1,) * 3, (0.25,) * 3
    config.arch, config.width, config.stem = "resnet10", 16, "cifar_stride2"
    config.head, config.dim = "mlp", 128
    config.batch_size, config.bn_groups, config.shuffle_groups = 64, 4, 4
    config.queue_size, config.momentum, config.temperature = 1024, 0.99, 0.1
    config.epochs, config.lr, config.lr_schedule = 150, 0.06, "cosine"
    config.weight_decay = 5e-4
    config.compute_dtype = "float32"
    config.log_every, config.monitor_every, config.knn_k = 110, 25, 20
    config.update(METHODS[variant])
    config.lr *= RATES.get(variant, 1.0)
    return config
