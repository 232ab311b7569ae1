"""Compares streamed InfoNCE with the form that holds all logits.

    python -m benchmarks.infonce_streamed           # accuracy, time and memory here
    python -m benchmarks.infonce_streamed --tpu     # compiled for a TPU (needs libtpu, no TPU)

Printed are the distance from float64, time, memory, and bytes compiled for a TPU. Both forms are
InfoNCE and its gradient in the queries, as MoCo's step takes it (with 'batch' also in the keys,
as end-to-end).
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import machine
from moco_jax.base.console import size, table
from moco_jax.method import info_nce
from moco_jax.parallel import mesh as mesh_lib
from tests.method.plain_info_nce import plain_info_nce

TPU = flags.DEFINE_bool("tpu", False, "Compile for a TPU that is not there, v5e:2x4.")
TIMES = flags.DEFINE_integer("times", 7, "Runs of each, taken in turns; medians are printed.")
DIM, DRAWS = 128, 8
TEMPERATURES = (0.01, 0.03, 0.07, 0.2, 1.0)
# Name -> queries, keys, whether keys take a gradient.
CASES = {
    "digits, K 1,024": (64, 1024, False),
    "CIFAR demo, K 4,096": (512, 4096, False),
    "ImageNet, K 65,536": (256, 65536, False),
    "end-to-end, batch 1,024": (1024, 1024, True),
    "v3, batch 4,096": (4096, 4096, False),
    "K 1,048,576": (256, 2**20, False),
}


def with_gradients(loss, keys_too: bool, temperature: float, *more):
    """Return a function of loss, metrics, and gradients in the queries (and the negatives)."""
    arguments = (0, 2) if keys_too else (0,)
    return jax.value_and_grad(
        lambda q, k, n: loss(q, k, n, temperature, *more), arguments, has_aux=True
    )


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Draw float32 unit vectors."""
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def distances(temperature: float, seed: int) -> np.ndarray:
    """Measure how far loss and gradients (queries, keys) are from float64.

    Returns:
        `[2, 3]`, of the plain and the streamed form.
    """
    rng = np.random.default_rng(seed)
    query, negatives = unit(rng, 64, DIM), unit(rng, 16, 4096, DIM)
    key = np.asarray(info_nce.normalize(query + 2 * unit(rng, 64, DIM)))
    arrays = (query, key, negatives)
    with jax.enable_x64(True):
        exact = [jnp.asarray(x, jnp.float64) for x in arrays]
        (value, _), gradients = jax.jit(with_gradients(plain_info_nce, True, temperature))(*exact)
        true = [np.asarray(x) for x in (value, *gradients)]
    errors = []
    for loss in (plain_info_nce, info_nce.info_nce):
        (value, _), gradients = jax.jit(with_gradients(loss, True, temperature))(*arrays)
        pairs = zip((value, *gradients), true, strict=True)
        errors.append(
            [np.abs(np.asarray(x, np.float64) - t).max() / np.abs(t).max() for x, t in pairs]
        )
    return np.asarray(errors)


def accuracy() -> list[list[str]]:
    """Return rows of each form's distance in float32 from the plain form in float64.

    They are root mean squares over draws, with K = 65,536.
    """
    rows = []
    for temperature in TEMPERATURES:
        drawn = [distances(temperature, seed) for seed in range(DRAWS)]
        plain, ours = np.sqrt(np.mean(np.square(drawn), 0))
        each = [f"{p:.1e} / {o:.1e} ({o / p:.2f})" for p, o in zip(plain, ours, strict=True)]
        rows.append([f"{temperature}", *each])
    return rows


def speed() -> list[list[str]]:
    """Return rows of both forms' milliseconds, taken in turns, and memory beside arguments."""
    rng, rows = np.random.default_rng(0), []
    for name, (queries, keys, keys_too) in CASES.items():
        arrays = unit(rng, queries, DIM), unit(rng, queries, DIM), unit(rng, 1, keys, DIM)
        arrays = tuple(jax.device_put(x) for x in arrays)
        programs = [
            jax.jit(with_gradients(loss, keys_too, 0.1)).lower(*arrays).compile()
            for loss in (plain_info_nce, info_nce.info_nce)
        ]
        runs = [
            functools.partial(lambda p, a: jax.block_until_ready(p(*a)), p, arrays)
            for p in programs
        ]
        taken = np.asarray(
            [[machine.median_seconds(run, 1, 0) for run in runs] for _ in range(TIMES.value + 1)]
        )
        plain, ours = np.median(taken[1:], axis=0)
        memory = [p.memory_analysis().temp_size_in_bytes for p in programs]
        rows.append(
            [
                name,
                f"{plain * 1e3:.2f}",
                f"{ours * 1e3:.2f}",
                f"{plain / ours:.2f}x",
                size(memory[0]),
                size(memory[1]),
                f"{memory[1] / memory[0]:.1%}",
            ]
        )
    return rows


def _unrolled(first: int, last: int, body, carry):
    for number in range(first, last):
        carry = body(number, carry)
    return carry


def on_a_tpu() -> list[list[str]]:
    """Return rows of operations, bytes and memory a chip of v5e:2x4, as compiled for a TPU."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
    mesh, rows = mesh_lib.create_mesh(list(topology.devices)), []

    def plain(query, key, negatives, temperature, mesh):
        everyone = mesh_lib.replicate(query, mesh), mesh_lib.replicate(key, mesh)
        return plain_info_nce(*everyone, negatives, temperature)

    for name, (queries, keys, keys_too) in CASES.items():
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=mesh_lib.sharded(mesh, axis))
            for shape, axis in [((queries, DIM), 0), ((queries, DIM), 0), ((1, keys, DIM), 1)]
        ]

        def compiled(loss, shapes=shapes, keys_too=keys_too):
            return jax.jit(with_gradients(loss, keys_too, 0.1, mesh)).lower(*shapes).compile()

        # The compiler counts a loop's body once: bytes are those of the same program with its loop
        # unrolled.
        with mock.patch.object(jax.lax, "fori_loop", _unrolled):
            counted = [compiled(plain).cost_analysis(), compiled(info_nce.info_nce).cost_analysis()]
        memory = [
            compiled(loss).memory_analysis().temp_size_in_bytes
            for loss in (plain, info_nce.info_nce)
        ]
        flops, moved = ([cost[what] for cost in counted] for what in ("flops", "bytes accessed"))
        rows.append(
            [
                name,
                *(f"{x / 1e9:.2f}" for x in flops),
                *(f"{x / 1e6:.1f}" for x in moved),
                f"{moved[1] / moved[0]:.2f}",
                size(memory[0]),
                size(memory[1]),
            ]
        )
    return rows


def main(argv: list[str]) -> None:
    """Measure, and print the tables."""
    if TPU.value:
        print("TPU v5e:2x4, a chip; loss and gradient, float32, precision 'highest'")
        header = [
            "case",
            "GFLOP plain",
            "streamed",
            "MB moved plain",
            "streamed",
            "ratio",
            "temporaries plain",
            "streamed",
        ]
        print(table(header, on_a_tpu()))
        return
    print(f"{machine.describe()}; {DIM} numbers a key, float32, loss and gradient")
    print(
        f"distance from float64, largest over largest value, {DRAWS} draws, plain / streamed"
        " (ratio), K 65,536"
    )
    print(table(["tau", "loss", "gradient in queries", "in keys"], accuracy()))
    header = [
        "case",
        "plain ms",
        "streamed ms",
        "plain / streamed",
        "temporaries plain",
        "streamed",
        "share",
    ]
    print(table(header, speed()))


if __name__ == "__main__":
    app.run(main)
