"""Finds the files of a dataset in shards: all of a folder, or those that a pattern names."""

import glob
import os
import re

from moco_jax.base.errors import UserError
from moco_jax.base.files import is_remote
from moco_jax.base.text import printable
from moco_jax.data.sources import store

MOST = 1_000_000  # files that braces may name at most
_NUMBERED = re.compile(r"(.*)-(\d+)-of-(\d+)(.*)", re.S)


def braces(pattern: str) -> list[str]:
    """Expand the braces of `pattern` as a shell does: x{08..10} and x{a,b}.

    Raises:
        UserError: braces hold neither, or name too many files.
    """
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if not brace:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    choices = brace[1].split(",")
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        if len(numbers) > MOST:
            raise UserError(
                f"data_dir={printable(pattern)}: {brace[0]} names {len(numbers):,} files; {MOST:,}"
                " at most work"
            )
        choices = [str(number).zfill(len(span[1])) for number in numbers]
    if not choices or (not span and len(choices) < 2):
        raise UserError(
            f"data_dir={printable(pattern)}: {printable(brace[0])} names nothing; {{000..031}} and"
            " {a,b} are understood"
        )
    before, after = pattern[: brace.start()], pattern[brace.end() :]
    return [path for choice in choices for path in braces(before + choice + after)]


def complete(folder: str, names: list[str]) -> None:
    """Refuse a folder that lacks one of the shards that the others' names count."""
    groups: dict[tuple[str, int, str], int] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            group = (match[1], int(match[3]), match[4])
            groups[group] = groups.get(group, 0) + 1
    for (start, of, _), count in groups.items():
        if count != of:
            raise UserError(
                f"data_dir={printable(folder)} holds {count} of the {of} shards"
                f" {printable(start)}-...; bring the others (a packing that was cut off goes on by"
                " the same command), or name files by a pattern"
            )


def find(data_dir: str, kind: str, ending: str) -> list[str]:
    """Return the shards in `data_dir`, in order: a folder's, or those of a pattern.

    The pattern may have braces, * and ?. `kind`: how messages call them; `ending`: a regular
    expression for the end of a shard's name.

    Raises:
        UserError: there is none, or one that is named is missing.
    """
    help_ = f"give a folder of {kind} files, or a pattern such as FOLDER/train-{{000..031}}.{kind}"
    shown = f"data_dir={printable(data_dir)}" if data_dir else "data_dir=''"
    if not data_dir:
        raise UserError(f"{shown} names no {kind} files; {help_}")
    if store.is_folder(data_dir):
        names = [n for n in store.listing(data_dir) if re.search(rf"{ending}\Z", n) and n[0] != "."]
        if not names:
            raise UserError(f"{shown} holds no {kind} file; {help_}")
        complete(data_dir, names)
        paths = [os.path.join(data_dir, name) for name in names]
    else:
        paths = _of_pattern(data_dir, f"{shown}: there is no {kind} file", help_)
    # Reading would wait for a pipe, and never end on a device.
    odd = [path for path in paths if not is_remote(path) and not store.is_file(path)]
    if odd:
        raise UserError(
            f"{shown}: {printable(odd[0])} is no regular file (a folder, pipe, device, or a link to"
            f" nothing); put a {kind} file in its place, or take it away"
        )
    return paths


def _of_pattern(data_dir: str, lacks: str, help_: str) -> list[str]:
    """Return the files that a pattern names, in order.

    Raises:
        UserError: one is missing; the text begins with `lacks`.
    """
    if store.is_file(data_dir):
        return [data_dir]
    named = {
        path: _matched(path) if re.search(r"[*?]", path) else [path] for path in braces(data_dir)
    }
    there = _existing([matched[0] for matched in named.values() if matched])
    for path, matched in named.items():
        if not matched or matched[0] not in there:
            raise UserError(f"{lacks} {printable(path)}; {help_}")
    return [path for matched in named.values() for path in matched]


def _existing(paths: list[str]) -> set[str]:
    """Return those of `paths` at which there is anything; of a bucket's, those that are objects."""
    remote = [path for path in paths if is_remote(path)]
    found = zip(remote, store.infos(remote), strict=True)
    here = (path for path in paths if not is_remote(path) and store.exists(path))
    return {path for path, info in found if info} | set(here)


def _matched(pattern: str) -> list[str]:
    """Return the files that * and ? stand for, sorted."""
    if is_remote(pattern):
        return store.matching(pattern)
    return sorted(glob.glob(pattern.replace("[", "[[]")))
