"""Features of images under a frozen encoder, computed over all devices of the mesh."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from moco_jax.data import labelled_views
from moco_jax.data.sources import Source
from moco_jax.data.views import recipes
from moco_jax.inference.features import Encode, make_features
from moco_jax.parallel import mesh as mesh_lib

AHEAD = 2  # batches that the devices have beyond the one whose features are waited for


def make_encode(
    encoder: nn.Module, kind: str, mean: Sequence[float], std: Sequence[float], dtype, mesh: Mesh
) -> Encode:
    """Compile the encoder: variables and uint8 images `[B, H, W, C]` to features `[B, D]`.

    The encoder is in evaluation mode. `kind`: `backbone` for pooled features, `output` for those
    after the head.
    """
    encode = make_features(encoder, kind, mean, std, dtype)
    return jax.jit(encode, out_shardings=mesh_lib.replicated(mesh))


def stream(
    source: Source,
    recipe: recipes.Recipe,
    indices: np.ndarray,
    batch_size: int,
    workers: int,
    mesh: Mesh,
    encode: Callable[[jax.Array], jax.Array],
    crops: tuple[int, Sequence[int]] | None = None,
    views: labelled_views.KeptViews | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Compute features of the images `indices` int `[N]`, a batch at a time.

    Damaged images are left out. Each host reads only the images that its devices encode. The
    devices encode `AHEAD` batches behind the one that is given.

    Args:
        source: the images.
        recipe: for its evaluation view, or its crops.
        indices: which images.
        batch_size: images at once, a multiple of the device count.
        workers: threads; 0 for as many as cores.
        mesh: the device mesh.
        encode: from uint8 images `[B, S, S, C]` to features `[B, D]` on every device.
        crops: the seed, and the epochs, of the views that are drawn: all images in one epoch, then
            in the next; None: the evaluation view.
        views: views that were made before, for the same recipe; None: all are made.

    Yields:
        Features float32 `[m, D]` and the indices int64 `[m]` of their images, in the order
        given; m <= `batch_size`.
    """
    if not len(indices):
        return
    steps, epochs = -(-len(indices) // batch_size), (0,) if crops is None else crops[1]
    padded = np.resize(np.asarray(indices, np.int64), (steps, batch_size))
    rows = mesh_lib.local_rows(mesh, batch_size)
    here = padded[:, rows]

    def make() -> Iterator[dict[str, Any]]:
        if crops is None:
            return labelled_views.evaluation_batches(source, recipe, here, workers)
        reads = ((epoch, some) for epoch in epochs for some in here)
        return labelled_views.view_batches(source, recipe, reads, len(rows), crops[0], workers)

    which = source, None if crops is None else (crops[0], *epochs), here.tobytes()
    batches = make() if views is None else views.batches(which, make)
    counts = np.arange(padded.size).reshape(padded.shape) < len(indices)
    rounds = np.tile(padded, (len(epochs), 1)), np.tile(counts, (len(epochs), 1))

    def results() -> Iterator[tuple[jax.Array, jax.Array]]:
        for batch in batches:
            arrays = mesh_lib.to_devices(mesh, {name: batch[name] for name in ("image", "ok")})
            yield encode(arrays["image"]), mesh_lib.gathered(mesh, arrays["ok"])

    for (found, ok), some, count in zip(_ahead(results()), *rounds, strict=True):
        kept = np.asarray(ok) & count
        yield np.asarray(found, np.float32)[kept], some[kept]


def _ahead(results: Iterator[Any]) -> Iterator[Any]:
    """Yield `results`, each once `AHEAD` more of them are under way on the devices."""
    waiting: deque[Any] = deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def extract(*arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
    """Compute all features at once: float32 `[M, D]`, and indices int64 `[M]`; M <= N.

    Arguments are those of `stream`.
    """
    features, kept = zip(*stream(*arguments, **named), strict=True)
    return np.concatenate(features), np.concatenate(kept)
