"""Makes the method that a config chooses, and numbers that follow from several settings."""

from ml_collections import ConfigDict

from moco_jax.method.choice import Method, dictionary_class


def method_of(config: ConfigDict) -> Method:
    """Read the method that `config` chooses."""
    return Method(
        key_encoder=config.key_encoder,
        dictionary=config.dictionary,
        negatives=config[dictionary_class(config.dictionary).size_setting],
        temperature=config.temperature,
        symmetric=config.symmetric,
        loss=config.loss,
        times_2t=config.times_2t,
        queue_start=config.queue_start,
        mask_same_example=config.mask_same_example,
        bank_momentum=config.bank_momentum,
        shuffle=config.shuffle,
        bn_groups=config.bn_groups,
        shuffle_groups=config.shuffle_groups,
    )


def queue_life(config: ConfigDict) -> int:
    """Count the steps that a key stays in the dictionary; 0 where keys do not grow old there.

    A queue's stay K / B steps, or K / 2B where both views become keys.
    """
    made = config.batch_size * (2 if config.symmetric else 1)
    return dictionary_class(config.dictionary).lifetime(method_of(config).negatives, made)


def peak_learning_rate(config: ConfigDict) -> float:
    """Compute the rate at the start of the schedule.

    It is scaled to the batch only where the config gives a batch that the rate is for.
    """
    scale = config.batch_size / config.lr_reference_batch if config.lr_reference_batch else 1
    return config.lr * scale
