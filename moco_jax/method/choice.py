"""The method as a choice of parts: who encodes keys, where negatives come from, which loss compares them.

| method | key_encoder | dictionary | also |
|---|---|---|---|
| MoCo v1, v2 | momentum | queue | |
| MoCo's CIFAR-10 demo | momentum | queue | symmetric |
| MoCo v3 | momentum | batch | symmetric, a predictor, times_2t |
| end-to-end (v1, figure 2a) | query | batch | |
| memory bank (v1, figure 2b) | none | memory_bank | loss 'info_nce', or 'nce' as first published |
"""

import dataclasses
import math

from moco_jax.base.errors import UserError

# who encodes keys -> the dictionaries that this goes with
KEY_ENCODERS: dict[str, tuple[str, ...]] = {
    "momentum": ("queue", "batch"),
    "query": ("batch",),
    "none": ("memory_bank",),
}
DICTIONARIES = ("queue", "batch", "memory_bank")
LOSSES = ("info_nce", "nce")
SHUFFLES = ("exchange", "permutation", "none")
QUEUE_STARTS = ("random", "empty")


@dataclasses.dataclass(frozen=True)
class Method:
    """What a step does with queries and keys.

    Attributes:
        key_encoder: 'momentum' (a moving average of the query encoder), 'query' (the same encoder, with gradient),
            'none' (the key of an example is its entry in the memory bank).
        dictionary: where negatives come from: 'queue', 'batch' (the other keys of the global batch), 'memory_bank'.
        negatives: K, keys in the queue or drawn from the memory bank at a step; not used with 'batch'.
        temperature: tau.
        symmetric: both views are queries, each matched with the other's key; the two losses add.
        loss: 'info_nce', or 'nce' (the memory bank's first form).
        times_2t: the loss is multiplied by 2 tau (MoCo v3).
        queue_start: whether the random vectors that a queue starts with count ('random'), as in the authors' code, or
            only keys of images ('empty').
        mask_same_example: leave out negatives that were made from the query's own example.
        bank_momentum: an entry of the bank becomes `bank_momentum` times itself plus the rest of the new feature.
        shuffle: how key images change their BN groups: 'exchange', 'permutation' (drawn at every step), 'none'.
        bn_groups, shuffle_groups: G and S, see `step.exchange`.
    """

    key_encoder: str = "momentum"
    dictionary: str = "queue"
    negatives: int = 65536
    temperature: float = 0.07
    symmetric: bool = False
    loss: str = "info_nce"
    times_2t: bool = False
    queue_start: str = "random"
    mask_same_example: bool = False
    bank_momentum: float = 0.5
    shuffle: str = "exchange"
    bn_groups: int = 8
    shuffle_groups: int = 8

    def check(self) -> None:
        """UserError where the parts do not go together."""
        known = KEY_ENCODERS[self.key_encoder]
        if self.dictionary not in known:
            raise UserError(
                f"key_encoder={self.key_encoder!r} does not go with dictionary={self.dictionary!r}; "
                f"use dictionary={' or '.join(map(repr, known))}"
            )
        if self.loss == "nce" and self.dictionary != "memory_bank":
            raise UserError(
                f"loss='nce' is the memory bank's; dictionary={self.dictionary!r} goes with loss='info_nce'"
            )
        if self.symmetric and self.dictionary == "memory_bank":
            raise UserError(
                "symmetric=True needs keys of both views, and dictionary='memory_bank' has one entry an example; "
                "symmetric=False works"
            )

    def chance_level(self, batch_size: int) -> float | None:
        """The loss in nats of queries that are as close to every key; None for 'nce', which has no such level."""
        if self.loss == "nce":
            return None
        keys = batch_size if self.dictionary == "batch" else 1 + self.negatives
        scale = 2 * self.temperature if self.times_2t else 1
        return math.log(keys) * (2 if self.symmetric else 1) * scale

    def describe(self) -> str:
        """The dictionary in a few words."""
        return {
            "queue": f"queue of {self.negatives:,} keys",
            "batch": "the other keys of the batch",
            "memory_bank": f"memory bank, {self.negatives:,} entries drawn at a step",
        }[self.dictionary]
