"""The embedded default: 1,797 handwritten digits at random places on a 32 x 32 canvas; minutes on a CPU."""

from moco_jax.config import default_config, pick_variant


def get_config(variant: str = ""):
    """MoCo v2 in small; no variants."""
    pick_variant(variant, ["default"])
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
    config.checkpoint_every = 110
    return config
