r"""Times one MoCo step in JAX and in PyTorch (eager and torch.compile), in one run.

    python -m benchmarks.step_vs_pytorch [--cases=resnet18,resnet50] [--times=7] \
        [--nocompile] [--profile]

Networks, batch and BN groups are the same. A ratio above 1 means that JAX is faster than the
best form of PyTorch. On a GPU both compute in bfloat16, on a CPU in float32, with as many
threads as cores on both sides. `--profile` also says, on a CPU, what the time of a step goes to, by
kind of operation. Needs the extra `torch`.
"""

import os

import jax

# Before TensorFlow, which the package may import: in the other order the process crashes.
import torch
from absl import app, flags

from benchmarks import machine, step_profile
from benchmarks.steps import Case, config_of, jax_step
from benchmarks.steps_torch import torch_step
from moco_jax.base.console import table
from moco_jax.method.choice import Method
from moco_jax.parallel import xla_flags

CASES = flags.DEFINE_list(
    "cases", ["resnet18", "resnet50"], "resnet18: CIFAR, 32 px; resnet50: 224 px."
)
TIMES = flags.DEFINE_integer("times", 7, "Steps timed in each form; the median is shown.")
COMPILE = flags.DEFINE_bool("compile", True, "Also torch.compile, which takes minutes.")
PROFILE = flags.DEFINE_bool("profile", False, "Also time kinds of operations, on a CPU.")

CPU_DEVICES = 4  # of the second JAX form on a CPU, as in recipes for a CPU
SIZES = {
    "resnet18": Case("resnet18", side=32, batch=64, groups=4, queue=4096),
    "resnet50": Case("resnet50", side=224, batch=16, groups=4, queue=65536),
}


def compare(name: str, device: str, times: int) -> None:
    """Time all forms of one case and print them with the ratio to the best of PyTorch."""
    case = SIZES[name]
    forms = {
        "PyTorch eager": lambda: torch_step(case, False, device, torch.contiguous_format),
        "PyTorch eager, channels last": lambda: torch_step(
            case, False, device, torch.channels_last
        ),
        "PyTorch compile": lambda: torch_step(case, True, device, torch.contiguous_format),
        "PyTorch compile, channels last": lambda: torch_step(
            case, True, device, torch.channels_last
        ),
        "JAX": lambda: jax_step(config_of(case)),
    }
    if not COMPILE.value:
        forms = {form: make for form, make in forms.items() if "compile" not in form}
    if device == "cpu":
        forms[f"JAX, cpu_devices={CPU_DEVICES}"] = lambda: jax_step(config_of(case), CPU_DEVICES)
    seconds, losses, profiles = {}, {}, {}
    for form, make in forms.items():
        step = make()
        losses[form] = step.once()
        seconds[form] = step.seconds(times)
        # A compiled PyTorch step hides its kinds, and several devices take theirs at once.
        if PROFILE.value and device == "cpu" and "compile" not in form and "devices" not in form:
            of_form = step_profile.of_jax if step.text else step_profile.of_torch
            profiles[form] = of_form(step)
        print(f"  {name} {form}: {seconds[form]:.3f} s", flush=True)
    best = min(v for k, v in seconds.items() if k.startswith("PyTorch"))
    rows = [
        [form, f"{s:.3f}", f"{case.batch / s:.1f}", f"{best / s:.2f}", f"{losses[form]:.3f}"]
        for form, s in seconds.items()
    ]
    print(
        f"\n{name}, {case.side} px, batch {case.batch} in {case.groups} BN groups, K {case.queue};"
        f" chance {Method(negatives=case.queue).chance_level(case.batch):.3f}\n"
        + table(["form", "s a step", "images/s", "speed over best PyTorch", "first loss"], rows)
        + "\n"
    )
    if profiles:
        print(step_profile.show(profiles) + "\n")


def main(argv: list[str]) -> None:
    """Time what the flags name."""
    xla_flags.set_up()
    jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    named = torch.cuda.get_device_name() if device == "cuda" else machine.describe()
    print(f"{named}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in CASES.value:
        compare(name, device, TIMES.value)


if __name__ == "__main__":
    app.run(main)
