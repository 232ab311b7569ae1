"""Write the features of the images that the flags of `python -m moco_jax.embed` name."""

from typing import Any

import numpy as np
from absl import flags
from etils import epath

from moco_jax import __version__
from moco_jax.base import console as console_lib
from moco_jax.base import files
from moco_jax.base.console import Console, Counter
from moco_jax.base.errors import UserError
from moco_jax.base.text import printable
from moco_jax.cli.features.common import prepare
from moco_jax.data.configured import open_images
from moco_jax.data.sources import Source, remarks_of, require_no_place
from moco_jax.data.sources.folder import FolderSource
from moco_jax.embedding import results, table
from moco_jax.embedding.encode import Damaged, Embedder, rows
from moco_jax.inference import trained_encoder
from moco_jax.parallel import mesh as mesh_lib


def has_splits(dataset: str) -> bool:
    """Return whether the data set has named splits."""
    return dataset == "digits" or dataset.startswith("tfds:")


def named_images(given: flags.FlagValues, config: Any, place: str) -> tuple[Source, dict[str, Any]]:
    """Open the images that the flags name, and collect the facts on them.

    Where the flags name none, the images of the run in `place`, whose settings are `config`.
    """
    changed, split = config.copy_and_resolve_references(), given.split
    if given.dataset or given.data_dir:
        changed.dataset = given.dataset or "folder"
        if given.data_dir or changed.dataset != config.dataset:
            changed.data_dir = given.data_dir
        require_no_place(changed.dataset, given.data_dir)
    if not has_splits(changed.dataset):
        if split:
            raise UserError(
                f"--split={split} is for digits and tfds:NAME; dataset={changed.dataset!r} has "
                "none, so leave it out"
            )
    elif not split:
        split = config.split if changed.dataset == config.dataset else "train"
    folder = files.absolute(place)
    index = str(folder / "index") if folder.is_dir() else None
    source = open_images(changed, split, index)
    data_dir = files.full_name(changed.data_dir) if changed.data_dir else ""
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


def embed(given: flags.FlagValues, console: Console) -> None:
    """Write the features of the images that the flags name."""
    place, out = given.workdir, given.out
    table.require_a_place(out)
    prepare(place)
    trained = trained_encoder.load(place, given.which, given.step)
    embedder = Embedder(trained, given.features, mesh_lib.create_mesh())
    source, images = named_images(given, trained.config, place)
    facts: dict[str, Any] = {
        "moco_jax": __version__,
        "encoder": embedder.facts(place, given.which),
        "images": images,
        "unit_length": False,
    }
    console.facts(
        {
            "encoder": results.encoder_words(facts["encoder"]),
            "images": f"{len(source):,} of {about(images)}",
            "devices": f"{embedder.mesh.size} x {embedder.mesh.devices.flat[0].device_kind}",
        }
    )
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
        images["classes"] = list(source.classes)  # names in the records are known only now
    size = console_lib.size(epath.Path(out).stat().length)
    console.line(f"written: {out}, {count:,} x {width:,} features, {size}")
    if odd:
        console.line(
            f"{odd:,} of {count:,} rows hold numbers that are not finite, as the encoder gave "
            "them: a search leaves them out"
        )
    if damaged.names:
        more = ", ..." if len(damaged.names) > 10 else ""
        first_names = ", ".join(map(printable, damaged.names[:10]))
        console.line(
            f"{len(damaged.names):,} damaged images are left out: {first_names}{more}; the first "
            f"is {damaged.first}"
        )
