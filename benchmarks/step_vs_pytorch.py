r"""Times one MoCo step in JAX and in PyTorch (eager and torch.compile), in one run.

    python -m benchmarks.step_vs_pytorch [--cases=resnet18,resnet50] [--times=7] \
        [--nocompile] [--profile]

Networks, batch and BN groups are the same. A ratio above 1 means that JAX is faster than the
best form of PyTorch. On a GPU both compute in bfloat16, on a CPU in float32, with as many
threads as cores on both sides. `--profile` times each convolution of the ResNet-18 by itself,
forward and backward, which is where the two differ on a CPU. Needs the extra `torch`.
"""

import os

import jax
import jax.numpy as jnp

# Before TensorFlow, which the package may import: in the other order the process crashes.
import torch
import torch.nn.functional as F
from absl import app, flags

from benchmarks import machine
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
PROFILE = flags.DEFINE_bool("profile", False, "Also time single convolutions.")

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
    seconds, losses = {}, {}
    for form, make in forms.items():
        step = make()
        losses[form] = step.once()
        seconds[form] = step.seconds(times)
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


# The convolutions of a CIFAR ResNet-18: side in, channels in, channels out, kernel, stride.
CONVOLUTIONS = [
    (32, 3, 64, 3, 1),
    (32, 64, 64, 3, 1),
    (32, 64, 128, 3, 2),
    (32, 64, 128, 1, 2),
    (16, 128, 128, 3, 1),
    (16, 128, 256, 3, 2),
    (8, 256, 256, 3, 1),
    (8, 256, 512, 3, 2),
    (4, 512, 512, 3, 1),
]


def profile_one(
    side: int, c_in: int, c_out: int, kernel: int, stride: int, times: int
) -> list[str]:
    """Return a row of milliseconds of one convolution, PyTorch / JAX.

    The columns are forward, gradient of input, gradient of kernel.
    """
    pad, batch = kernel // 2, SIZES["resnet18"].batch
    x, w = torch.randn(batch, c_in, side, side), torch.randn(c_out, c_in, kernel, kernel)
    g = F.conv2d(x, w, None, stride, pad)

    def torch_backward(*mask: bool):
        return torch.ops.aten.convolution_backward(
            g, x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, list(mask)
        )

    def conv(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    jx, jg = (jnp.asarray(a.numpy().transpose(0, 2, 3, 1)) for a in (x, g))
    jw = jnp.asarray(w.numpy().transpose(2, 3, 1, 0))
    forward = jax.jit(conv)
    to_input = jax.jit(lambda x, w, g: jax.vjp(lambda a: conv(a, w), x)[1](g)[0])
    to_kernel = jax.jit(lambda x, w, g: jax.vjp(lambda b: conv(x, b), w)[1](g)[0])
    pairs = (
        (lambda: F.conv2d(x, w, None, stride, pad), lambda: forward(jx, jw)),
        (lambda: torch_backward(True, False, False), lambda: to_input(jx, jw, jg)),
        (lambda: torch_backward(False, True, False), lambda: to_kernel(jx, jw, jg)),
    )
    row = [f"{kernel}x{kernel}/{stride} {c_in}->{c_out} at {side} px"]
    for theirs, ours in pairs:
        t = machine.median_seconds(theirs, times)
        o = machine.median_seconds(lambda ours=ours: jax.block_until_ready(ours()), times)
        row.append(f"{t * 1e3:.1f} / {o * 1e3:.1f} = {t / o:.2f}")
    return row


def profile(times: int) -> None:
    """Time each convolution of the ResNet-18 by itself, in both, on one JAX device."""
    header = ["convolution", "forward", "gradient of input", "gradient of kernel"]
    rows = [profile_one(*shape, times) for shape in CONVOLUTIONS]
    print(
        f"ms PyTorch / ms JAX on one device, batch {SIZES['resnet18'].batch}\n"
        + table(header, rows)
    )


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
    if PROFILE.value:
        profile(TIMES.value)


if __name__ == "__main__":
    app.run(main)
