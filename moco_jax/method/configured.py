"""What a config makes of the method: the choice of its parts, and numbers that follow from several settings."""

from ml_collections import ConfigDict

from moco_jax.method.choice import Method


def method_of(config: ConfigDict) -> Method:
    """The choice of parts that `config` makes."""
    bank = config.dictionary == "memory_bank"
    return Method(
        key_encoder=config.key_encoder, dictionary=config.dictionary,
        negatives=config.bank_negatives if bank else config.queue_size,
        temperature=config.temperature, symmetric=config.symmetric, loss=config.loss,
        times_2t=config.times_2t, queue_start=config.queue_start,
        mask_same_example=config.mask_same_example, bank_momentum=config.bank_momentum,
        shuffle=config.shuffle, bn_groups=config.bn_groups, shuffle_groups=config.shuffle_groups,
    )  # fmt: skip


def queue_life(config: ConfigDict) -> int:
    """Steps that a key stays in the queue, K / B, or K / 2B where both views become keys; 0 without a queue."""
    if config.dictionary != "queue":
        return 0
    return -(-config.queue_size // (config.batch_size * (2 if config.symmetric else 1)))


def peak_learning_rate(config: ConfigDict) -> float:
    """The rate at the start of the schedule, scaled to the batch only where the config says so."""
    scale = config.batch_size / config.lr_reference_batch if config.lr_reference_batch else 1
    return config.lr * scale
