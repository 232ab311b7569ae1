"""Your own images: MoCo v2 with a ResNet-18 for one GPU, and a smaller form for a laptop.

Give the images by --config.data_dir=FOLDER (any depth, with or without class subfolders) or a
text file with one path a line; nothing else is needed. Several places work, '(A, B)', and so do
shards and tables: --config.dataset=tar, tfrecord, arrayrecord, parquet or hf (docs/data.md).
"""

from moco_jax.config import default_config, pick_variant


def get_config(variant: str = ""):
    """Return the recipe: variants are `gpu` (the default) and `cpu`."""
    variant = pick_variant(variant, ["gpu", "cpu"])
    config = default_config()
    config.dataset, config.split = "folder", "train"
    config.image_size, config.augment = 224, "v2"
    config.arch, config.head = "resnet18", "mlp"
    config.batch_size, config.bn_groups, config.shuffle_groups = 64, 4, 4
    config.queue_size, config.momentum, config.temperature = 4096, 0.99, 0.2
    config.epochs, config.lr, config.lr_schedule = 200, 0.03, "cosine"
    config.monitor_every, config.knn_k, config.knn_examples = 10, 20, 10_000
    if variant == "cpu":
        config.image_size, config.stem = 64, "cifar_stride2"
        config.arch, config.width = "resnet10", 32
        config.queue_size, config.epochs = 512, 100
        config.cpu_devices, config.log_every = 4, 10
    return config
