r"""ImageNet with MoCo v3, as published: ResNet-50, and ViTs with patches of 16 pixels.

The ResNet is trained for 100, 300 or 1000 epochs, a ViT for 300. On one GPU a ViT's batch of
4096 goes through in parts, here of 128 images; the step stays the undivided one:

    python -m moco_jax.main --config=configs/imagenet_v3.py:vit_small \
        --config.accumulate=32 --workdir=runs/vit_small

A ResNet or a conv stem has BatchNorm over the whole batch, which cannot be divided: take a
smaller batch, as --config.batch_size=512; the learning rate follows it.
"""

from moco_jax.config import default_config, pick_variant

# Epochs, learning rate for 256 images, weight decay, momentum of the key encoder.
RESNETS = {
    "resnet50": (100, 0.6, 1e-6, 0.99),
    "resnet50_300ep": (300, 0.3, 1e-6, 0.99),
    "resnet50_1000ep": (1000, 0.3, 1.5e-6, 0.996),
}
VITS = ("vit_small", "vit_base", "vit_conv_small", "vit_conv_base")


def get_config(variant: str = ""):
    """Return the recipe: variants are those of RESNETS (the first is the default) and of VITS.

    The dataset is prepared by TFDS as `imagenet2012`.
    """
    variant = pick_variant(variant, [*RESNETS, *VITS])
    config = default_config()
    config.dataset, config.split, config.eval_split = "tfds:imagenet2012", "train", "validation"
    config.image_size, config.augment = 224, "v3"
    config.dictionary, config.symmetric, config.times_2t = "batch", True, True
    config.batch_size, config.lr_reference_batch = 4096, 256
    config.bn_groups, config.shuffle = 1, "none"
    config.dim, config.head_width = 256, 4096
    config.lr_schedule, config.momentum_schedule = "cosine_per_step", "cosine"
    config.monitor_every, config.knn_examples, config.knn_temperature = 10, 100_000, 0.07
    if variant in RESNETS:
        config.arch, config.head, config.predictor = "resnet50", "v3_resnet", "v3_resnet"
        config.zero_init_residual, config.crop_min, config.temperature = True, 0.2, 1.0
        config.optimizer, config.sgd_momentum, config.warmup_epochs = "lars", 0.9, 10
        config.epochs, config.lr, config.weight_decay, config.momentum = RESNETS[variant]
    else:
        config.arch, config.head, config.predictor = variant, "v3_vit", "v3_vit"
        config.crop_min, config.temperature = 0.08, 0.2
        config.optimizer, config.lr, config.weight_decay = "adamw", 1.5e-4, 0.1
        config.epochs, config.warmup_epochs, config.momentum = 300, 40, 0.99
    return config
