"""Which files `data_dir` means where a dataset lies in shards: all of a folder, or those that a pattern names."""

import os
import re

import tensorflow as tf

from moco_jax.data.sources import store
from moco_jax.errors import UserError

_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)")


def braces(pattern: str) -> list[str]:
    """`pattern` with its braces written out, as a shell does: x{08..10} and x{a,b}.

    UserError where braces hold neither.
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    choices = found[1].split(",")
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        choices = [str(number).zfill(len(span[1])) for number in numbers]
    if not choices or (not span and len(choices) < 2):
        raise UserError(
            f"data_dir={pattern}: {found[0]} names nothing; {{000..031}} and {{a,b}} are understood"
        )
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for choice in choices for path in braces(before + choice + after)]


def _complete(folder: str, names: list[str]) -> None:
    """Refuse a folder that lacks one of the shards that the others' names count."""
    groups: dict[tuple[str, int, str], int] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found:
            group = (found[1], int(found[3]), found[4])
            groups[group] = groups.get(group, 0) + 1
    for (start, of, _), count in groups.items():
        if count != of:
            raise UserError(
                f"data_dir={folder} holds {count} of the {of} shards {start}-...; bring the others (a packing "
                "that was cut off goes on by the same command), or name files by a pattern"
            )


def find(data_dir: str, kind: str, ending: str) -> list[str]:
    """The shards in `data_dir`, in order: a folder's, or those of a pattern with braces, * and ?.

    `kind`: how messages call them; `ending`: a regular expression for the end of a shard's name.

    Raises:
        UserError: there is none, or one that is named is missing.
    """
    help_ = f"give a folder of {kind} files, or a pattern such as FOLDER/train-{{000..031}}.{kind}"
    if not data_dir:
        raise UserError(f"data_dir='' names no {kind} files; {help_}")
    if store.is_folder(data_dir):
        names = [n for n in store.listing(data_dir) if re.search(f"{ending}$", n) and n[0] != "."]
        if not names:
            raise UserError(f"data_dir={data_dir} holds no {kind} file; {help_}")
        _complete(data_dir, names)
        return [os.path.join(data_dir, name) for name in names]
    paths = []
    for path in braces(data_dir):
        matched = sorted(tf.io.gfile.glob(path)) if re.search(r"[*?]", path) else [path]
        if not matched or not store.is_file(matched[0]):
            raise UserError(f"data_dir={data_dir}: there is no {kind} file {path}; {help_}")
        paths += matched
    return paths
