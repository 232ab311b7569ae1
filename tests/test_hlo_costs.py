"""Costs that are read from a program's text are those that its compiler counts."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import hlo_costs

# As the TPU compiler writes it: padded tiles, and a copy to the memory on the chip.
TPU = """
%fused (p: bf16[32,56,56,64]) -> bf16[32,56,56,64] {
  %p = bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %n = bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)} negate(%p)
}

ENTRY %main (x: bf16[32,56,56,64]) -> bf16[32,56,56,64] {
  %x = bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)} parameter(0)
  %start = (bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)S(1)}, bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %done = bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)S(1)} copy-done(%start)
  ROOT %made = bf16[32,56,56,64]{3,0,2,1:T(8,128)(2,1)} fusion(%done), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/transpose(jvp(Encoder))/neg"}
}
"""  # noqa: E501


def step(weights, images, memory):
    """Convolution, statistics, pooling, a loop over slices, a product and all their gradients."""

    def loss(weights):
        x = lax.conv_general_dilated(
            images, weights[0], (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu((x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5))
        pooled = lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), [(0, 0), (1, 1), (1, 1), (0, 0)]
        )
        features = pooled.mean((1, 2)) @ weights[1]

        def block(i, total):
            return total + (features @ lax.dynamic_slice_in_dim(memory, i * 4, 4).T).sum()

        return lax.fori_loop(0, 8, block, jax.nn.logsumexp(features))

    value, gradient = jax.value_and_grad(loss)(weights)
    memory = lax.dynamic_update_slice_in_dim(memory, memory[:4] + value, 8, 0)
    return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient), memory


def test_totals_are_those_of_the_compiler():
    shapes = ((3, 3, 4, 16), (16, 10)), (8, 16, 16, 4), (32, 10)
    arguments = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda x: type(x[0]) is int
    )
    compiled = jax.jit(step, donate_argnums=2).lower(*arguments).compile()
    costs, counted = hlo_costs.Program(compiled.as_text()).costs(), compiled.cost_analysis()
    assert sum(c.flops for c in costs) == counted["flops"]
    # A tuple's pointers, 8 bytes each, are left out.
    assert sum(c.counted for c in costs) == pytest.approx(counted["bytes accessed"], rel=1e-3)
    kinds = {c.kind for c in costs}
    assert {"convolution, product", "max-pool", "reduction", "elementwise"} <= kinds


def test_copies_of_a_tpu_and_padding_count():
    move, negate = hlo_costs.Program(TPU).costs()
    size = 32 * 56 * 56 * 128 * 2  # 64 channels take the place of 128
    assert (move.read, move.written, move.main, move.counted) == (size, size, size, 4 * size)
    assert (negate.read, negate.written, negate.main, negate.counted) == (*[size] * 3, 2 * size)
    assert negate.flops == size // 4
    assert (move.kind, move.part) == ("moved between memories", "backward")


def test_differences_add_up_to_what_is_moved_more():
    base = hlo_costs.Program(TPU).costs()
    for by in ("kind", "part"):
        *parts, total = hlo_costs.rows(base, base * 2, by)
        assert total[0] == "all"
        assert total[-1] == total[-3] == "+100.00 %"
        assert sum(float(row[-3].rstrip(" %")) for row in parts) == pytest.approx(100, abs=0.02)
