"""One training step of this project, ready to be timed; several benchmarks time it.

`steps_torch.py` has the same step in PyTorch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import machine
from moco_jax.config import default_config
from moco_jax.method import step
from moco_jax.parallel import mesh
from moco_jax.training import assembly

DIM, MOMENTUM, TEMPERATURE, RATE, DECAY = 128, 0.999, 0.2, 0.03, 1e-4


class Case(NamedTuple):
    """A network of the MoCo papers and the sizes that a step of it is timed with.

    Attributes:
        arch: the encoder's name; a ResNet-18 has the stem for CIFAR.
        side: of the images, in pixels.
        batch: images in a step.
        groups: BatchNorm groups.
        queue: keys in it.
    """

    arch: str
    side: int
    batch: int
    groups: int
    queue: int

    @property
    def stem(self) -> str:
        """Return the name of the ResNet's stem."""
        return "imagenet" if self.arch == "resnet50" else "cifar"


class Step(NamedTuple):
    """A step that is compiled.

    Attributes:
        start: starts one step and returns its loss, which may still be under way.
        wait: waits for a loss and for all that was started before it, and returns it.
        text: of the compiled program, where XLA compiled it.
    """

    start: Callable[[], Any]
    wait: Callable[[Any], float]
    text: str = ""

    def once(self) -> float:
        """Take one step and return its loss."""
        return self.wait(self.start())

    def seconds(self, times: int, steps: int = 1) -> float:
        """Return the median time of a step over `times` turns; a turn waits after its `steps`."""

        def turn() -> None:
            for _ in range(steps - 1):
                self.start()
            self.once()

        return machine.median_seconds(turn, times, warm_up=1 if steps > 1 else 2) / steps


def config_of(case: Case) -> ConfigDict:
    """Return the settings of MoCo v2 for `case`."""
    config = default_config()
    config.update(
        arch=case.arch,
        stem=case.stem,
        head="mlp",
        dim=DIM,
        image_size=case.side,
        batch_size=case.batch,
        bn_groups=case.groups,
        shuffle_groups=case.groups,
        queue_size=case.queue,
        momentum=MOMENTUM,
        temperature=TEMPERATURE,
        lr=RATE,
        weight_decay=DECAY,
    )
    return config


def jax_step(config: ConfigDict, devices: int = 1) -> Step:
    """Compile the step of a run with these settings on so many devices, fed with random views."""
    batch, side = config.batch_size, config.image_size
    program = assembly.program(config, mesh.create_mesh(jax.devices()[:devices]), examples=batch)
    compiled, current = program.compile_step(), program.initial()
    views = np.random.default_rng(0).integers(0, 256, (2, batch, side, side, 3), np.uint8)
    on_device = jax.device_put(
        step.Batch(*views, np.arange(batch, dtype=np.int32)), mesh.sharded(program.mesh)
    )

    def start() -> jax.Array:
        nonlocal current
        current, metrics, _ = compiled(current, on_device)
        return metrics["loss"]

    def wait(loss: jax.Array) -> float:
        jax.block_until_ready(current)
        return float(loss)

    return Step(start, wait, compiled.as_text())


def operations(config: ConfigDict) -> float:
    """Count the operations of one step as it is written, before a compiler changes anything.

    Each product and each sum is one. They are counted of the host's program, as JAX counts none of
    a program for a GPU. 0: JAX was told to do without the host's processor.
    """
    try:
        host = jax.devices("cpu")[:1]
    except RuntimeError:
        return 0.0
    program = assembly.program(config, mesh.create_mesh(host), examples=config.batch_size)
    counted = program.train_step.lower(program.abstract, program.batch).cost_analysis()
    return (counted or {}).get("flops", 0.0)
