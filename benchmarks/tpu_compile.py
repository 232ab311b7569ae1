"""Compiles the ImageNet step for TPUs, without a TPU: operations, bytes, memory, collectives.

    pip install libtpu  # in an environment of its own: with it `import jax` looks for a TPU
    python -m benchmarks.tpu_compile [--topologies=v5e:2x4,...] [--kinds] [--ideas] [--slices=2]

Each topology's step (configs/imagenet.py:v2, 32 images a chip, a BN group a chip) stands beside
the supervised ResNet-50 step compiled in the same run. 4/3 of its operations is the floor: one
forward pass more. `--kinds` says which instructions and which part of the step they are of.
`--ideas` compiles the step once more without each thing that was done to save bytes, and with
views finished on the device. A compilation takes a minute or two. `--slices=2` compiles MoCo's
step alone, for two slices of each topology, and prints what stays within a slice and what goes
from one to another, after small programs that show what the order of the chips and a second mesh
axis change; that takes longer, and `--arch=resnet18` takes less.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import math
import re
import time
from collections import defaultdict
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import collectives, hlo_costs
from configs import imagenet
from moco_jax import encoders
from moco_jax.base.console import table
from moco_jax.method import optimizers, shuffle, update
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.training import assembly

TOPOLOGIES = flags.DEFINE_list(
    "topologies", ["v5e:2x4", "v5e:16x16", "v4:4x4x4", "v6e:2x4"], "Names of the TPU compiler."
)
IDEAS = flags.DEFINE_bool(
    "ideas", False, "Also compile the step without each saving, on the first topology."
)
KINDS = flags.DEFINE_bool(
    "kinds", False, "Print both steps by kind of instruction, and by part of the step."
)
SLICES = flags.DEFINE_integer(
    "slices", 1, "Compile for so many slices, and print what goes between them.", lower_bound=1
)
ARCH = flags.DEFINE_string("arch", "resnet50", "Encoder.")
OUT = flags.DEFINE_string("out", "", "Folder for the compiled programs' text.")
IMAGES = 32
CLASSES = 1000
HEADER = ["a chip", "GFLOP", "", "GB moved", "", "GB at peak", "GB temporary"]
TRAFFIC = ["collective", "type", "arrays", "MB a device", "largest"]


def mesh_of(topology: str, slices: int = 1) -> Mesh:
    """Return a mesh of chips that are not there, of which the TPU compiler knows all it needs."""
    several = {"num_slices": slices} if slices > 1 else {}
    description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **several)
    return mesh_lib.create_mesh(list(description.devices))


def moco_program(mesh: Mesh, **changes: Any) -> assembly.Program:
    """Assemble the step of MoCo v2 on ImageNet, 32 images and one BN group a chip."""
    chips = mesh.size
    config = imagenet.get_config("v2")
    config.update(
        batch_size=IMAGES * chips, bn_groups=chips, shuffle_groups=8, compute_dtype="bfloat16"
    )
    config.arch = ARCH.value
    config.update(changes)
    return assembly.program(config, mesh, examples=1_281_167)


def supervised(mesh: Mesh):
    """Compile the step of a supervised ResNet-50.

    Encoder, images, BN groups, precision and optimizer are the same.
    """
    chips = mesh.size
    batch, config = IMAGES * chips, imagenet.get_config("v2")
    encoder = encoders.create(ARCH.value, dim=CLASSES, bn_groups=chips, dtype=jnp.bfloat16)
    optimizer = optimizers.sgd(0.9, 1e-4)

    def create():
        variables = encoder.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
        return variables, optimizer.init(variables["params"])

    def train_step(state, images, labels):
        variables, memory = state

        def loss_fn(params):
            logits, updated = encoder.apply(
                {**variables, "params": params},
                to_network_input(images, config.mean, config.std, jnp.bfloat16),
                train=True,
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])
        updates, memory = optimizer.update(grads, memory, variables["params"])
        params = jax.tree.map(lambda p, u: p - 0.1 * u, variables["params"], updates)
        return ({"params": params, **updated}, memory), loss

    everywhere, by_row = mesh_lib.replicated(mesh), mesh_lib.sharded(mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(create),
    )
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.uint8, sharding=by_row)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=by_row)
    jitted = jax.jit(train_step, out_shardings=(everywhere, everywhere), donate_argnums=0)
    return jitted.lower(abstract, images, labels).compile()


def numbers(compiled) -> dict[str, float]:
    """Return a chip's billions of operations, and gigabytes moved, at the peak, and temporary."""
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "gflop": cost["flops"] / 1e9,
        "gb": cost["bytes accessed"] / 1e9,
        "peak": (held + memory.temp_size_in_bytes) / 1e9,
        "temporaries": memory.temp_size_in_bytes / 1e9,
    }


def traffic(found: list[collectives.Collective]) -> list[list[str]]:
    """Return rows of collectives: kind, type, arrays, megabytes a device, the largest."""
    groups = defaultdict(list)
    for one in found:
        groups[one.kind, one.dtype].append(one)
    return [
        [
            kind,
            dtype,
            str(len(members)),
            f"{sum(c.bytes for c in members) / 1e6:.3f}",
            str(list(max(members, key=lambda c: c.bytes).shape)),
        ]
        for (kind, dtype), members in sorted(groups.items())
    ]


def logits_precision(text: str) -> list[str]:
    """Return the precision of each product of queries and keys in the compiled text.

    These are the products of `info_nce.info_nce`.
    """
    precisions = []
    for line in text.splitlines():
        name = re.search(r'op_name="([^"]*(?:bc,nc|bn,nc|bn,bc)[^"]*)"', line)
        if name and re.search(r" (convolution|dot)\(", line):
            precision = re.search(r"operand_precision=\{([^}]*)\}", line)
            precisions.append(f"{precision[1] if precision else 'default'}: {name[1]}")
    return precisions


def report(name: str, compiled, base: dict[str, float] | None) -> list[str]:
    """Return a row on one program, against `base` where there is one."""
    n = numbers(compiled)
    if base is None:
        return [
            name,
            f"{n['gflop']:.0f}",
            "",
            f"{n['gb']:.2f}",
            "",
            f"{n['peak']:.2f}",
            f"{n['temporaries']:.2f}",
        ]
    return [
        name,
        f"{n['gflop']:.0f}",
        f"{n['gflop'] / base['gflop']:.3f}x",
        f"{n['gb']:.2f}",
        f"{n['gb'] / base['gb']:.3f}x",
        f"{n['peak']:.2f}",
        f"{n['temporaries']:.2f}",
    ]


def keep(name: str, text: str) -> None:
    """Write a compiled program's text to the folder `--out`, if one is given."""
    if OUT.value:
        os.makedirs(OUT.value, exist_ok=True)
        with open(os.path.join(OUT.value, f"{name.replace(':', '_')}.txt"), "w") as file:
            file.write(text)


def judge_slices(topology: str, slices: int) -> None:
    """Compile MoCo's step for several slices and print what stays within one, and what leaves it.

    An all-reduce over the slices is three of these rows: `collectives.read_between_slices`.
    """
    mesh = mesh_of(topology, slices)
    began = time.perf_counter()
    text = moco_program(mesh).compile_step().as_text()
    seconds = time.perf_counter() - began
    keep(f"{topology}_{slices}_slices", text)
    print(
        f"\n{slices} slices of {topology}: {mesh.size} devices, {ARCH.value}, batch"
        f" {IMAGES * mesh.size}; compiled in {seconds:.0f} s"
    )
    for where, found in (
        ("within a slice", collectives.read(text)),
        ("between slices", collectives.read_between_slices(text)),
    ):
        total = sum(c.bytes for c in found) / 1e6
        print(f"{where}: {total:.3f} MB a device")
        print(table(TRAFFIC, traffic(found)))


def compare_layouts(topology: str, slices: int) -> None:
    """Print what each chip sends to other slices, by order of the chips and axes of the mesh.

    Small programs stand for the step's two kinds of traffic: the exchange of key images for
    shuffled BatchNorm, and a gradient against negatives that are divided over the chips.
    """
    chips = mesh_of(topology, slices).devices
    mixed = Mesh(chips.reshape(slices, -1).T.ravel(), (mesh_lib.AXIS,))
    ordered, size = Mesh(chips, (mesh_lib.AXIS,)), len(chips)
    two_axes = Mesh(chips.reshape(slices, -1), ("slice", mesh_lib.AXIS))
    within = math.gcd(8, size // slices)
    programs = {
        f"exchange, {within} groups, slice after slice": swapped(ordered, within),
        f"exchange, {within} groups, chips of slices in turn": swapped(mixed, within),
        f"exchange, {size} groups, slice after slice": swapped(ordered, size),
        "gradient, one axis": gradient(ordered, ordered.axis_names),
        "gradient, two axes": gradient(two_axes, two_axes.axis_names),
    }
    rows = []
    for name, text in programs.items():
        sent = collectives.read_between_slices(text)
        kinds = ", ".join(f"{c.kind} {c.dtype}{list(c.shape)}" for c in sent)
        rows.append([name, f"{sum(c.bytes for c in sent) / 1e6:.3f}", kinds or "nothing"])
    print(table(["small program", "MB a device between slices", "what"], rows))


def swapped(mesh: Mesh, span: int) -> str:
    """Compile the exchange of key images between `span` neighbouring BatchNorm groups."""
    images = jax.ShapeDtypeStruct(
        (IMAGES * mesh.size, 224, 224, 3), jnp.uint8, sharding=mesh_lib.sharded(mesh)
    )
    exchange = jax.jit(lambda x: shuffle.exchange(x, mesh.size, span, mesh))
    return exchange.lower(images).compile().as_text()


def gradient(mesh: Mesh, axes: tuple[str, ...]) -> str:
    """Compile a layer's gradient; images and negatives are divided over all `axes` together."""
    everywhere, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(axes))

    def loss(weights, images, negatives):
        queries = jax.lax.with_sharding_constraint(images @ weights, everywhere)
        return jax.nn.logsumexp(queries @ negatives.T, axis=1).mean()

    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
        for shape, sharding in (
            ((1024, 128), everywhere),
            ((IMAGES * mesh.size, 1024), divided),
            ((65536, 128), divided),
        )
    ]
    step = jax.jit(jax.grad(loss), out_shardings=everywhere)
    return step.lower(*arguments).compile().as_text()


def judge(topology: str) -> None:
    """Compile both steps for one topology and print what they need."""
    mesh = mesh_of(topology)
    devices = mesh.devices
    began = time.perf_counter()
    base, ours = supervised(mesh), moco_program(mesh).compile_step()
    seconds = time.perf_counter() - began
    text = ours.as_text()
    keep(f"{topology}_moco", text)
    keep(f"{topology}_supervised", base.as_text())
    first = numbers(base)
    print(
        f"\n{topology}: {devices[0].device_kind}, {mesh.size} chips, batch"
        f" {IMAGES * mesh.size}; compiled in {seconds:.0f} s"
    )
    print(table(HEADER, [report("supervised", base, None), report("MoCo v2", ours, first)]))
    print(table(TRAFFIC, traffic(collectives.read(text))))
    for line in logits_precision(text):
        print("logits", line)
    if KINDS.value:
        hlo_costs.show(base.as_text(), text)


def without_donation(mesh: Mesh):
    """Compile the step that keeps its old state beside the new one."""
    program = moco_program(mesh)
    undonated = jax.jit(
        program.train_step.__wrapped__,
        out_shardings=(jax.tree.map(lambda x: x.sharding, program.abstract), None, None),
    )
    return dataclasses.replace(program, train_step=undonated).compile_step()


def average_apart(mesh: Mesh):
    """Compile the step in which the momentum encoder's average reads the new weights once more."""
    average = optimizers.moving_average

    def apart(old, new, momentum):
        return average(old, jax.lax.optimization_barrier(new), momentum)

    with mock.patch.object(optimizers, "moving_average", apart):
        return moco_program(mesh).compile_step()


def looked_at_by_all(mesh: Mesh):
    """Compile the step that looks for numbers that are not finite by `jnp.all`, not by sums."""

    def all_finite(tree):
        found = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if x.dtype != jnp.int32]
        return jnp.all(jnp.stack(found)) if found else jnp.asarray(True)

    with mock.patch.object(update, "all_finite", all_finite):
        return moco_program(mesh).compile_step()


def permuted(mesh: Mesh):
    """Compile the step that shuffles key images in the usual way, `key[permutation]`."""
    order = np.random.default_rng(0).permutation(IMAGES * mesh.size)

    def permute(x, *_):
        return x[order]

    with mock.patch.object(shuffle, "exchange", permute):
        return moco_program(mesh).compile_step()


def compare_ideas(topology: str) -> None:
    """Compile the step without each saving and print what it needs then."""
    mesh = mesh_of(topology)
    forms = {
        "as it is": lambda: moco_program(mesh).compile_step(),
        "gradients summed in bfloat16 (reduce='compute')": (
            lambda: moco_program(mesh, reduce="compute").compile_step()
        ),
        "momentum encoder averaged in a pass of its own": lambda: average_apart(mesh),
        "finite or not by jnp.all": lambda: looked_at_by_all(mesh),
        "state not donated": lambda: without_donation(mesh),
        "key images shuffled by key[permutation]": lambda: permuted(mesh),
        "views finished on the device (augment_on='device')": (
            lambda: moco_program(mesh, augment_on="device").compile_step()
        ),
    }
    rows, first = [], None
    for name, make in forms.items():
        compiled = make()
        first = first or numbers(compiled)
        moved = sum(c.bytes for c in collectives.read(compiled.as_text())) / 1e6
        rows.append([*report(name, compiled, first), f"{moved:.1f}"])
        print(f"  {name}: compiled", flush=True)
    print(f"\n{topology}, each against the step as it is")
    print(table([*HEADER, "MB between chips"], rows))


def main(argv: list[str]) -> None:
    """Compile for every topology and print."""
    for topology in TOPOLOGIES.value:
        if SLICES.value > 1:
            compare_layouts(topology, SLICES.value)
            judge_slices(topology, SLICES.value)
        else:
            judge(topology)
    if IDEAS.value:
        compare_ideas(TOPOLOGIES.value[0])


if __name__ == "__main__":
    app.run(main)
