"""CIFAR-10: the authors' demo, its symmetric form, and a form for half an hour on a laptop."""

from moco_jax.config import default_config, pick_variant


def get_config(variant: str = ""):
    """Return the recipe: variants are `demo` (the default), `symmetric` and `cpu`."""
    variant = pick_variant(variant, ["demo", "symmetric", "cpu"])
    config = default_config()
    config.dataset, config.split, config.eval_split = "tfds:cifar10", "train", "test"
    config.image_size, config.augment = 32, "cifar"
    config.mean, config.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.arch, config.stem, config.head, config.dim = "resnet18", "cifar", "linear", 128
    config.batch_size, config.bn_groups, config.shuffle_groups = 512, 8, 8
    config.symmetric = variant == "symmetric"
    config.queue_size, config.momentum, config.temperature = 4096, 0.99, 0.1
    config.epochs, config.lr, config.lr_schedule, config.first_epoch = 200, 0.06, "cosine", 1
    config.weight_decay = 5e-4
    config.compute_dtype = "float32"
    config.monitor_every, config.knn_k, config.knn_features = 5, 200, "output"
    if variant == "cpu":
        config.arch, config.width, config.head, config.crop_min = "resnet10", 32, "mlp", 0.2
        config.batch_size, config.bn_groups, config.shuffle_groups = 64, 4, 4
        config.temperature, config.epochs, config.first_epoch = 0.07, 6, 0
        config.lr, config.lr_schedule = 0.015, "cosine_per_step"
        config.monitor_every, config.knn_examples, config.knn_features = 1, 10_000, "backbone"
        config.knn_k, config.knn_temperature = 20, 0.03  # best on training images held apart
        config.log_every, config.cpu_devices = 60, 4
    return config
