"""Linear classifiers: the protocol's steps against PyTorch, and training on crops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from moco_jax.base.errors import UserError
from moco_jax.data.configured import open_images
from moco_jax.evaluation import linear
from moco_jax.evaluation.images import Labelled, open_evaluation_data
from tests.config.test_config import load


def silent(_):
    pass


def digits():
    """Training and test features float32 `[N, 64]`, small as a contrastive encoder's; classes."""
    features, classes = load_digits(return_X_y=True)
    features = (features / 160).astype(np.float32)
    return features[:1400], classes[:1400], features[1400:], classes[1400:]


def torch_run(features, classes, rates, batch, decay=0.0):
    """Weights and losses of the authors' loop, `main_lincls.py`, on fixed features in order."""
    torch = pytest.importorskip("torch")
    start = linear.initial(3, features.shape[1], 10)
    fc = torch.nn.Linear(features.shape[1], 10).double()
    with torch.no_grad():
        fc.weight.copy_(torch.from_numpy(np.asarray(start.kernel, np.float64).T))
        fc.bias.zero_()
    sgd = torch.optim.SGD(fc.parameters(), 0.0, momentum=0.9, weight_decay=decay)
    losses = []
    for n, rate in enumerate(rates):
        some = slice(n * batch, (n + 1) * batch)
        sgd.param_groups[0]["lr"] = rate
        out = fc(torch.from_numpy(features[some]).double())
        loss = torch.nn.functional.cross_entropy(out, torch.from_numpy(classes[some]))
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    return fc.weight.detach().numpy().T, fc.bias.detach().numpy(), losses


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_steps_are_those_of_pytorch_and_absent_rows_do_not_count(decay):
    """A rate of 30 and its drops; the last batch is half empty."""
    features, classes, *_ = digits()
    features, classes = features[:1184], classes[:1184]
    rates = [30.0, 30.0, 3.0, 3.0, 0.3]
    kernel, bias, expected = torch_run(features, classes, rates, 256, decay)
    classifier = linear.initial(3, 64, 10)
    buffer, losses = jax.tree.map(jnp.zeros_like, classifier), []
    step = jax.jit(linear.sgd_step)
    for n, rate in enumerate(rates):
        some = np.arange(n * 256, (n + 1) * 256)
        present, some = some < 1184, some % 1184
        classifier, buffer, loss = step(
            classifier, buffer, features[some], classes[some], present, rate, decay
        )
        losses.append(float(loss))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(classifier.kernel, kernel, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(classifier.bias, bias, rtol=1e-3, atol=1e-3)


def test_weights_start_as_in_the_authors_script():
    start = linear.initial(0, 2048, 1000)
    assert np.std(start.kernel) == pytest.approx(0.01, rel=0.01)
    assert not np.any(start.bias)


def rates_of(chosen, steps_per_epoch=2):
    rate = chosen.rate_at(steps_per_epoch)
    return [float(rate(jnp.asarray(e * steps_per_epoch + 1))) for e in range(chosen.epochs)]


def test_protocols_are_as_published():
    paper = linear.protocol("paper", "resnet50")
    expected = [30.0] * 60 + [3.0] * 20 + [0.3] * 20
    np.testing.assert_allclose(rates_of(paper), expected, rtol=1e-5)
    assert (paper.epochs, paper.batch_size) == (100, 256)
    for arch, base in (("resnet50", 0.1), ("vit_small", 3.0)):
        v3 = linear.protocol("v3", arch)
        assert (v3.epochs, v3.batch_size) == (90, 1024)
        cosine = 4 * base * 0.5 * (1 + np.cos(np.pi * np.arange(90) / 90))
        np.testing.assert_allclose(rates_of(v3), cosine, rtol=1e-4, atol=1e-6)
    short = linear.protocol("paper", "resnet50", 5)
    np.testing.assert_allclose(rates_of(short), [30, 30, 30, 3, 0.3], rtol=1e-5)
    assert linear.protocol("v3", "vit_base", 0, 256).rate == 3.0


def data_of(number=300):
    """Digits at 32 x 32: `number` to learn from; features are their pixels in 8 x 8."""
    config = load("digits")
    config.eval_batch_size, config.workers = 120, 2
    found = open_evaluation_data(config, "")
    train = found.train
    few = Labelled(train.source, train.indices[:number], train.classes[:number], "few")
    return dataclasses.replace(found, train=few)


@jax.jit
def spectrum(images):
    """Unit features that do not mind where a digit stands: `[B, 32, 32, 3]` -> `[B, 64]`."""
    found = jnp.abs(jnp.fft.fft2(images[..., 0].astype(jnp.float32)))[:, :8, :8]
    found = found.reshape(len(images), -1).at[:, 0].set(0)
    return found / jnp.linalg.norm(found, axis=1, keepdims=True)


def test_training_on_crops_learns_and_is_the_same_each_time():
    data = data_of()
    chosen = linear.Protocol(5, 64, 3.0, "steps")
    recipe = linear.crop_recipe("digits", data)
    last, scores = linear.train_on_crops(data, spectrum, chosen, recipe, silent)
    assert last == scores[-1]
    assert len(scores) == 5
    assert last > 0.3
    assert linear.train_on_crops(data, spectrum, chosen, recipe, silent)[1] == scores


def test_images_without_labels_are_refused(monkeypatch):
    source = open_images(load("digits"), "train", None)
    monkeypatch.setattr(type(source), "labels", lambda *_: None)
    with pytest.raises(UserError, match=r"^digits \(train\) has no labels"):
        open_evaluation_data(load("digits"), "")
