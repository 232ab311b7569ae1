"""The step against an independent PyTorch writing of Algorithm 1, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import encoders
from moco_jax.method import info_nce, optimizers, shuffle, state, step
from moco_jax.method.choice import Method
from moco_jax.method.dictionary import Queue
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh as mesh_lib
from moco_jax.weights import torchvision as torchvision_weights

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
B, G, S, DIM, TAU, M, LR, DECAY = 16, 4, 4, 8, 0.2, 0.5, 0.05, 1e-2


def head_params(fc, head):
    """The torch head's parameters as the package names them."""
    layers = {"fc": fc} if head == "linear" else {"fc1": fc[0], "fc2": fc[2]}
    return {
        name: {"kernel": layer.weight.detach().numpy().T, "bias": layer.bias.detach().numpy()}
        for name, layer in layers.items()
    }


def our_variables(net, head, encoder):
    template = jax.eval_shape(
        lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.float64))
    )
    backbone = {c: template[c]["backbone"] for c in ("params", "batch_stats")}
    loaded = torchvision_weights.load({k: v.numpy() for k, v in net.state_dict().items()}, backbone)
    return {
        "params": {"backbone": loaded["params"], "head": head_params(net.fc, head)},
        "batch_stats": {"backbone": loaded["batch_stats"]},
    }


def views(rng, batch=B):
    return [rng.integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8) for _ in range(2)]


def make_step(encoder, *, symmetric=False, dtype=jnp.float32, mesh=None, groups=G, rate=LR):
    method = Method(temperature=TAU, symmetric=symmetric, bn_groups=groups, shuffle_groups=S)
    rules = (optimizers.sgd(0.9, DECAY), lambda s: jnp.asarray(rate), lambda s: M, method)
    options = dict(mean=MEAN, std=STD, dtype=dtype, mesh=mesh)
    return step.make_train_step(encoder, *rules, **options)


def new_state(encoder, batch, slots, dtype=jnp.float32):
    def make_queue(rng):
        return Queue.create(rng, slots * batch, batch, DIM, dtype)

    optimizer = optimizers.sgd(0.9, DECAY)
    return jax.jit(
        lambda: state.initial_state(0, encoder, optimizer, 32, make_queue, dtype=dtype)
    )()


def relative(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30)


@pytest.mark.parametrize(("head", "symmetric"), [("linear", False), ("mlp", True)])
def test_five_steps_equal_pytorch(float64, head, symmetric):
    """Losses, logits, queue, statistics and the change of every parameter agree in float64."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    from tests.encoders import narrow
    from tests.method import torch_moco

    torch.manual_seed(0)
    net = torch_moco.make_encoder(head, DIM, G)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    rng = np.random.default_rng(0)
    queue = rng.normal(size=(3 * B, DIM))
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    settings = dict(momentum=M, temperature=TAU, groups=G, span=S, weight_decay=DECAY)
    theirs = torch_moco.MoCo(net, torch.tensor(queue), symmetric=symmetric, **settings)

    options = dict(width=narrow.WIDTH, bn_groups=G, dtype=jnp.float64)
    encoder = encoders.create("resnet6", head=head, dim=DIM, **options)
    before = jax.tree.map(np.array, our_variables(net, head, encoder))
    ours = new_state(encoder, B, 3, jnp.float64)
    ours = ours.replace(
        params=before["params"],
        key_params=before["params"],
        batch_stats=before["batch_stats"],
        key_batch_stats=before["batch_stats"],
        dictionary=ours.dictionary.replace(keys=jnp.asarray(queue.reshape(3, B, DIM))),
    )
    train_step = jax.jit(make_step(encoder, symmetric=symmetric, dtype=jnp.float64))

    def prepare(x):
        return torch.tensor((x / 255.0 - MEAN) / STD).permute(0, 3, 1, 2)

    @jax.jit
    def queries(params, stats, images):
        images = to_network_input(images, MEAN, STD, jnp.float64)
        variables = {"params": params, "batch_stats": stats}
        found, _ = encoder.apply(variables, images, train=True, mutable=["batch_stats"])
        return info_nce.normalize(found)

    for number in range(5):
        first, second = views(rng)
        loss, logits = theirs.step(prepare(first), prepare(second), LR)
        q, negatives = queries(ours.params, ours.batch_stats, first), ours.dictionary.keys
        slot = (ours.dictionary.pointer + symmetric) % 3  # the second keys stand last
        ours, metrics = train_step(ours, step.Batch(first, second, np.arange(B, dtype=np.int32)))
        positive = jnp.sum(q * ours.dictionary.keys[slot], axis=1, keepdims=True)
        mine = jnp.concatenate([positive, q @ negatives.reshape(-1, DIM).T], 1) / TAU
        np.testing.assert_allclose(mine, logits, rtol=1e-8, atol=1e-8)
        assert abs(float(metrics["loss"]) - loss) < 1e-8 * loss, number
        if not symmetric:
            np.testing.assert_allclose(metrics["positive"], TAU * logits[:, 0].mean(), rtol=1e-8)
            np.testing.assert_allclose(metrics["negative"], TAU * logits[:, 1:].mean(), rtol=1e-8)
            assert float(metrics["top1"]) == (logits.argmax(1) == 0).double().mean()

    assert relative(ours.dictionary.keys.reshape(3 * B, DIM), theirs.queue) < 1e-8
    ours = jax.device_get(ours)
    last = our_variables(theirs.q, head, encoder)
    key = our_variables(theirs.k, head, encoder)
    average = jax.jit(optimizers.moving_average)
    for name, new, reference in (
        ("query", ours.params, last["params"]),
        # Ours already holds the average for the next step.
        ("key", ours.key_params, jax.device_get(average(key["params"], last["params"], M))),
    ):
        paths = jax.tree_util.tree_leaves_with_path(before["params"])
        for (path, old), n, r in zip(
            paths, jax.tree.leaves(new), jax.tree.leaves(reference), strict=True
        ):
            change = relative(n - old, r - old)
            assert change < 1e-8, (name, jax.tree_util.keystr(path), change)
    for new, reference in ((ours.batch_stats, last), (ours.key_batch_stats, key)):
        worst = jax.tree.map(relative, new, reference["batch_stats"])
        assert max(jax.tree.leaves(worst)) < 1e-8


@pytest.fixture(scope="module")
def small():
    return encoders.create("resnet6", width=8, stem="cifar_stride2", dim=DIM, bn_groups=8)


@pytest.fixture(scope="module")
def begin(small):
    return jax.device_get(new_state(small, batch=64, slots=2))


def test_one_device_and_eight_compute_the_same(small, begin):
    results = []
    batch = step.Batch(*views(np.random.default_rng(1), 64), np.arange(64, dtype=np.int32))
    for count in (1, 8):
        mesh = mesh_lib.create_mesh(jax.devices()[:count])
        layout = state.shardings(begin, mesh)
        run = jax.jit(
            make_step(small, mesh=mesh, groups=8),
            in_shardings=(layout, mesh_lib.sharded(mesh)),
            out_shardings=(layout, mesh_lib.replicated(mesh)),
        )
        results.append(run(jax.device_put(begin, layout), batch))
    (one, one_metrics), (eight, eight_metrics) = jax.device_get(results)
    assert abs(one_metrics["loss"] - eight_metrics["loss"]) < 1e-6 * one_metrics["loss"]
    np.testing.assert_allclose(one.dictionary.keys, eight.dictionary.keys, atol=1e-5)


def test_a_batch_that_is_not_finite_moves_only_the_counters(small, begin):
    broken = begin.replace(params=jax.tree.map(lambda x: x * np.float32("nan"), begin.params))
    batch = step.Batch(*views(np.random.default_rng(1), 64), np.arange(64, dtype=np.int32))
    after, metrics = jax.jit(make_step(small, groups=8))(broken, batch)
    assert not metrics["finite"]
    assert (after.step, after.skipped_steps, state.count_examples(after.examples_seen)) == (
        1,
        1,
        64,
    )
    unchanged = (
        "params",
        "batch_stats",
        "key_params",
        "key_batch_stats",
        "opt_state",
        "dictionary",
    )
    for name in unchanged:
        for a, b in zip(
            jax.tree.leaves(getattr(broken, name)),
            jax.tree.leaves(getattr(after, name)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize(("groups", "span"), [(1, 8), (4, 4), (8, 4), (8, 8), (2, 8)])
def test_exchange_is_its_own_inverse_and_mixes_groups_evenly(groups, span):
    batch = groups * 8
    x = np.arange(batch)
    shuffled = np.asarray(shuffle.exchange(jnp.asarray(x), groups, span))
    np.testing.assert_array_equal(shuffle.exchange(jnp.asarray(shuffled), groups, span), x)
    origin = shuffled.reshape(groups, -1) // 8
    for row in origin:
        counts = np.bincount(row, minlength=groups)
        assert set(counts[counts > 0]) == {8 // min(groups, span)}


def test_info_nce_equals_the_closed_form(float64):
    rng = np.random.default_rng(0)
    q, k, n = (
        info_nce.normalize(jnp.asarray(rng.normal(size=s))) for s in ((6, 5), (6, 5), (3, 6, 5))
    )
    info = jax.jit(lambda *arrays: info_nce.info_nce(*arrays, 0.1))
    loss, metrics = info(q, k, n)
    logits = np.concatenate([np.sum(q * k, 1)[:, None], q @ n.reshape(-1, 5).T], 1) / 0.1
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    rank = (logits[:, 1:] >= logits[:, :1]).sum(1)
    assert float(metrics["top1"]) == np.mean(rank < 1)
    assert float(metrics["top5"]) == np.mean(rank < 5)
    permuted = n.reshape(-1, 5)[rng.permutation(18)].reshape(3, 6, 5)
    np.testing.assert_allclose(info(q, k, permuted)[0], loss, rtol=1e-12)


def test_equal_similarities_cost_the_chance_level():
    same = jnp.ones((4, 8)) / jnp.sqrt(8)
    negatives = jnp.broadcast_to(same[:1], (3, 4, 8))
    info = jax.jit(lambda *arrays: info_nce.info_nce(*arrays, 0.2))
    loss, metrics = info(same, same, negatives)
    np.testing.assert_allclose(loss, Method(negatives=12).chance_level(4), rtol=1e-6)
    assert float(metrics["top1"]) == 0


def test_examples_are_counted_past_32_bits():
    seen = jnp.asarray([2**32 - 5, 3], jnp.uint32)
    assert state.count_examples(state.add_examples(seen, 7)) == 3 * 2**32 + 2**32 - 5 + 7
