"""Write the features of the images that the flags of `python -m moco_jax.embed` name."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from etils import epath

from moco_jax import __version__
from moco_jax.base import console as console_lib
from moco_jax.base import files, places
from moco_jax.base.console import Console, Counter
from moco_jax.base.text import printable
from moco_jax.cli import host_flags
from moco_jax.cli.features.common import prepare
from moco_jax.config.registry import has_splits, split_of
from moco_jax.data.configured import open_images
from moco_jax.data.sources import Source, fingerprint, remarks_of, require_no_place
from moco_jax.data.sources.folder import FolderSource
from moco_jax.embedding import results, shards, table
from moco_jax.embedding.columns import Rows
from moco_jax.embedding.encode import Damaged, Embedder, part_rows, require_some
from moco_jax.inference import trained_encoder
from moco_jax.parallel import hosts
from moco_jax.parallel import mesh as mesh_lib


def named_images(given: flags.FlagValues, config: Any, place: str) -> tuple[Source, dict[str, Any]]:
    """Open the images that the flags name, and collect the facts on them.

    Where the flags name none, the images of the run in `place`, whose settings are `config`.
    """
    changed = config.copy_and_resolve_references()
    if given.dataset or given.data_dir:
        changed.dataset = given.dataset or "folder"
        if given.data_dir or changed.dataset != config.dataset:
            changed.data_dir = given.data_dir
        require_no_place(changed.dataset, given.data_dir)
    own = config.split if changed.dataset == config.dataset else "train"
    split = split_of(changed.dataset, given.split, own)
    folder = files.absolute(place)
    index = str(folder / "index") if folder.is_dir() else None
    source = open_images(changed, split, index)
    data_dir = places.full_names(changed.data_dir) if changed.data_dir else ""
    root = files.full_name(source.root) if isinstance(source, FolderSource) else ""
    return source, {
        "dataset": changed.dataset,
        "split": split,
        "data_dir": data_dir,
        "number": len(source),
        "root": root,
        "classes": list(source.classes),
    }


def about(images: dict[str, Any]) -> str:
    """Name the images on which `images` has the facts."""
    if has_splits(images["dataset"]):
        return f"{images['dataset']} ({images['split']})"
    return images["data_dir"]


def embed(given: flags.FlagValues) -> None:
    """Write the features of the images that the flags name, on all hosts that take part."""
    place, out = given.workdir, given.out
    table.require_a_place(out)
    prepare(place)
    host_flags.join(given, asks_for_stops=False)
    console = Console(speaks=hosts.is_first())
    trained = trained_encoder.load(place, given.which, given.step)
    embedder = Embedder(
        trained, given.features, mesh_lib.create_mesh(jax.local_devices()), hosts.count()
    )
    with hosts.together():
        source, images = named_images(given, trained.config, place)
    facts: dict[str, Any] = {
        "moco_jax": __version__,
        "encoder": embedder.facts(place, given.which),
        "images": images,
        "unit_length": False,
    }
    require_one_work(trained.config, facts, source, out)
    devices = embedder.mesh.devices.flat
    console.facts(
        {
            "encoder": results.encoder_words(facts["encoder"]),
            "images": f"{len(source):,} of {about(images)}",
            "devices": f"{embedder.mesh.size * hosts.count()} x {devices[0].device_kind}",
        }
    )
    for said in remarks_of(source):
        console.line(said)
    damaged, progress = Damaged(source), Counter(console, "{done} of {total} images", len(source))
    if hosts.is_alone() and not shards.folder_of(out).is_dir():
        written = write_table(
            out, part_rows(embedder, source, damaged), source, facts, damaged, progress
        )
        return tell(console, out, written, damaged)
    claim = shards.claimed(out, facts, source, embedder.a_device(len(source)))
    for done in claim.make_missing(embedder, source, facts):
        progress(done)
    classes = list(images["classes"])
    with hosts.together():
        if hosts.is_first():
            joined = claim.joined(classes, damaged)
            written = write_table(out, joined, source, facts, damaged, progress, classes)
            claim.folder.rmtree()
            tell(console, out, written, damaged)


def require_one_work(config: Any, facts: dict[str, Any], source: Source, out: str) -> None:
    """Refuse hosts that do not have the same encoder, images, settings and code.

    `config`: of the run; `facts`: of the file `out`.
    """
    if hosts.is_alone():
        return
    encoder = {f"encoder.{key}": value for key, value in facts["encoder"].items()}
    place = {"--out": str(files.absolute(out))}
    hosts.require_agreement(hosts.facts_of(config) | encoder | place)
    fingerprint.agreed(source)


class Written(NamedTuple):
    """What was written: rows, numbers in a row, and rows that hold numbers that are not finite."""

    rows: int
    width: int
    odd: int


def write_table(
    out: str,
    made: Iterable[Rows],
    source: Source,
    facts: dict[str, Any],
    damaged: Damaged,
    progress: Counter,
    classes: list[str] | None = None,
) -> Written:
    """Write the rows that are `made` of `source` to `out`.

    Args:
        out: the file.
        made: the rows, in order.
        source: the images.
        facts: of the file; what is known of them only at the end is added.
        damaged: has the names of images without a row in the end.
        progress: told how many images are done.
        classes: names of the classes, whole in the end; None: those of `source`.
    """
    count, width, odd = 0, 0, 0
    with table.writing(out, facts) as write:
        for some in require_some(made, source, damaged):
            if not count:
                table.require_room(out, len(source), some.features.shape[1])
            write(some)
            count, width = count + len(some.indices), some.features.shape[1]
            odd += int((~np.isfinite(some.features).all(1)).sum())
            progress(int(some.indices[-1]) + 1)
        facts["damaged"] = damaged.names  # as lines, like those in the table
        # Names in the records are known only now.
        facts["images"]["classes"] = list(source.classes if classes is None else classes)
    return Written(count, width, odd)


def tell(console: Console, out: str, written: Written, damaged: Damaged) -> None:
    """Say what was written to `out`, and what was left out."""
    size = console_lib.size(epath.Path(out).stat().length)
    console.line(f"written: {out}, {written.rows:,} x {written.width:,} features, {size}")
    if written.odd:
        console.line(
            f"{written.odd:,} of {written.rows:,} rows hold numbers that are not finite, as the"
            " encoder gave them: a search leaves them out"
        )
    if damaged.names:
        more = ", ..." if len(damaged.names) > 10 else ""
        first_names = ", ".join(map(printable, damaged.names[:10]))
        console.line(
            f"{len(damaged.names):,} damaged images are left out: {first_names}{more}; the first "
            f"is {damaged.first}"
        )
