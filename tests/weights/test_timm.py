"""timm's names and layouts: nothing lost on the way there and back, nothing wrong let in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax.encoders.vit import ViT
from moco_jax.weights import timm as weights


def random_bits(conv_stem):
    """A small network's variables, every leaf random bits (NaNs and -0 among them)."""
    backbone = ViT(2, 3, 24, patch=16 if conv_stem else 4, conv_stem=conv_stem)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.integers(0, 2**32, x.shape, np.uint32).view(np.float32), shapes
    )


@pytest.mark.parametrize("conv_stem", [False, True])
def test_there_and_back_keeps_every_bit(conv_stem):
    variables = random_bits(conv_stem)
    again = weights.load(weights.save(variables, 32), variables)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(variables), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_names_and_shapes_of_the_conv_stem_are_the_authors():
    """The conv stem is a Sequential: four times convolution, norm, ReLU; then one convolution."""
    saved = weights.save(random_bits(True), 32)
    stem = {k: v.shape for k, v in saved.items() if k.startswith("patch_embed") and v.ndim == 4}
    assert stem == {
        "patch_embed.proj.0.weight": (3, 3, 3, 3),
        "patch_embed.proj.3.weight": (6, 3, 3, 3),
        "patch_embed.proj.6.weight": (12, 6, 3, 3),
        "patch_embed.proj.9.weight": (24, 12, 3, 3),
        "patch_embed.proj.12.weight": (24, 24, 1, 1),
    }
    assert "patch_embed.proj.1.running_mean" in saved
    assert "patch_embed.proj.12.bias" in saved
    assert saved["patch_embed.proj.10.num_batches_tracked"] == 0
    assert saved["pos_embed"].shape == (1, 5, 24)


def test_every_fault_is_named():
    variables = random_bits(False)
    state_dict = weights.save(variables, 32)
    del state_dict["blocks.1.attn.qkv.bias"]
    state_dict["blocks.0.mlp.fc1.weight"] = state_dict["blocks.0.mlp.fc1.weight"].T
    state_dict["patch_embed.proj.weight"] = np.zeros((24, 48), np.float32)
    state_dict["blocks.7.norm1.weight"] = np.zeros(24, np.float32)
    state_dict["pos_embed"] = state_dict["pos_embed"] + 0.1
    state_dict["head.weight"] = np.zeros((2, 24), np.float32)
    with pytest.raises(ValueError, match="do not fit") as error:
        weights.load(state_dict, variables)
    faults = str(error.value).split(": ", 1)[1].split("; ")
    assert sorted(faults) == [
        "blocks.0.mlp.fc1.weight has shape (24, 96), not (96, 24)",
        "missing blocks.1.attn.qkv.bias",
        "patch_embed.proj.weight has shape (24, 48), not (24, 3, 4, 4)",
        "pos_embed is not the fixed sine and cosine table, "
        "and a ViT has no other positions here, no learnt ones",
        "unexpected blocks.7.norm1.weight",
    ]


def test_positions_may_be_missing_or_rounded_and_the_templates_dtype_is_taken():
    variables = random_bits(False)
    state_dict = {k: np.ones_like(v, np.float16) for k, v in weights.save(variables, 32).items()}
    del state_dict["pos_embed"]
    loaded = weights.load(state_dict, variables)
    assert {x.dtype for x in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    state_dict["pos_embed"] = weights.save(variables, 48)["pos_embed"]
    weights.load(state_dict, variables)
