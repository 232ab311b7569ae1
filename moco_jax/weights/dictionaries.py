"""Finds the dictionary of weights in a file, among epochs, optimizers and arguments."""

from collections.abc import Mapping
from typing import Any

from moco_jax.base.text import printable
from moco_jax.weights.pickles import StandIn
from moco_jax.weights.stored import Odd, Plain, View

# Usual names of the dictionary of weights; the first that is there is taken: what was trained,
# then averages of it; of a teacher and its student the teacher, which is the average that such
# methods evaluate.
USUAL = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "teacher",
    "student",
    "state_dict_ema",
    "model_state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema_net",
    "ema",
    "backbone",
    "encoder",
    "checkpoint",
)
_DEPTH = 5  # of dictionaries within each other
_ARRAYS = (Plain, View, Odd)


class NoWeights(ValueError):
    """Raised where a file holds no weights; the text ends a sentence that names the file."""


def weights(tree: Any) -> tuple[dict[str, Any], list[str]]:
    """Find the weights in `tree`: names to arrays not yet read, and remarks.

    The remarks are sentences on which other dictionaries there were to choose, and what is left
    out.

    Args:
        tree: what a pickle was read to.

    Raises:
        NoWeights: there are none, or none that can be told from others.
    """
    remarks: list[str] = []
    for _ in range(_DEPTH):
        name, others = _next(tree)
        if not name:
            break
        if others or name not in USUAL:
            also = f", not {_listed(others)}" if others else ""
            remarks.append(f"its dictionary {printable(name)} is taken{also}")
        tree = tree[name]
    arrays = {name: value for name, value in tree.items() if isinstance(value, _ARRAYS)}
    for name, value in tree.items():
        nameless = name in arrays and not isinstance(name, str)
        if nameless or (isinstance(value, StandIn) and not value.known):
            what = "has no name" if nameless else f"is an object of {printable(value.name)}"
            raise NoWeights(f"is refused: {_listed([name])} among its weights {what}")
    beside = [name for name in tree if name not in arrays]
    if beside:
        remarks.append(f"left out, as they are no arrays: {_listed(beside)}")
    return arrays, remarks


def _next(tree: Any) -> tuple[str, list[str]]:
    """Return the key of `tree` under which to look for weights, and the names passed over.

    The key is '' where the weights lie in `tree` itself.
    """
    if isinstance(tree, StandIn) and not _holds(tree, set()):
        raise NoWeights(
            f"holds no weights by name: it is an object of {printable(tree.name)}; what its "
            "state_dict() gives can be read"
        )
    if not isinstance(tree, Mapping) or not tree:
        raise NoWeights("holds no weights by name")
    inside = [
        name
        for name, value in tree.items()
        if isinstance(name, str) and isinstance(value, Mapping) and _holds(value, set())
    ]
    usual = [name for name in USUAL if name in inside]
    if usual:
        return usual[0], usual[1:]
    if _has_arrays(tree):
        return "", []
    large = [
        name
        for name in inside
        if any(getattr(value, "rank", 0) > 1 for value in tree[name].values())
    ]
    if len(large) == 1:
        return large[0], []
    if large:
        raise NoWeights(
            f"holds several dictionaries of arrays, {_listed(large)}, and none of a usual name; "
            "keep one of them"
        )
    raise NoWeights(f"holds no weights by name: {_listed(tree)} is no array")


def _has_arrays(tree: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, _ARRAYS) for value in tree.values())


def _holds(tree: Mapping[Any, Any], seen: set[int], depth: int = _DEPTH) -> bool:
    """Return whether arrays are in `tree`, or in dictionaries of usual names in it."""
    if id(tree) in seen or not depth:
        return False
    seen.add(id(tree))
    below = (tree[name] for name in USUAL if isinstance(tree.get(name), Mapping))
    return _has_arrays(tree) or any(_holds(value, seen, depth - 1) for value in below)


def _listed(names: Any) -> str:
    """Format the first few `names`, keys of a pickle's dictionary of any kind, as one line."""
    shown = (str, int, float, bool, type(None), StandIn)
    some = [str(name)[:100] if isinstance(name, shown) else type(name).__name__ for name in names]
    return printable(", ".join(some[:5]) + (f" and {len(some) - 5} more" if some[5:] else ""))
