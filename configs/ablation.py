"""The comparisons of MoCo v1's section 4.1, as rows for `python -m moco_jax.ablation`.

Three tables: mechanism x number of negatives (figure 3), the momentum of the key encoder, and
shuffled BatchNorm. A fourth has each method once.
"""

from ml_collections import ConfigDict

from moco_jax.config import pick_variant
from moco_jax.configs import cifar10, digits

BANK = dict(key_encoder="none", dictionary="memory_bank", shuffle="none")
END_TO_END = dict(key_encoder="query", dictionary="batch")


def get_config(variant: str = "") -> ConfigDict:
    """Return the comparison: variants are `cifar10` (the default), `cifar10_cpu` and `digits`.

    A row of `cifar10_cpu` takes half an hour on two cores, a row of `digits` two minutes.

    Returns:
        `base`: the settings that all rows share; `seeds`: how often each row runs; `rows`: each
        with its `table`, the `line` of the figure that it belongs to, its place `x` on it, and
        the `settings` that differ from `base`.
    """
    variant = pick_variant(variant, ["cifar10", "cifar10_cpu", "digits"])
    if variant == "digits":
        base, most = digits.get_config(), 1024
        sizes, batches = [64, 256, 1024], [64, 128, 256]
        base.epochs, base.monitor_every = 60, 60
    elif variant == "cifar10_cpu":
        base, most = cifar10.get_config("cpu"), 4096
        sizes, batches = [256, 1024, 4096], [64, 128, 256]
        base.monitor_every = base.epochs
    else:
        base, most = cifar10.get_config(), 4096
        sizes, batches = [256, 1024, 4096, 16384], [256, 512, 1024]
        base.knn_features = "backbone"
    base.lr_reference_batch = base.batch_size
    rows = []

    def add(table: str, line: str, x, **settings) -> None:
        rows.append(dict(table=table, line=line, x=x, settings=settings))

    for size in sizes:
        add("negatives", "MoCo", size, queue_size=size)
    for size in sizes:
        add("negatives", "memory bank", size, bank_negatives=size, **BANK)
    for batch in batches:
        # K = B - 1; the rate grows with the batch (linear scaling, as the paper's end-to-end rows).
        add("negatives", "end-to-end", batch - 1, batch_size=batch, **END_TO_END)
    for momentum in (0.0, 0.9, 0.99, 0.999):
        add("momentum", "MoCo", momentum, momentum=momentum, queue_size=most)
    for shuffle in ("none", "exchange", "permutation"):
        add("shuffled BN", "MoCo", shuffle, shuffle=shuffle, queue_size=most)
    for shuffle in ("none", "exchange", "permutation"):
        add("shuffled BN", "end-to-end", shuffle, shuffle=shuffle, **END_TO_END)
    for name, settings in digits.METHODS.items():
        settings = settings | {"lr": base.lr * digits.RATES.get(name, 1.0), "queue_size": most}
        if "bank_negatives" in settings:
            settings["bank_negatives"] = most
        if "warmup_epochs" in settings:
            settings["warmup_epochs"] = min(settings["warmup_epochs"], max(base.epochs // 6, 1))
        add("methods", "each method", name, **settings)
    return ConfigDict(dict(base=base, seeds=3, rows=tuple(rows)))
