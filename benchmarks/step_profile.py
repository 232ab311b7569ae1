"""Says what the time of a step goes to, by kind of operation, in JAX and in PyTorch on a CPU.

Each side's own profiler gives the times. JAX's does not see the threads on which XLA convolves and
multiplies: what no other operation took is theirs.
"""

import collections
import tempfile
import time
from pathlib import Path

import jax
import torch

from benchmarks.hlo_costs import Cost, Program
from benchmarks.steps import Step
from moco_jax.base.console import table

PRODUCTS = "convolutions, products"
SUMS = "sums, BatchNorm"
POOL = "max-pool"
COPIES = "copies, transpositions"
REST = "elementwise, update, others"
KINDS = (PRODUCTS, SUMS, POOL, COPIES, REST)
# PyTorch's operations by a part of their names, the first that fits.
TORCH = {
    "conv": PRODUCTS,
    "mm": PRODUCTS,
    "norm": SUMS,
    "aten::sum": SUMS,
    "aten::mean": SUMS,
    "max_pool": POOL,
    "copy": COPIES,
    "clone": COPIES,
    "aten::cat": COPIES,
}
# Kinds of `hlo_costs` that have another name here.
XLA = {
    "convolution, product": PRODUCTS,
    "reduction": SUMS,
    "max-pool": SUMS,  # a window over partial sums, by which XLA for CPUs makes large sums
    "copy, transposition": COPIES,
    "slice, padding": COPIES,
}


def _kind(cost: Cost) -> str:
    if "max_pool" in cost.instruction.op_name:
        return POOL
    return XLA.get(cost.kind, REST)


def of_jax(step: Step) -> dict[str, float]:
    """Return seconds of one step by kind."""
    program = Program(step.text)
    kinds = {cost.instruction.name: _kind(cost) for cost in program.costs()}
    found: collections.Counter[str] = collections.Counter()
    step.once()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            began = time.perf_counter()
            step.once()
            seconds = time.perf_counter() - began
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in kinds:
                        found[kinds[event.name]] += event.duration_ns / 1e9
    found[PRODUCTS] = seconds - sum(found[kind] for kind in KINDS[1:])
    return {kind: found[kind] for kind in KINDS}


def of_torch(step: Step) -> dict[str, float]:
    """Return seconds of one step by kind, of this thread, which waits for all others."""
    step.once()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step.once()
    found: collections.Counter[str] = collections.Counter()
    for event in profile.key_averages():
        kind = next((kind for part, kind in TORCH.items() if part in event.key), REST)
        found[kind] += event.self_cpu_time_total / 1e6
    return {kind: found[kind] for kind in KINDS}


def show(forms: dict[str, dict[str, float]]) -> str:
    """Return a table: a line for each kind, a column of milliseconds for each form."""
    rows = [[kind, *(f"{form[kind] * 1e3:.0f}" for form in forms.values())] for kind in KINDS]
    rows.append(["all", *(f"{sum(form.values()) * 1e3:.0f}" for form in forms.values())])
    return "ms of one step under the profilers\n" + table(["", *forms], rows)
