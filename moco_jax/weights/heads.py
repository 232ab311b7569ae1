"""Reads heads, predictor and queue that lightly and solo-learn keep beside their encoders.

They are taken where this project has heads of the same kind, and remarked on elsewhere.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.weights import layouts, moco, timm
from moco_jax.weights.pretrained import Variables, part, template

Arrays = Mapping[str, np.ndarray]
PREDICTOR = "predictor."
QUEUE = ("queue", "queue_ptr")


@dataclasses.dataclass(frozen=True)
class Heads:
    """Heads, predictor and queue that were read from a file.

    Attributes:
        options: arguments of `encoders.create` that they add to the backbone's.
        query, key: variables of 'head', and of the query encoder also 'predictor'; each empty
            where there is none.
        queue: `[K, dim]`, the oldest key first; None: there is none.
        taken: prefixes of the names of the entries that were read.
        remarks: a sentence on each part that has no place here.
    """

    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    query: dict[str, Variables] = dataclasses.field(default_factory=dict)
    key: dict[str, Variables] = dataclasses.field(default_factory=dict)
    queue: np.ndarray | None = None
    taken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def reading_exchanged_features(self) -> "Heads":
        """Return heads for features whose halves have changed places, see `timm.rows_first`."""

        def turned(parts: dict[str, Variables]) -> dict[str, Variables]:
            params = dict(parts.get("head", {}).get("params", {}))
            for layer in params.keys() & {"fc", "fc1"}:
                kernel = timm.exchanged(params[layer]["kernel"], 0)
                params[layer] = params[layer] | {"kernel": kernel}
            return parts | {"head": parts["head"] | {"params": params}} if params else parts

        return dataclasses.replace(self, query=turned(self.query), key=turned(self.key))


def load(
    arrays: Arrays,
    layout: layouts.Layout,
    options: dict[str, Any],
    size: int,
    channels: int,
    has_key: bool,
) -> Heads:
    """Read the heads among `arrays`, for the backbone with these `options`.

    Args:
        arrays: names to arrays.
        layout: of the file.
        options: of `encoders.create`, without a head.
        size, channels: of the images.
        has_key: whether there is a momentum encoder, whose head then must be there too.
    """
    names = layout.heads or ("", "")
    heads = [layouts.under(arrays, name) if name else {} for name in names]
    if not heads[0]:
        return Heads()
    try:
        options = options | moco.head_options(heads[0])
        shapes = part(template(options, size, channels), "head")
        query = {"head": moco.load_head(heads[0], shapes, names[0])}
        key = {"head": moco.load_head(heads[1], shapes, names[1])} if has_key else {}
    except UserError as error:
        return Heads(remarks=(f"no head of this kind is here: {error}",))
    taken = names if has_key else names[:1]
    remarks: tuple[str, ...] = ()
    predictor = layouts.under(arrays, PREDICTOR)
    if predictor:
        wanted = options | {"predictor": moco.predictor_of(predictor)}
        try:
            shapes = part(template(wanted, size, channels), "predictor")
            query["predictor"] = moco.load_head(predictor, shapes, PREDICTOR)
            options, taken = wanted, (*taken, PREDICTOR)
        except UserError as error:
            remarks = (f"no predictor of this kind is here: {error}",)
    queue = _queue(arrays, options["dim"])
    taken = taken if queue is None else (*taken, *QUEUE)
    return Heads(options, query, key, queue, taken, remarks)


def _queue(arrays: Arrays, dim: int) -> np.ndarray | None:
    """Read the queue of the second view's keys from solo-learn's two queues.

    Queries of the first view are compared with it, as here. The file holds a queue for each
    view, `[2, dim, K]`, with one pointer at the oldest keys of both.
    """
    both = arrays.get(QUEUE[0])
    if both is None or both.ndim != 3 or both.shape[:2] != (2, dim):
        return None
    return moco.oldest_first(both[1], arrays.get(QUEUE[1], np.zeros(1)))
