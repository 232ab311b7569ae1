"""Find the nearest images in a file of features, for `python -m moco_jax.embed search`."""

from collections.abc import Sequence

import numpy as np
from etils import epath

from moco_jax.base.console import Console, Counter
from moco_jax.base.errors import UserError
from moco_jax.cli.features.common import prepare
from moco_jax.embedding import results, search, table
from moco_jax.parallel import mesh as mesh_lib


def queries_of(
    path: str,
    features: table.Table,
    words: Sequence[str],
    own: np.ndarray,
    workdir: str | None = None,
) -> np.ndarray:
    """Collect the features of the queries; the table verifies its own at the end of the pass.

    Args:
        path: where `features` were opened.
        features: the table that is searched.
        words: a query each, a name in the table or a file of an image.
        own: int64 `[M]`, the row of each query in the table; -1 for a file, which is encoded now.
        workdir: the run whose encoder encodes files; where the table says if None.

    Returns:
        float32 `[M, D]`.
    """
    strange = [word for word, row in zip(words, own.tolist(), strict=True) if row < 0]
    for word in strange:
        if not epath.Path(word).is_file():
            first = str(features.take("names", np.asarray([0]))[0])
            raise UserError(f"{word!r} is neither a file nor a name in {path}, as {first!r} is")
    place = workdir or features.facts["encoder"]["place"]
    prepare(place if strange else None)
    queries = np.zeros((len(words), features.width), np.float32)
    if strange:
        embedder = search.load_encoder(features, place, mesh_lib.create_mesh())
        encoded = search.encoded(embedder, strange)
        if encoded.shape[1] != features.width:
            raise UserError(
                f"the encoder in {place} gives {encoded.shape[1]:,} numbers, and the features have "
                f"{features.width:,}; make them anew with it"
            )
        queries[own < 0] = encoded
    if len(strange) < len(words):
        queries[own >= 0] = features.peek("features", own[own >= 0])
    for word, query in zip(words, queries, strict=True):
        if not np.isfinite(query).all():
            raise UserError(
                f"the features of {word!r} hold numbers that are not finite, and nothing is near "
                "to them; search for another image"
            )
    return queries


def run(
    path: str,
    words: Sequence[str],
    console: Console,
    k: int = 8,
    workdir: str | None = None,
    out: str = "",
) -> None:
    """Print the `k` nearest images of each of `words`, and draw them to `out`.

    `path`: the file of features; a picture without a name goes beside it. `workdir`: as of
    `queries_of`.
    """
    features = table.opened(path)
    own = search.find(features, words)
    queries = queries_of(path, features, words, own, workdir)
    progress = Counter(console, "{done} of {total} images compared", features.number)
    nearest = search.nearest(features, queries, own, k, progress)
    ranked = results.named(features, words, own, nearest.cosines, nearest.rows)
    console.line(f"\n{results.tables(features, ranked)}\n")
    if nearest.left_out:
        console.line(
            f"{nearest.left_out:,} of {features.number:,} rows hold numbers that are not finite "
            "and are left out"
        )
    picture = epath.Path(out or f"{path.rpartition('.')[0]}_nearest.png")
    try:
        results.draw(picture, features, ranked)
    except (UserError, OSError) as error:
        console.line(f"no picture: {error}")
        return
    some = f", the first {results.DRAWN} queries" if len(words) > results.DRAWN else ""
    console.line(f"picture: {picture}{some}")
