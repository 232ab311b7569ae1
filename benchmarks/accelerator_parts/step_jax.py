"""Part 2, this project's side: one step of one network, its speed and its share of the peak."""

import time

import jax
import jax.numpy as jnp

from benchmarks import machine
from benchmarks.accelerator_parts.telling import given, require_accelerator, tell
from benchmarks.steps import Case, config_of, jax_step, operations
from moco_jax.parallel import xla_flags
from moco_jax.training import throughput

PRODUCT = 8192  # rows and columns of the matrices that show what the device reaches


def tell_product(side: int, times: int) -> None:
    """Hand over the operations a second of a bfloat16 product, the most a step could have."""
    rows = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)

    def once() -> None:
        jax.block_until_ready([product(*rows) for _ in range(10)])

    teraflops = 2 * side**3 * 10 / machine.median_seconds(once, times) / 1e12
    peak = throughput.peak_flops(jax.devices()[0].device_kind) or 0.0
    tell(what="bfloat16 product", side=side, teraflops=teraflops, peak=peak / 1e12)


def tell_step(what: str, config, times: int, steps: int) -> None:
    """Compile one step and hand over its speed."""
    began = time.perf_counter()
    ours = jax_step(config)
    loss = ours.once()
    compiled, seconds = time.perf_counter() - began, ours.seconds(times, steps)
    found = dict(
        of=what,
        form="JAX",
        batch=config.batch_size,
        side=config.image_size,
        seconds=seconds,
        images_a_second=config.batch_size / seconds,
        seconds_until_first=compiled,
        loss=loss,
    )
    tell(what="step", **found)
    peak, counted = throughput.peak_flops(jax.devices()[0].device_kind), operations(config)
    tell(
        what="share of the peak",
        of=what,
        gigaflops_an_image=counted / config.batch_size / 1e9,
        teraflops=counted / seconds / 1e12,
        share_of_peak=counted / seconds / peak if peak else None,
    )


def main() -> None:
    """Time the step that the command names: of a case, or of MoCo v3's ViT."""
    xla_flags.set_up()
    asked = given()
    require_accelerator(asked["small"])
    times, steps = asked["times"], asked["steps"]
    if "product" in asked:
        tell_product(asked["product"], times)
    if "case" in asked:
        case = Case(**asked["case"])
        tell_step(case.arch, config_of(case), times, steps)
    if "vit" in asked:
        from configs import imagenet_v3

        for attention in ("lean", "plain"):
            config = imagenet_v3.get_config("vit_small")
            config.update(attention=attention, **asked["vit"])
            tell_step(f"v3 vit_small, attention={attention}", config, times, steps)


if __name__ == "__main__":
    main()
