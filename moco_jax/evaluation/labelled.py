"""Training and test images of known class, with their classes in one numbering."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moco_jax.base.errors import UserError
from moco_jax.data.sources import Source, remarks_of
from moco_jax.data.sources.labels import MISSING, known, listed
from moco_jax.evaluation.classes import Matched, match_sources


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images of known class.

    Attributes:
        source: where they are.
        indices: int64 `[N]`, their places in the source, ascending.
        classes: int64 `[N]`, places among `called`.
        about: their name, for a person.
        called: what each class is called; empty where numbers do.
        unlabelled: how many more there are without a label, which are left out.
    """

    source: Source
    indices: np.ndarray
    classes: np.ndarray
    about: str
    called: Sequence[str] = ()
    unlabelled: int = 0

    @property
    def number(self) -> int:
        """The number of classes."""
        return len(self.called) or int(self.classes.max()) + 1

    @property
    def facts(self) -> tuple[Any, ...]:
        """What tells these images from others, as `digests.of_tree` takes it."""
        return self.about, self.indices, self.classes

    def classes_of(self, indices: np.ndarray) -> np.ndarray:
        """Return the classes int64 `[m]` of some of `indices`."""
        return self.classes[np.searchsorted(self.indices, indices)]


class Part(NamedTuple):
    """Images `indices` int64 `[N]` of `source`, ascending, and what they are called."""

    source: Source
    indices: np.ndarray
    about: str


def labelled(train: Part, test: Part) -> tuple[Labelled, Labelled, list[str]]:
    """Select the images of both parts that have labels, and remark on what is odd or left out.

    Raises:
        UserError: a part has no labels, training images have one class alone, or test images a
            class of which the training images' set knows nothing.
    """
    matched = match_sources(*train[:2], *test[:2])
    if matched is None:
        raise _without_labels(train if known(*train[:2]) is None else test)
    if train.source is not test.source:
        _require_known_classes(train, test, matched)
    ours, theirs = _of(train, matched.train, matched), _of(test, matched.test, matched)
    if len(np.unique(ours.classes)) < 2:
        raise UserError(
            f"{train.about} has no labels that an evaluation could tell apart: all are of one "
            f"class, {matched.called[ours.classes[0]]!r}; it needs two"
        )
    remarks = remarks_of(train.source)
    remarks += [] if test.source is train.source else remarks_of(test.source)
    remarks += [_left_out(part) for part in (ours, theirs) if part.unlabelled]
    remarks += _on_classes(train, test, matched)
    return ours, theirs, remarks


def _of(part: Part, classes: np.ndarray, matched: Matched) -> Labelled:
    kept = classes >= 0
    without = int(len(kept) - kept.sum())
    called = tuple(matched.called)
    return Labelled(part.source, part.indices[kept], classes[kept], part.about, called, without)


def _left_out(part: Labelled) -> str:
    whole = len(part.indices) + part.unlabelled
    return f"{part.about}: {part.unlabelled:,} of {whole:,} images have no label and are left out"


def _without_labels(part: Part) -> UserError:
    remarks = "".join(f"; {remark}" for remark in remarks_of(part.source))
    all_missing = ""
    if part.source.labels(part.indices) is not None:
        all_missing = f" ({MISSING}, or none, at each of its {len(part.indices):,} images)"
    return UserError(
        f"{part.about} has no labels{all_missing}, which an evaluation needs; a folder with one "
        f"folder a class has them (docs/data.md){remarks}"
    )


def _require_known_classes(train: Part, test: Part, matched: Matched) -> None:
    """Refuse test images whose classes the training images lack, as their names show."""
    if not (matched.by_name and matched.strange):
        return
    nameless = [part.about for part in (train, test) if not any(part.source.classes)]
    if nameless:
        raise UserError(
            f"the classes of {nameless[0]} are numbers without names, and those of the other "
            "images have names: nothing says which are the same; name them in both (python -m "
            "moco_jax.pack writes names), or in neither"
        )
    strange = [matched.called[number] for number in matched.strange]
    theirs = np.unique(matched.test[matched.test >= 0])
    lacking = sorted(set(range(matched.strange[0])) - set(theirs.tolist()))
    odd = sorted([*strange, *(matched.called[number] for number in lacking)])
    raise UserError(
        f"{train.about} and {test.about} have different classes: {listed(odd)} are in one alone. "
        f"Nothing is learnt of {listed(strange)}: take these images out of {test.about}, or give "
        "training images of them"
    )


def _on_classes(train: Part, test: Part, matched: Matched) -> list[str]:
    """Remark on classes that only one part has, and on how classes were matched."""
    remarks, two = [], train.source is not test.source
    if two and not matched.by_name:
        remarks.append(
            f"the classes of {train.about} and {test.about} are numbers without names: the same "
            "number is taken for the same class"
        )
    lost = np.isin(matched.test, matched.unlearnt)
    if lost.any():
        asked = int((matched.test >= 0).sum())
        names = [matched.called[number] for number in matched.unlearnt.tolist()]
        remarks.append(
            f"{test.about}: {int(lost.sum()):,} of {asked:,} images are of a class of which there"
            f" is no training image, and count as wrong: {listed(names)}"
        )
    unseen = np.setdiff1d(matched.train[matched.train >= 0], matched.test)
    if two and len(unseen):
        names = [matched.called[number] for number in unseen.tolist()]
        remarks.append(
            f"{test.about} has no image of {listed(names)}, of which there are training images"
        )
    return remarks
