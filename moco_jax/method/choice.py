"""A method as a choice: which encoder makes keys, where negatives come from, which loss.

| method | key_encoder | dictionary | also | in |
|---|---|---|---|---|
| MoCo v1, v2 | momentum | queue | | moco.py |
| MoCo's CIFAR-10 demo | momentum | queue | symmetric | moco.py |
| MoCo v3 | momentum | batch | symmetric, a predictor, times_2t | moco_v3.py |
| end-to-end (v1, figure 2a) | query | batch | | end_to_end.py |
| memory bank (v1, figure 2b) | none | memory_bank | 'info_nce', or 'nce' | memory_bank.py |
"""

import dataclasses
import math

from moco_jax.base.errors import UserError
from moco_jax.method.dictionary import DICTIONARIES, Dictionary

KEY_ENCODERS = ("momentum", "query", "none")
LOSSES = ("info_nce", "nce")
SHUFFLES = ("exchange", "permutation", "none")
QUEUE_STARTS = ("random", "empty")


@dataclasses.dataclass(frozen=True)
class Method:
    """The choices that define a method: key encoder, dictionary, loss.

    Attributes:
        key_encoder: 'momentum' (a moving average of the query encoder), 'query' (the same encoder,
            with gradient), 'none' (the key of an example is its entry in the memory bank).
        dictionary: where negatives come from, a name in `DICTIONARIES`: 'queue', 'batch' (the other
            keys of the global batch), 'memory_bank'.
        negatives: K, keys in the queue or drawn from the memory bank at a step; not used with
            'batch'.
        temperature: tau.
        symmetric: both views are queries, each matched with the other's key; the two losses add.
        loss: 'info_nce', or 'nce' (the memory bank's first form).
        times_2t: the loss is multiplied by 2 tau (MoCo v3).
        queue_start: whether the random vectors that a queue starts with count ('random'), as in the
            authors' code, or only keys of images ('empty').
        mask_same_example: leave out negatives that were made from the query's own example.
        bank_momentum: an entry of the bank becomes `bank_momentum` times itself plus the rest of
            the new feature.
        shuffle: how key images change their BN groups: 'exchange', 'permutation' (drawn at every
            step), 'none'.
        bn_groups, shuffle_groups: G and S, see `shuffle.exchange`.
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
        """Refuse, by a UserError, parts that do not go together."""
        known = [n for n, kind in DICTIONARIES.items() if self.key_encoder in kind.key_encoders]
        if self.dictionary not in known:
            raise UserError(
                f"key_encoder={self.key_encoder!r} does not go with "
                f"dictionary={self.dictionary!r}; use dictionary={' or '.join(map(repr, known))}"
            )
        losses = dictionary_class(self.dictionary).losses
        if self.loss not in losses:
            raise UserError(
                f"loss={self.loss!r} is the memory bank's; dictionary={self.dictionary!r} goes "
                f"with loss={' or '.join(map(repr, losses))}"
            )
        if self.symmetric and self.key_encoder == "none":
            raise UserError(
                "symmetric=True needs keys of both views, and "
                f"dictionary={self.dictionary!r} has one entry an example; symmetric=False works"
            )

    def chance_level(self, batch_size: int) -> float | None:
        """Compute the loss in nats of queries that are as close to every key.

        None for 'nce', which has no such level.
        """
        if self.loss == "nce":
            return None
        keys = dictionary_class(self.dictionary).compared(self.negatives, batch_size)
        scale = 2 * self.temperature if self.times_2t else 1
        return math.log(keys) * (2 if self.symmetric else 1) * scale

    def describe(self) -> str:
        """Name the dictionary in a few words."""
        return dictionary_class(self.dictionary).describe(self.negatives)


def dictionary_class(name: str) -> type[Dictionary]:
    """Look up the dictionary `name`; UserError where there is none of that name."""
    if name not in DICTIONARIES:
        raise UserError(f"dictionary={name!r} is unknown; use one of {', '.join(DICTIONARIES)}")
    return DICTIONARIES[name]
