"""ImageNet with ResNet-50, as published: MoCo v1, and MoCo v2 for 200 or 800 epochs."""

from moco_jax.config import default_config, pick_variant


def get_config(variant: str = ""):
    """Return the recipe: variants are `v2` (the default), `v1` and `v2_800ep`.

    The dataset is prepared by TFDS as `imagenet2012`.
    """
    variant = pick_variant(variant, ["v2", "v1", "v2_800ep"])
    config = default_config()
    config.dataset, config.split, config.eval_split = "tfds:imagenet2012", "train", "validation"
    config.image_size, config.arch = 224, "resnet50"
    config.batch_size, config.bn_groups, config.shuffle_groups = 256, 8, 8
    config.queue_size, config.momentum = 65536, 0.999
    config.lr, config.weight_decay = 0.03, 1e-4
    config.monitor_every, config.knn_examples, config.knn_temperature = 10, 100_000, 0.07
    if variant == "v1":
        config.augment, config.head, config.temperature = "v1", "linear", 0.07
        config.epochs, config.lr_schedule, config.lr_steps = 200, "steps", (120, 160)
    else:
        config.augment, config.head, config.temperature = "v2", "mlp", 0.2
        config.epochs, config.lr_schedule = 800 if variant == "v2_800ep" else 200, "cosine"
    return config
