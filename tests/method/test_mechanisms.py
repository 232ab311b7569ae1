"""Whole steps of every mechanism against NumPy: losses, gradients, what dictionaries hold.

Gradients go through a linear encoder.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from moco_jax.encoders import Encoder
from moco_jax.method import optimizers, state, step
from moco_jax.method.choice import Method
from moco_jax.method.dictionary import MemoryBank, Queue

B, SIDE, DIM, K, N, TAU, M, LR = 6, 2, 5, 14, 40, 0.3, 0.7, 0.4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return x.reshape(len(x), -1)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return x @ self.param("w", nn.initializers.normal(0.5), (x.shape[1], DIM), x.dtype)


def unit(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def through_unit(z, gradient):
    """The gradient with respect to z of what depends on z / |z|."""
    length = np.linalg.norm(z, axis=1, keepdims=True)
    q = z / length
    return (gradient - q * np.sum(q * gradient, 1, keepdims=True)) / length


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class Reference:
    """One mechanism with the encoder `images @ w`, derivatives by hand."""

    def __init__(self, method, w, dictionary):
        self.method, self.w, self.key_w = method, w.copy(), w.copy()
        self.queue = self.bank = None
        if method.dictionary == "queue":
            self.queue = [*np.asarray(dictionary.keys).reshape(-1, DIM)[-K:]]
            self.owners = [-1] * K
        elif method.dictionary == "memory_bank":
            self.bank = np.array(dictionary.keys)
        self.z = None

    def info_nce(self, q, positive, negatives, keep):
        """Loss and its gradients to q, to the positives and to the negatives."""
        logits = np.concatenate([np.sum(q * positive, 1)[:, None], q @ negatives.T], 1) / TAU
        logits[:, 1:][~keep] = -np.inf
        p = softmax(logits)
        loss = -np.mean(np.log(p[:, 0]))
        own, others = (p[:, :1] - 1) / (TAU * B), p[:, 1:] / (TAU * B)
        return loss, own * positive + others @ negatives, own * q, others.T @ q

    def nce(self, q, positive, negatives):
        weights = np.exp(
            np.concatenate([np.sum(q * positive, 1)[:, None], q @ negatives.T], 1) / TAU
        )
        if self.z is None:
            self.z = N * weights.mean()
        noise = len(negatives) / N
        p = weights / self.z
        h = p / (p + noise)
        loss = np.mean(-np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(1))
        slopes = h / (TAU * B)
        slopes[:, 0] = -(1 - h[:, 0]) / (TAU * B)
        return loss, slopes[:, :1] * positive + slopes[:, 1:] @ negatives

    def step(self, first, second, index, drawn):
        method = self.method
        z = first @ self.w
        q = unit(z)
        if method.dictionary == "batch":
            other = second @ self.w
            k = unit(other)
            loss, dq, dk, dn = self.info_nce(q, k, k, ~np.eye(B, dtype=bool))
            gradient = first.T @ through_unit(z, dq) + second.T @ through_unit(other, dk + dn)
        elif method.dictionary == "queue":
            k = unit(second @ self.key_w)
            owners = np.asarray(self.owners)
            keep = np.ones((B, K), bool)
            if method.mask_same_example:
                keep = owners != index[:, None]
            if method.queue_start == "empty":
                keep = keep & (owners >= 0)
            loss, dq, _, _ = self.info_nce(q, k, np.asarray(self.queue), keep)
            gradient = first.T @ through_unit(z, dq)
            self.queue = [*self.queue, *k][-K:]
            self.owners = [*self.owners, *index][-K:]
        else:
            k, n = self.bank[index], self.bank[drawn]
            if method.loss == "nce":
                loss, dq = self.nce(q, k, n)
            else:
                loss, dq, _, _ = self.info_nce(q, k, n, np.ones((B, len(n)), bool))
            gradient = first.T @ through_unit(z, dq)
            self.bank[index] = unit(0.5 * k + 0.5 * q)
        self.w = self.w - LR * gradient
        self.key_w = M * self.key_w + (1 - M) * self.w
        return loss


CASES = {
    "queue": Method(),
    "queue, not random": Method(queue_start="empty"),
    "queue, own example masked": Method(mask_same_example=True),
    "end-to-end": Method(key_encoder="query", dictionary="batch"),
    "memory bank, InfoNCE": Method(key_encoder="none", dictionary="memory_bank"),
    "memory bank, NCE": Method(key_encoder="none", dictionary="memory_bank", loss="nce"),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_closed_forms(float64, name):
    chosen = CASES[name]
    fields = dict(negatives=K, temperature=TAU, bn_groups=1, shuffle="none")
    method = Method(**(vars(chosen) | fields))
    method.check()
    encoder = Encoder(Flat(), Linear())

    def make_dictionary(rng):
        if method.dictionary == "queue":
            return Queue.create(rng, K, B, DIM, jnp.float64)
        bank = method.dictionary == "memory_bank"
        return MemoryBank.create(rng, N, DIM, jnp.float64) if bank else None

    optimizer = optimizers.sgd(0.0, 0.0)
    options = dict(momentum_encoder=method.key_encoder == "momentum", dtype=jnp.float64)
    ours = state.initial_state(0, encoder, optimizer, SIDE, make_dictionary, **options)
    theirs = Reference(method, np.asarray(ours.params["head"]["w"]), ours.dictionary)
    rules = (lambda s: jnp.asarray(LR), lambda s: M, method)
    images = dict(mean=MEAN, std=STD, dtype=jnp.float64)
    train_step = jax.jit(step.make_train_step(encoder, optimizer, *rules, **images))
    rng = np.random.default_rng(0)
    for number in range(6):
        views = [rng.integers(0, 256, (B, SIDE, SIDE, 3), dtype=np.uint8) for _ in range(2)]
        index = rng.choice(N if number % 2 else 8, B, replace=False).astype(np.int32)
        drawn = None
        if method.dictionary == "memory_bank":
            key = jax.random.key(0)
            for word in (ours.examples_seen[1], ours.examples_seen[0]):
                key = jax.random.fold_in(key, word)
            drawn = np.asarray(ours.dictionary.draw(key, K).index[0])
        ours, metrics = train_step(ours, step.Batch(*views, index))
        flat = [((v / 255 - MEAN) / STD).reshape(B, -1) for v in views]
        expected = theirs.step(*flat, index, drawn)
        np.testing.assert_allclose(
            metrics["loss"], expected, rtol=1e-10, atol=1e-14, err_msg=str(number)
        )
        np.testing.assert_allclose(ours.params["head"]["w"], theirs.w, rtol=1e-9, atol=1e-12)
    if method.key_encoder == "momentum":
        np.testing.assert_allclose(ours.key_params["head"]["w"], theirs.key_w, rtol=1e-9)
    else:
        assert not ours.key_params
    if method.dictionary == "queue":
        held = ours.dictionary.for_batch_size(1)  # oldest first
        np.testing.assert_allclose(held.keys[:, 0], theirs.queue, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(held.index[:, 0], theirs.owners)
    if method.dictionary == "memory_bank":
        np.testing.assert_allclose(ours.dictionary.keys[:N], theirs.bank[:N], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours.dictionary.constant, theirs.z or 0)
