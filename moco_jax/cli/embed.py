"""Command line of embedding: images in, a file of their features with their names out; and a search in such a file.

python -m moco_jax.embed --workdir=DIR --data_dir=FOLDER --out=features.npz
python -m moco_jax.embed search features.npz IMAGE ... --k=8
"""

from moco_jax.cli import quiet  # noqa: F401

# isort: split
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath

from moco_jax import __version__
from moco_jax import config as config_lib
from moco_jax.base import console as console_lib
from moco_jax.base import files
from moco_jax.base.console import Console, Counter
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.cli import number_flags
from moco_jax.cli.command_line import fail, set_up, start
from moco_jax.data.configured import open_images
from moco_jax.data.sources import Source, remarks_of
from moco_jax.data.sources.folder import FolderSource
from moco_jax.embedding import results, search, table
from moco_jax.embedding.encode import KINDS, Damaged, Embedder, rows
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh as mesh_lib

WORKDIR = flags.DEFINE_string(
    "workdir", None, "Of the run whose encoder it is. search: where it lies now, if it has moved."
)
STEP = number_flags.DEFINE_whole(
    "step", None, "Of which checkpoint; left out: the last sound one.", 0, 2**31 - 1
)
WHICH = flags.DEFINE_enum(
    "which", "query", list(trained_encoder.PARTS), "Query or momentum encoder."
)
FEATURES = flags.DEFINE_enum(
    "features", "backbone", KINDS, "Pooled features, or those after the head."
)
DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Folder of images, or as --config.data_dir; left out: the run's own images."
)
DATASET = flags.DEFINE_string(
    "dataset", "", "As --config.dataset: tar, tfds:NAME, ...; left out: a folder, where --data_dir names one."
)  # fmt: skip
SPLIT = flags.DEFINE_string("split", "", "Of digits and tfds:NAME; left out: train, or the run's.")
OUT = flags.DEFINE_string(
    "out", "", "The file to write: .npz or .parquet. search: the picture; left out: beside the features."
)  # fmt: skip
K = number_flags.DEFINE_whole("k", 8, "search: how many of the nearest.", 1, 10**6)

FORMS = (
    "python -m moco_jax.embed --workdir=DIR --data_dir=FOLDER --out=features.npz, or "
    "python -m moco_jax.embed search features.npz IMAGE ..."
)


def prepare(place: str | None) -> None:
    """Quiet logs, and what JAX must know before it looks for devices, by the run in `place` if it is one."""
    is_run = place is not None and trained_encoder.is_run(place)
    set_up(trained_encoder.read_config(place) if place and is_run else config_lib.default_config())
    logging.set_verbosity(logging.ERROR)


def has_splits(dataset: str) -> bool:
    """Whether the data set is divided into named parts."""
    return dataset == "digits" or dataset.startswith("tfds:")


def named_images(config: Any, place: str) -> tuple[Source, dict[str, Any]]:
    """The images that the flags name, and the facts on them; those of the run in `place` where they name none."""
    changed, split = config.copy_and_resolve_references(), SPLIT.value
    if DATASET.value or DATA_DIR.value:
        changed.dataset = DATASET.value or "folder"
        if DATA_DIR.value or changed.dataset != config.dataset:
            changed.data_dir = DATA_DIR.value
    if not has_splits(changed.dataset):
        if split:
            raise UserError(
                f"--split={split} is of digits and tfds:NAME, and dataset={changed.dataset!r} has none"
            )
    elif not split:
        split = config.split if changed.dataset == config.dataset else "train"
    folder = files.absolute(place)
    index = str(folder / "index") if folder.is_dir() else None
    source = open_images(changed, split, index)
    data_dir = str(files.absolute(changed.data_dir)) if changed.data_dir else ""
    root = str(files.absolute(source.root)) if isinstance(source, FolderSource) else ""
    return source, {
        "dataset": changed.dataset, "split": split, "data_dir": data_dir, "number": len(source),
        "root": root, "classes": list(source.classes),
    }  # fmt: skip


def about(images: dict[str, Any]) -> str:
    """Which images these facts tell of."""
    if has_splits(images["dataset"]):
        return f"{images['dataset']} ({images['split']})"
    return images["data_dir"]


def embed(console: Console) -> None:
    """Write the features of the images that the flags tell of."""
    place, out = WORKDIR.value, OUT.value
    if not place or not out:
        raise UserError(f"--workdir=DIR and --out=FILE are needed: {FORMS}")
    prepare(place)
    found = trained_encoder.load(place, WHICH.value, STEP.value)
    embedder = Embedder(found, FEATURES.value, mesh_lib.create_mesh())
    source, images = named_images(found.config, place)
    facts: dict[str, Any] = {
        "moco_jax": __version__,
        "encoder": embedder.facts(place, WHICH.value),
        "images": images,
        "unit_length": False,
    }
    console.facts({
        "encoder": results.encoder_words(facts["encoder"]),
        "images": f"{len(source):,} of {about(images)}",
        "devices": f"{embedder.mesh.size} x {embedder.mesh.devices.flat[0].device_kind}",
    })  # fmt: skip
    for said in remarks_of(source):
        console.line(said)
    damaged, count, width, odd = Damaged(source), 0, 0, 0
    progress = Counter(console, "{done} of {total} images", len(source))
    with table.writing(out, facts) as write:
        for some in rows(embedder, source, damaged):
            if not count:
                table.require_room(out, len(source), some.features.shape[1])
            write(some)
            count, width = count + len(some.indices), some.features.shape[1]
            odd += int((~np.isfinite(some.features).all(1)).sum())
            progress(int(some.indices[-1]) + 1)
        facts["damaged"] = damaged.names  # as lines, like those in the table
        images["classes"] = list(source.classes)  # names that stand in the records are known by now
    size = console_lib.size(epath.Path(out).stat().length)
    console.line(f"written: {out}, {count:,} x {width:,} features, {size}")
    if odd:
        console.line(
            f"{odd:,} of {count:,} rows hold numbers that are not finite, as the encoder gave them: a search leaves them out"
        )
    if damaged.names:
        more = ", ..." if len(damaged.names) > 10 else ""
        console.line(
            f"{len(damaged.names):,} damaged images are left out: {', '.join(map(printable, damaged.names[:10]))}{more}; the first is "
            f"{damaged.first}"
        )


def queries_of(
    path: str, features: table.Table, words: Sequence[str], own: np.ndarray
) -> np.ndarray:
    """Features float32 `[M, D]` of each of `words`: of row `own` int64 `[M]` of the table, or encoded now where it is -1.

    `path` is where `features` were opened. What is taken from the table has been verified once all its features passed by.
    """
    strange = [word for word, row in zip(words, own.tolist(), strict=True) if row < 0]
    for word in strange:
        if not epath.Path(word).is_file():
            first = str(features.take("names", np.asarray([0]))[0])
            raise UserError(f"{word!r} is neither a file nor a name in {path}, as {first!r} is")
    place = WORKDIR.value or features.facts["encoder"]["place"]
    prepare(place if strange else None)
    queries = np.zeros((len(words), features.width), np.float32)
    if strange:
        embedder = search.load_encoder(features, place, mesh_lib.create_mesh())
        found = search.encoded(embedder, strange)
        if found.shape[1] != features.width:
            raise UserError(
                f"the encoder in {place} gives {found.shape[1]:,} numbers, and the features have {features.width:,}; make "
                "them anew with it"
            )
        queries[own < 0] = found
    if len(strange) < len(words):
        queries[own >= 0] = features.peek("features", own[own >= 0])
    for word, query in zip(words, queries, strict=True):
        if not np.isfinite(query).all():
            raise UserError(
                f"the features of {word!r} hold numbers that are not finite, and nothing is near to them; search for "
                "another image"
            )
    return queries


def run_search(path: str, words: Sequence[str], console: Console) -> None:
    """Print the nearest images of each of `words`, and draw them."""
    features = table.opened(path)
    own = search.find(features, words)
    queries = queries_of(path, features, words, own)
    progress = Counter(console, "{done} of {total} images compared", features.number)
    nearest = search.nearest(features, queries, own, K.value, progress)
    found = results.named(features, words, own, nearest.cosines, nearest.rows)
    console.line(f"\n{results.tables(features, found)}\n")
    if nearest.left_out:
        console.line(
            f"{nearest.left_out:,} of {features.number:,} rows hold numbers that are not finite and are left out"
        )
    out = epath.Path(OUT.value or f"{path.rpartition('.')[0]}_nearest.png")
    try:
        results.draw(out, features, found)
    except (UserError, OSError) as error:
        console.line(f"no picture: {error}")
        return
    some = f", the first {results.DRAWN} queries" if len(words) > results.DRAWN else ""
    console.line(f"picture: {out}{some}")


def main(argv: list[str]) -> None:
    """Embed or search."""
    console = Console()
    if len(argv) == 1:
        embed(console)
    elif argv[1] == "search" and len(argv) > 3:
        run_search(argv[2], argv[3:], console)
    else:
        fail(f"one of these is wanted: {FORMS}")


def run() -> None:
    """Entry point of the console script `moco-embed`."""
    start(main)


if __name__ == "__main__":
    run()
