"""Findings on images that were examined: damage, size, copies, and misleading endings."""

from collections.abc import Callable, Sequence

import numpy as np

from moco_jax.base.console import size
from moco_jax.base.findings import FAULT, NOTE, OK, WARNING, Finding
from moco_jax.doctor.survey import FORMATS, UNKNOWN, Survey

FREQUENT = 0.01  # share of the images from which on something is more than a curiosity

DARK = 0.2  # share of white below which nearly all pixels of a dark dataset lie

Name = Callable[[int], str]


def findings(
    survey: Survey,
    name: Name,
    files: Sequence[str] | None,
    image_size: int,
    max_bad_images: int,
    background: int,
) -> list[Finding]:
    """Make all findings of a survey.

    Args:
        survey: what was found.
        name: what to call an image of the dataset.
        files: the images' file names by index; None where they are not single files.
        image_size, max_bad_images, background: the settings.
    """
    return [
        *looked(survey),
        *measured(survey),
        *damaged(survey, name, files is not None, max_bad_images),
        *tiny(survey, name, image_size),
        *see_through(survey, name, background),
        *copies(survey, name),
        *([] if files is None else misnamed(survey, name, files)),
    ]


def _named(
    survey: Survey, name: Name, rows: np.ndarray, more: Callable[[int], str]
) -> tuple[str, ...]:
    return tuple(f"{name(int(survey.indices[row]))}{more(row)}" for row in rows)


def looked(survey: Survey) -> list[Finding]:
    """Report how many images were examined, and how large they are."""
    n, sides = len(survey.indices), shorter_sides(survey)
    which = (
        f"all {n:,} images"
        if n == survey.total
        else f"{n:,} of {survey.total:,} images, evenly spread (--full: all)"
    )
    if not len(sides):
        return [Finding(OK, f"looked at {which}")]
    low, middle, high = np.percentile(sides, (0, 50, 100), method="nearest")
    mean = size(float(survey.bytes[survey.good].mean()))
    return [
        Finding(
            OK,
            (
                f"looked at {which}: shorter side {low} to {high} pixels, median {middle}; {mean} "
                "each (mean)"
            ),
        )
    ]


def measured(survey: Survey) -> list[Finding]:
    """Report mean and standard deviation of each channel, and whether images are nearly black."""
    if not survey.good.any():
        return []
    mean, std = (f"({', '.join(f'{x:.3g}' for x in v)})" for v in (survey.mean, survey.std))
    found = [Finding(OK, f"measured per channel, scaled to 0..1: mean={mean} std={std}")]
    if (survey.mean + 2 * survey.std).max() < DARK:
        found.append(
            Finding(
                NOTE,
                "the images are nearly black; if their pixels have more than eight bits, "
                "--config.white=VALUE says which value is white",
            )
        )
    return found


def shorter_sides(survey: Survey) -> np.ndarray:
    """Return the shorter side in pixels of each image that could be decoded, int32 `[m]`."""
    return survey.sides[survey.good].min(axis=1)


def damaged(survey: Survey, name: Name, single_files: bool, limit: int) -> list[Finding]:
    """Find images that cannot be decoded, and whether a run would stop because of them.

    Args:
        survey: the images that were examined.
        name: what to call an image.
        single_files: whether each is a file of its own.
        limit: damaged images at which a run stops.
    """
    n, bad = len(survey.indices), np.flatnonzero(~survey.good)
    if not len(bad):
        return [Finding(OK, "none is damaged")]

    def why(row: int) -> str:
        if row in survey.refused:
            return f": {survey.refused[row]}"
        if not survey.bytes[row]:
            return ": empty or unreadable"
        if not single_files:
            return ""
        found = survey.format[row]
        return (
            ": no image"
            if found == UNKNOWN
            else f": {FORMATS[found][1]} that is cut, damaged or of an unread kind"
        )

    details = _named(survey, name, bad, why)
    if len(bad) == n:
        return [Finding(FAULT, f"none of {n:,} images can be decoded", details)]
    expected = round(len(bad) / n * survey.total)
    text = f"{len(bad):,} of {n:,} cannot be decoded"
    if n < survey.total:
        text += f", so about {expected:,} of all"
    if expected > limit:
        return [
            Finding(
                FAULT,
                f"{text}; a run stops at more than max_bad_images={limit}: mend or remove them",
                details,
            )
        ]
    return [
        Finding(
            WARNING, f"{text}; a run takes the next image instead: mend or remove them", details
        )
    ]


def common_sides(survey: Survey) -> tuple[int, int] | None:
    """Return height and width of all images that could be decoded; None where they differ."""
    found = np.unique(survey.sides[survey.good], axis=0)
    return (int(found[0, 0]), int(found[0, 1])) if len(found) == 1 else None


def one_size(survey: Survey, name: Name) -> list[Finding]:
    """Find whether all images have one size, as resident ones must."""
    sides, rows = survey.sides, np.flatnonzero(survey.good)
    if not len(rows):
        return []
    other = rows[(sides[rows] != sides[rows[0]]).any(axis=1)]
    if not len(other):
        return [Finding(OK, f"all are {sides[rows[0], 1]} x {sides[rows[0], 0]} pixels")]

    def dimensions(row: int) -> str:
        return f": {sides[row, 1]} x {sides[row, 0]}"

    return [
        Finding(
            FAULT,
            (
                "images differ in size, and augment_on='resident' needs one size: "
                "--config.augment_on=device"
            ),
            _named(survey, name, np.asarray([rows[0], *other]), dimensions),
        )
    ]


def tiny(survey: Survey, name: Name, image_size: int) -> list[Finding]:
    """Find images whose shorter side is below half of `image_size`."""
    least = image_size / 2
    small = np.flatnonzero(survey.good & (survey.sides.min(axis=1) < least))
    if not len(small):
        return [
            Finding(OK, f"none is tiny: no shorter side is below {least:g} pixels (image_size / 2)")
        ]

    def dimensions(row: int) -> str:
        return f": {survey.sides[row, 1]} x {survey.sides[row, 0]}"

    share = len(small) / len(survey.indices)
    return [
        Finding(
            WARNING if share >= FREQUENT else NOTE,
            f"{len(small):,} of {len(survey.indices):,} are tiny (shorter side below {least:g} "
            "pixels, image_size / 2) and their views mostly interpolation: remove them, or lower "
            "image_size",
            _named(survey, name, small, dimensions),
        )
    ]


def see_through(survey: Survey, name: Name, background: int) -> list[Finding]:
    """Find images with transparent pixels, where transparency is not a channel of its own."""
    rows = np.flatnonzero(survey.good & survey.transparent)
    if not len(rows) or len(survey.mean) not in (1, 3):
        return []
    share = len(rows) / len(survey.indices)
    text = f"{len(rows):,} of {len(survey.indices):,} have transparent parts"
    if background >= 0:
        return [Finding(OK, f"{text}, which are blended with background={background}")]
    return [
        Finding(
            WARNING if share >= FREQUENT else NOTE,
            f"{text}. Transparency is dropped: the colours hidden there, often black, are what the "
            "network sees; --config.background=255 puts them on white",
            _named(survey, name, rows, lambda _: ""),
        )
    ]


def copies(survey: Survey, name: Name) -> list[Finding]:
    """Find images with the same pixels as an earlier one."""
    rows = np.flatnonzero(survey.good)
    order = rows[np.argsort(survey.pixels[rows], kind="stable")]
    ends = np.flatnonzero(survey.pixels[order][1:] != survey.pixels[order][:-1]) + 1
    groups = [g for g in np.split(order, ends) if len(g) > 1]
    if not groups:
        more = (
            ""
            if len(survey.indices) == survey.total
            else " among these (few would meet in a sample: --full)"
        )
        return [Finding(OK, f"none is there twice{more}")]

    def described(group: np.ndarray) -> str:
        same = len(set(survey.content[group].tolist())) == 1
        names = " = ".join(name(int(survey.indices[row])) for row in group)
        return f"{names} ({'the same bytes' if same else 'the same pixels'})"

    surplus = sum(len(g) - 1 for g in groups)
    share = surplus / len(survey.indices)
    return [
        Finding(
            WARNING if share >= FREQUENT else NOTE,
            f"{surplus:,} of {len(survey.indices):,} are copies of others, and a copy counts as a "
            "negative of its original: remove them",
            tuple(map(described, groups)),
        )
    ]


def misnamed(survey: Survey, name: Name, files: Sequence[str]) -> list[Finding]:
    """Find files whose ending is not that of their content, by which they are decoded."""

    def misleads(row: int) -> bool:
        found = survey.format[row]
        return found != UNKNOWN and not files[survey.indices[row]].lower().endswith(
            FORMATS[found][2]
        )

    rows = np.asarray([row for row in range(len(survey.indices)) if misleads(row)], np.int64)
    if not len(rows):
        return [Finding(OK, "every ending is that of the content")]
    details = _named(survey, name, rows, lambda row: f": {FORMATS[survey.format[row]][1]}")
    text = f"{len(rows):,} of {len(survey.indices):,} have an ending that is not their content's"
    return [
        Finding(
            WARNING,
            f"{text} (training reads the content, other programs may not): rename them",
            details,
        )
    ]
