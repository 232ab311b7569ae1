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
import numpy as np

# Before TensorFlow, which the package imports: in the other order the process crashes.
import torch
import torch.nn.functional as F
import torchvision
from absl import app, flags
from torch import nn

from benchmarks import machine
from moco_jax.base.console import table
from moco_jax.config import default_config, imagenet
from moco_jax.method import step
from moco_jax.method.choice import Method
from moco_jax.parallel import mesh, xla_flags
from moco_jax.training import assembly

CASES = flags.DEFINE_list(
    "cases", ["resnet18", "resnet50"], "resnet18: CIFAR, 32 px; resnet50: 224 px."
)
TIMES = flags.DEFINE_integer("times", 7, "Steps timed in each form; the median is shown.")
COMPILE = flags.DEFINE_bool("compile", True, "Also torch.compile, which takes minutes.")
PROFILE = flags.DEFINE_bool("profile", False, "Also time single convolutions.")

CPU_DEVICES = 4  # of the second JAX form on a CPU, as in recipes for a CPU
GROUPS, DIM, MOMENTUM, TEMPERATURE, RATE, DECAY = 4, 128, 0.999, 0.2, 0.03, 1e-4
# Name -> side of an image, batch, K.
SIZES = {"resnet18": (32, 64, 4096), "resnet50": (224, 16, 65536)}


class SplitBatchNorm(nn.BatchNorm2d):
    """BatchNorm over `GROUPS` groups in one call, as the authors' CIFAR demo writes it."""

    def forward(self, x):
        b, c, h, w = x.shape
        mean, var = self.running_mean.repeat(GROUPS), self.running_var.repeat(GROUPS)
        out = F.batch_norm(
            x.reshape(-1, c * GROUPS, h, w),
            mean,
            var,
            self.weight.repeat(GROUPS),
            self.bias.repeat(GROUPS),
            True,
            self.momentum,
            self.eps,
        )
        self.running_mean.copy_(mean.view(GROUPS, c).mean(0))
        self.running_var.copy_(var.view(GROUPS, c).mean(0))
        return out.reshape(b, c, h, w)


def torch_encoder(name: str) -> nn.Module:
    """Build torchvision's network with the MLP head, and for the ResNet-18 the CIFAR stem."""
    net = getattr(torchvision.models, name)(norm_layer=SplitBatchNorm)
    hidden = net.fc.in_features
    net.fc = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, DIM))
    if name == "resnet18":
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def torch_step(name: str, compiled: bool, device: str, layout: torch.memory_format):
    """Return a function that takes one step, waits for it and returns the loss."""
    side, batch, size = SIZES[name]
    torch.manual_seed(0)
    bf16 = device == "cuda"
    query, key = torch_encoder(name).to(device), torch_encoder(name).to(device)
    query, key = (net.to(memory_format=layout) for net in (query, key))
    key.load_state_dict(query.state_dict())
    optimizer = torch.optim.SGD(query.parameters(), RATE, momentum=0.9, weight_decay=DECAY)
    queue = F.normalize(torch.randn(size, DIM, device=device))
    images = torch.randint(0, 255, (2, batch, 3, side, side), dtype=torch.uint8, device=device)
    center, scale = (
        torch.tensor(v, device=device).view(3, 1, 1) for v in (imagenet.MEAN, imagenet.STD)
    )
    pointer = 0

    def forward(q_images, k_images, order, back):
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                inputs = ((k_images[order].float() / 255 - center) / scale).contiguous(
                    memory_format=layout
                )
                keys = F.normalize(key(inputs).float())[back]
            inputs = ((q_images.float() / 255 - center) / scale).contiguous(memory_format=layout)
            queries = query(inputs).float()
        queries = F.normalize(queries)
        logits = (
            torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / TEMPERATURE
        )
        return F.cross_entropy(logits, torch.zeros(batch, dtype=torch.long, device=device)), keys

    run = torch.compile(forward, dynamic=False) if compiled else forward

    def once() -> float:
        nonlocal pointer
        with torch.no_grad():
            torch._foreach_lerp_(list(key.parameters()), list(query.parameters()), 1 - MOMENTUM)
        order = torch.randperm(batch, device=device)
        loss, keys = run(images[0], images[1], order, torch.argsort(order))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[pointer : pointer + batch] = keys
        pointer = (pointer + batch) % size
        return loss.item()

    return once


def jax_step(name: str, devices: int):
    """Return a function that takes one step of this project on so many devices and waits for it."""
    side, batch, size = SIZES[name]
    config = default_config()
    config.update(
        arch=name,
        stem="cifar" if name == "resnet18" else "imagenet",
        head="mlp",
        dim=DIM,
        image_size=side,
        batch_size=batch,
        bn_groups=GROUPS,
        shuffle_groups=GROUPS,
        queue_size=size,
        momentum=MOMENTUM,
        temperature=TEMPERATURE,
        lr=RATE,
        weight_decay=DECAY,
    )
    program = assembly.program(config, mesh.create_mesh(jax.devices()[:devices]), examples=batch)
    compiled, current = program.compile_step(), program.initial()
    views = np.random.default_rng(0).integers(0, 256, (2, batch, side, side, 3), np.uint8)
    on_device = jax.device_put(
        step.Batch(*views, np.arange(batch, dtype=np.int32)), mesh.sharded(program.mesh)
    )

    def once() -> float:
        nonlocal current
        current, metrics = compiled(current, on_device)
        jax.block_until_ready(current)
        return float(metrics["loss"])

    return once


def compare(name: str, device: str, times: int) -> None:
    """Time all forms of one case and print them with the ratio to the best of PyTorch."""
    side, batch, size = SIZES[name]
    forms = {
        "PyTorch eager": lambda: torch_step(name, False, device, torch.contiguous_format),
        "PyTorch eager, channels last": lambda: torch_step(
            name, False, device, torch.channels_last
        ),
        "PyTorch compile": lambda: torch_step(name, True, device, torch.contiguous_format),
        "PyTorch compile, channels last": lambda: torch_step(
            name, True, device, torch.channels_last
        ),
        "JAX": lambda: jax_step(name, 1),
    }
    if not COMPILE.value:
        forms = {form: make for form, make in forms.items() if "compile" not in form}
    if device == "cpu":
        forms[f"JAX, cpu_devices={CPU_DEVICES}"] = lambda: jax_step(name, CPU_DEVICES)
    seconds, losses = {}, {}
    for form, make in forms.items():
        once = make()
        losses[form] = once()
        seconds[form] = machine.median_seconds(once, times)
        print(f"  {name} {form}: {seconds[form]:.3f} s", flush=True)
    best = min(v for k, v in seconds.items() if k.startswith("PyTorch"))
    rows = [
        [form, f"{s:.3f}", f"{batch / s:.1f}", f"{best / s:.2f}", f"{losses[form]:.3f}"]
        for form, s in seconds.items()
    ]
    print(
        f"\n{name}, {side} px, batch {batch} in {GROUPS} BN groups, K {size}; chance"
        f" {Method(negatives=size).chance_level(batch):.3f}\n"
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
    pad, batch = kernel // 2, SIZES["resnet18"][1]
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
        f"ms PyTorch / ms JAX on one device, batch {SIZES['resnet18'][1]}\n" + table(header, rows)
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
