r"""Times one MoCo step in JAX and in PyTorch (eager and torch.compile), in one run.

    python -m benchmarks.step_vs_pytorch [--cases=resnet18,resnet50] [--times=7] [--rounds=3] \
        [--nocompile] [--profile]

Networks, batch and BN groups are the same. Each form is a process of its own, and all forms take
their turn `--rounds` times; shown are the median of the rounds and their range. A ratio above 1
means that JAX is faster than the best form of PyTorch as its users run it; on a CPU one form has
also the setting of memory that this project's commands have. On a GPU both compute in bfloat16, on
a CPU in float32, with as many threads as cores on both sides. `--profile` also says, on a CPU, what
the time of a step goes to, by kind of operation. Needs the extra `torch`.
"""

import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax

# Before TensorFlow, which the package may import: in the other order the process crashes.
import torch
from absl import app, flags

from benchmarks import machine, step_profile
from benchmarks.steps import Case, config_of, jax_step
from benchmarks.steps_torch import torch_step
from moco_jax.base import allocator
from moco_jax.base.console import table
from moco_jax.method.choice import Method
from moco_jax.parallel import xla_flags

CASES = flags.DEFINE_list(
    "cases", ["resnet18", "resnet50"], "resnet18: CIFAR, 32 px; resnet50: 224 px."
)
TIMES = flags.DEFINE_integer("times", 7, "Steps timed in each form; the median is shown.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "Times that all forms are gone through, in turn.", 1)
COMPILE = flags.DEFINE_bool("compile", True, "Also torch.compile, which takes minutes.")
PROFILE = flags.DEFINE_bool("profile", False, "Also time kinds of operations, on a CPU.")

KEPT = "memory kept"  # freed memory stays with the process, as in this project's commands
CPU_DEVICES = 4  # of the second JAX form on a CPU, as in recipes for a CPU
SIZES = {
    "resnet18": Case("resnet18", side=32, batch=64, groups=4, queue=4096),
    "resnet50": Case("resnet50", side=224, batch=16, groups=4, queue=65536),
}


class Measured(NamedTuple):
    """What one form of a step took.

    Attributes:
        seconds: median of a step.
        loss: of the first step.
        profile: seconds by kind of operation; None where the profilers do not see the kinds.
    """

    seconds: float
    loss: float
    profile: dict[str, float] | None


def forms(device: str, compiled: bool) -> list[str]:
    """List the forms that are timed on `device`, with or without those of torch.compile."""
    kinds = ["eager", "compile"] if compiled else ["eager"]
    listed = [f"PyTorch {kind}{layout}" for kind in kinds for layout in ("", ", channels last")]
    if device == "cpu":
        return [*listed, f"PyTorch eager, {KEPT}", "JAX", f"JAX, cpu_devices={CPU_DEVICES}"]
    return [*listed, "JAX"]


def measure(name: str, form: str, device: str, times: int, profiled: bool) -> Measured:
    """Time the case `name` in one form, in a process that has run nothing else.

    The two share no process: PyTorch's threads go on waiting at full speed after its last step.
    """
    case = SIZES[name]
    if form.startswith("JAX") or KEPT in form:
        allocator.keep_freed_memory()
    if form.startswith("PyTorch"):
        torch.set_num_threads(os.cpu_count() or 1)
        layout = torch.channels_last if "channels last" in form else torch.contiguous_format
        step = torch_step(case, "compile" in form, device, layout)
    else:
        xla_flags.set_up()
        jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
        step = jax_step(config_of(case), CPU_DEVICES if "devices" in form else 1)
    loss, seconds = step.once(), step.seconds(times)
    profile = None
    # A compiled PyTorch step hides its kinds, and several devices take theirs at once.
    if profiled and device == "cpu" and "compile" not in form and "devices" not in form:
        profile = (step_profile.of_jax if step.text else step_profile.of_torch)(step)
    return Measured(seconds, loss, profile)


def in_turns(name: str, device: str, times: int, rounds: int) -> dict[str, list[Measured]]:
    """Measure all forms of one case one after the other, and then again: a list for each.

    A machine that others share is faster in one minute than in the next.
    """
    found: dict[str, list[Measured]] = {form: [] for form in forms(device, COMPILE.value)}
    for number in range(rounds):
        for form, measured in found.items():
            fresh = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=fresh) as process:
                profiled = PROFILE.value and not number
                asked = process.submit(measure, name, form, device, times, profiled)
                measured.append(asked.result())
            print(f"  {name} {form}: {measured[-1].seconds:.3f} s", flush=True)
    return found


def compare(name: str, device: str, times: int) -> None:
    """Time all forms of one case and print them with the ratio to the best of PyTorch."""
    case, found = SIZES[name], in_turns(name, device, times, ROUNDS.value)
    all_seconds = {form: sorted(m.seconds for m in measured) for form, measured in found.items()}
    middle = {form: statistics.median(seconds) for form, seconds in all_seconds.items()}
    best = min(s for form, s in middle.items() if form.startswith("PyTorch") and KEPT not in form)
    rows = [
        [
            form,
            f"{s:.3f}",
            f"{all_seconds[form][0]:.3f} to {all_seconds[form][-1]:.3f}",
            f"{case.batch / s:.1f}",
            f"{best / s:.2f}",
            f"{found[form][0].loss:.3f}",
        ]
        for form, s in middle.items()
    ]
    print(
        f"\n{name}, {case.side} px, batch {case.batch} in {case.groups} BN groups, K {case.queue};"
        f" chance {Method(negatives=case.queue).chance_level(case.batch):.3f}\n"
        + table(
            ["form", "s a step", "rounds", "images/s", "speed over best PyTorch", "first loss"],
            rows,
        )
        + "\n"
    )
    profiles = {form: m[0].profile for form, m in found.items() if m[0].profile is not None}
    if profiles:
        print(step_profile.show(profiles) + "\n")


def main(argv: list[str]) -> None:
    """Time what the flags name."""
    xla_flags.set_up()
    # This process asks for the device and keeps none of its memory from the others.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    named = torch.cuda.get_device_name() if device == "cuda" else machine.describe()
    print(f"{named}; torch {torch.__version__}, {os.cpu_count()} threads")
    for name in CASES.value:
        compare(name, device, TIMES.value)


if __name__ == "__main__":
    app.run(main)
