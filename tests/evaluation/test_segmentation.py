"""Segmentation: network and step against PyTorch, IoU against scikit-learn, views and folders.

Borders do not count, and a small network learns.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from moco_jax import encoders
from moco_jax.base.errors import UserError
from moco_jax.cli.evaluations import segmentation as command
from moco_jax.data.sources.pixels import RGB
from moco_jax.encoders.resnet import ResNet
from moco_jax.evaluation.segmentation import data, fcn, scoring, training
from moco_jax.evaluation.segmentation.data import IGNORED
from moco_jax.evaluation.segmentation.views import InputSettings, ahead, training_view
from moco_jax.inference.trained_encoder import TrainedEncoder
from moco_jax.method.encoding import to_network_input
from moco_jax.parallel import mesh
from moco_jax.weights import torchvision as weights
from tests.config.test_config import load
from tests.evaluation.scenes import CLASSES, write_voc

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def silent(_):
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc"))


def scenes(folder, split):
    return data.open_scenes(str(folder), split, RGB, silent)


def compiled(function, *arguments):
    """`function` of `arguments`, compiled in a fourth of the time that jit takes."""
    lowered = jax.jit(function).lower(*arguments)
    return lowered.compile({"xla_backend_optimization_level": 0})(*arguments)


def torch_fcn(torch):
    """The appendix's network, with two of torchvision's four stages.

    Its statistics are not at their start.
    """
    from torchvision.models.resnet import Bottleneck
    from torchvision.models.resnet import ResNet as Theirs

    torch.manual_seed(0)
    net = Theirs(Bottleneck, [1, 2, 1, 1])
    net.layer3 = net.layer4 = torch.nn.Identity()
    for module in net.layer2.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)
    head, inner = [], 512
    for _ in range(2):
        conv = torch.nn.Conv2d(inner, 16, 3, padding=6, dilation=6, bias=False)
        head += [conv, torch.nn.BatchNorm2d(16), torch.nn.ReLU()]
        inner = 16
    head = torch.nn.Sequential(*head, torch.nn.Conv2d(16, 5, 1))
    trunk = torch.nn.Sequential(*list(net.children())[:-2])
    for module in [*trunk.modules(), *head.modules()]:
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    whole = torch.nn.Sequential(trunk, head).double()
    return net, head, whole


def arrays(module):
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def ours_of(net, head, template):
    """The PyTorch network's variables under our names."""
    backbone = {kind: template[kind]["backbone"] for kind in template}
    loaded = weights.load(arrays(net), backbone)
    found = arrays(head)
    params = {"classifier": {"kernel": found["6.weight"].transpose(2, 3, 1, 0)}}
    params["bias"] = found["6.bias"]
    stats = {}
    for i, at in ((1, 0), (2, 3)):
        norm = f"{at + 1}"
        params[f"conv{i}"] = {"kernel": found[f"{at}.weight"].transpose(2, 3, 1, 0)}
        params[f"bn{i}"] = {"scale": found[f"{norm}.weight"], "bias": found[f"{norm}.bias"]}
        stats[f"bn{i}"] = {k: found[f"{norm}.running_{k}"] for k in ("mean", "var")}
    return {
        "params": {"head": params, "backbone": loaded["params"]},
        "batch_stats": {"head": stats, "backbone": loaded["batch_stats"]},
    }


def test_network_and_a_training_step_are_pytorchs(float64):
    """All 3x3 convolutions of the last stage are dilated.

    Two devices make the step: BatchNorm must see the whole batch.
    """
    torch = pytest.importorskip("torch", reason="compares with PyTorch: pip install '.[torch]'")
    net, head, whole = torch_fcn(torch)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 41, 57, 3), np.uint8)
    labels = rng.choice([0, 1, 2, 3, 4, IGNORED], (4, 41, 57)).astype(np.uint8)
    backbone = ResNet((1, 2), bottleneck=True, bn_groups=2)
    network = fcn.create(backbone, 5, jnp.float64, channels=16)
    template = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    variables = ours_of(net, head, template)
    inputs = to_network_input(jnp.asarray(images), MEAN, STD, jnp.float64)
    torch_inputs = torch.tensor(np.asarray(inputs)).permute(0, 3, 1, 2)

    def whole_size(x):
        return torch.nn.functional.interpolate(x, (41, 57), mode="bilinear", align_corners=False)

    with torch.no_grad():
        expected = whole_size(whole.eval()(torch_inputs)).permute(0, 2, 3, 1).numpy()
    found = compiled(lambda v, x: fcn.resize(network.apply(v, x), (41, 57)), variables, inputs)
    np.testing.assert_allclose(found, expected, atol=1e-9 * abs(expected).max())

    two = mesh.create_mesh(jax.devices()[:2])
    everywhere, divided = mesh.replicated(two), mesh.sharded(two)
    state = training.State(variables, training.optimizer().init(variables["params"]))
    step = jax.jit(
        training.make_step(network, MEAN, STD),
        out_shardings=everywhere,
        in_shardings=(everywhere, divided, divided, everywhere),
    )
    step = step.lower(state, images, labels, 0.0).compile({"xla_backend_optimization_level": 0})
    sgd = torch.optim.SGD(whole.parameters(), 0.0, momentum=0.9, weight_decay=1e-4)
    whole.train()
    for rate in (0.05, 0.01):
        sgd.param_groups[0]["lr"] = rate
        out = whole_size(whole(torch_inputs))
        truth = torch.tensor(labels.astype(np.int64))
        lost = torch.nn.functional.cross_entropy(out, truth, ignore_index=IGNORED)
        sgd.zero_grad()
        lost.backward()
        sgd.step()
        state, loss = step(state, images, labels, rate)
        np.testing.assert_allclose(loss, lost.item(), rtol=1e-9)
    for path, theirs in jax.tree_util.tree_leaves_with_path(ours_of(net, head, template)):
        ours = state.variables
        for key in path:
            ours = ours[key.key]
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9, err_msg=str(path))


def tiny(seed=0):
    """A network on a small encoder, and its variables, with statistics and biases drawn anew."""
    backbone = ResNet((1, 1, 1), bottleneck=False, width=8)
    network = fcn.create(backbone, 3, jnp.float32, channels=16)
    variables = compiled(network.init, jax.random.key(seed), jnp.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda x: x if x.ndim > 1 else rng.uniform(0.3, 1, x.shape).astype(np.float32), variables
    )
    variables["params"]["head"]["classifier"]["kernel"] *= 100  # as large as the other kernels
    return network, variables


def test_padding_changes_nothing_inside_an_image():
    """Two sizes in one padded batch equal each alone; padding without care would be seen."""
    network, variables = tiny()
    rng = np.random.default_rng(1)
    sizes = [(37, 64), (50, 33)]
    padded = np.zeros((2, 64, 64, 3), np.float32)
    for row, (height, width) in enumerate(sizes):
        padded[row, :height, :width] = rng.normal(size=(height, width, 3))

    def together(images, sizes):
        logits = fcn.apply_padded(network, variables, images, sizes)
        careless = network.apply(variables, images)
        return fcn.resize(logits, (64, 64), sizes), fcn.resize(careless, (64, 64), sizes)

    found, careless = compiled(together, padded, jnp.asarray(sizes))
    for row, (height, width) in enumerate(sizes):
        image = padded[row : row + 1, :height, :width]
        alone = fcn.resize(compiled(network.apply, variables, image), (height, width))[0]
        np.testing.assert_allclose(found[row, :height, :width], alone, rtol=1e-4, atol=1e-4)
        assert np.abs(careless[row, :height, :width] - alone).max() > 0.1


def test_intersection_over_union_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 4, IGNORED], (30, 40), p=[0.4, 0.3, 0.1, 0.1, 0.1])
    right = rng.random(labels.shape) < 0.6
    predicted = np.where(right, labels % 5, rng.integers(0, 4, labels.shape))
    counts = sum(
        scoring.confusion(truth.astype(np.uint8), guess.astype(np.uint8), 6)
        for truth, guess in zip(np.split(labels, 2), np.split(predicted, 2), strict=True)
    )
    counted = labels != IGNORED
    assert counts.sum() == counted.sum()
    found = scoring.intersection_over_union(counts)
    expected = jaccard_score(labels[counted], predicted[counted], labels=range(5), average=None)
    np.testing.assert_allclose(found[:5], expected)
    assert np.isnan(found[5])


def test_views_keep_labels_on_their_pixels():
    """Image and label are the same ramp, so that both say where a pixel came from.

    Beyond their edges lie the fill and 255.
    """
    ramp = np.arange(100, dtype=np.uint8)
    label = np.broadcast_to(ramp, (60, 100))
    image = np.stack([2 * label, 2 * np.broadcast_to(ramp[:60, None], (60, 100)), 0 * label], -1)
    mirrored, padded, scales = [], [], []
    for seed in range(40):
        view, truth = training_view(image, label, 48, (1, 2, 3), np.random.default_rng(seed))
        assert view.shape == (48, 48, 3)
        inside = truth != IGNORED
        assert (view[~inside] == (1, 2, 3)).all()
        padded.append(not inside.all())
        off = view[..., 0][inside] / 2 - truth[inside]
        assert np.abs(off).max() <= 1.01
        assert abs(off.mean()) < 0.26
        rows = np.flatnonzero(inside.any(1))
        columns = np.flatnonzero(inside.any(0))
        assert inside[np.ix_(rows, columns)].all()
        slope = np.diff(truth[rows[0], columns].astype(int)).mean()
        mirrored.append(slope < 0)
        scales.append(abs(1 / slope))
        assert rows[0] == 0
        assert (np.diff(view[rows][:, columns[0], 1].astype(int)) >= 0).all()
    assert 10 < sum(mirrored) < 30
    assert 0 < sum(padded) < 20
    assert 0.45 < min(scales) < 0.7
    assert 1.7 < max(scales) < 2.2
    two = image[..., :2]
    of_two, same = training_view(two, label, 48, (1, 2), np.random.default_rng(3))
    of_three, truth = training_view(image, label, 48, (1, 2, 3), np.random.default_rng(3))
    np.testing.assert_array_equal(of_two, of_three[..., :2])
    np.testing.assert_array_equal(same, truth)


def test_views_of_a_training_do_not_depend_on_threads_and_see_every_image_once(folder):
    found = scenes(folder, "train")
    chosen = training.Protocol(6, 0.1, 33, 4)
    rows = np.arange(4)
    one = list(training.views(found, chosen, rows, (1, 2, 3), 0, 1))
    three = list(training.views(found, chosen, rows, (1, 2, 3), 0, 3))
    assert len(one) == len(three) == 6
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
    numbered = dataclasses.replace(found, classes=("",) * 99)
    object.__setattr__(numbered, "label", lambda n: np.full(found.sizes[n], n, np.uint8))
    seen = [b["label"][:, 0, :] for b in training.views(numbered, chosen, rows, (1, 2, 3), 0, 2)]
    seen = [int(np.min(line)) for batch in seen for line in batch]
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_work_ahead_keeps_order_and_hands_errors_on():
    def make(n):
        if n == 7:
            raise UserError("seven")
        return n * n

    made = ahead(make, range(10), 3, 2)
    assert [next(made) for _ in range(7)] == [n * n for n in range(7)]
    with pytest.raises(UserError, match="seven"):
        next(made)


def test_fine_tuning_learns(folder):
    """Shapes are found where an untrained head finds next to nothing."""
    train, test = scenes(folder, "train"), scenes(folder, "val")
    assert train.classes == CLASSES
    backbone = ResNet((1, 1, 1), bottleneck=False, width=8, stem="cifar_stride2", bn_groups=4)
    variables = compiled(backbone.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    network = fcn.create(backbone, 3, jnp.float32, channels=16)
    one = mesh.create_mesh(jax.devices()[:1])
    state = training.start(network, jax.device_get(variables), 3, 0)
    inputs = InputSettings(MEAN, STD, workers=2)

    def ious(variables):
        counts = scoring.score(network, variables, test, one, inputs, silent, unit=64)
        assert counts.sum() == sum((test.label(n) != IGNORED).sum() for n in range(4))
        return scoring.intersection_over_union(counts)

    before = ious(state.variables)
    chosen = training.Protocol(40, 0.1, 48, 8)
    tuned, losses = training.fine_tune(network, state, train, chosen, one, inputs, silent)
    after = ious(tuned)
    assert np.nanmean(before) < 0.35
    assert np.mean(after) > np.nanmean(before) + 0.3
    assert len(losses) == 10
    assert losses[-1] < 0.5 * losses[0]


def test_images_are_grouped_by_what_they_are_padded_to():
    sizes = np.array([(64, 65), (10, 20), (64, 128), (1, 64), (63, 64)])
    groups = list(scoring._groups(sizes, 64, 2))
    assert groups == [((64, 64), [1, 3]), ((64, 64), [4]), ((64, 128), [0, 2])]


def test_rates_fall_at_the_papers_steps():
    for chosen, rate, drops in (
        (training.VOC, 0.003, (21_000, 27_000)),
        (training.CITYSCAPES, 0.01, (63_000, 81_000)),
    ):
        at = chosen.rate_at()
        steps = [0, drops[0] - 1, drops[0], drops[1] - 1, drops[1], chosen.iterations - 1]
        expected = rate * np.array([1, 1, 0.1, 0.1, 0.01, 0.01])
        np.testing.assert_allclose([at(jnp.asarray(s)) for s in steps], expected, rtol=1e-5)


def test_cityscapes_folders_have_its_nineteen_classes(tmp_path):
    """Both kinds of labels say the same; ids that do not count are ignored."""
    ids = np.array([[7, 8, 11, 0], [33, 31, 34 - 5, 255]], np.uint8)
    expected = [[0, 1, 2, 255], [18, 16, 255, 255]]
    for kind, numbers in (("labelIds", ids), ("labelTrainIds", np.array(expected, np.uint8))):
        folder = tmp_path / kind
        for place, end, pixels in (
            ("leftImg8bit", "leftImg8bit", np.zeros((2, 4, 3), np.uint8)),
            ("gtFine", f"gtFine_{kind}", numbers),
        ):
            (folder / place / "train/ulm").mkdir(parents=True)
            Image.fromarray(pixels).save(folder / place / f"train/ulm/ulm_000000_000019_{end}.png")
        found = scenes(folder, "train")
        assert (found.classes[0], found.classes[18], len(found.classes)) == ("road", "bicycle", 19)
        np.testing.assert_array_equal(found.label(0), expected)
        with pytest.raises(UserError, match=r"val is missing; splits there are train"):
            scenes(folder, "val")


def test_voc_has_its_classes_and_its_augmented_list(tmp_path):
    voc = write_voc(tmp_path, 2, 1)
    (voc / "classes.txt").unlink()
    assert data.train_split(str(voc)) == "train"
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text(
        "/JPEGImages/train_1.jpg /SegmentationClassAug/train_1.png\n\n/JPEGImages/val_0.jpg x\n"
    )
    (voc / "SegmentationClassAug").mkdir()
    (voc / "SegmentationClass/train_1.png").rename(voc / "SegmentationClassAug/train_1.png")
    assert data.train_split(str(voc)) == "trainaug"
    found = scenes(voc, "trainaug")
    assert len(found.pairs) == 2
    assert found.classes[20] == "tvmonitor"


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    voc = write_voc(tmp_path / "voc", 3, 1)
    label = voc / "SegmentationClass/train_1.png"
    kept = label.read_bytes()
    lists = voc / "ImageSets/Segmentation"

    def refused(message, split="train"):
        with pytest.raises(UserError, match=message) as caught:
            scenes(voc, split)
        assert "\n" not in str(caught.value)

    def save(pixels):
        Image.fromarray(np.asarray(pixels)).save(label)

    good = np.asarray(Image.open(label))
    refused(r"test\.txt is missing; splits there are train, val", "test")
    label.unlink()
    refused(r"train_1\.jpg has no label in .*SegmentationClass")
    label.write_bytes(kept[:40])
    refused(r"train_1\.png cannot be read")
    save(np.where(good == 2, 3, good).astype(np.uint8))
    meant = r"classes are 0 to 2, and 255 does not count .*classes\.txt"
    refused(r"train_1\.png has the value 3; " + meant)
    save(good[:-1])
    height, width = good.shape
    refused(rf"train_1\.png is of {width} x {height - 1} pixels, its image of {width} x {height}")
    save(np.zeros((*good.shape, 3), np.uint8))
    refused(r"train_1\.png has colours; a label is")
    label.write_bytes(kept)
    (lists / "odd.txt").write_text("nowhere\n")
    refused(r"odd\.txt names nowhere, which has no image", "odd")
    (lists / "empty.txt").write_text("\n")
    refused(r"empty\.txt names no image", "empty")
    other = voc / "SegmentationClass/val_0.png"
    nothing = np.full_like(np.asarray(Image.open(other)), 255)
    Image.fromarray(nothing).save(other)
    refused(r"no label of .* has a pixel that counts", "val")
    (voc / "classes.txt").write_text("alone\n")
    refused(r"classes\.txt has 1 names")
    with pytest.raises(UserError, match=r"has neither ImageSets/Segmentation .* nor leftImg8bit"):
        scenes(tmp_path, "train")


def test_only_resnets_are_taken():
    config = load("digits")
    config.arch = "vit_small"
    found = TrainedEncoder(encoders.create("vit_small"), {}, config, 0)
    with pytest.raises(UserError, match=r"arch='vit_small' has .* needs a ResNet"):
        command._backbone(found)


def test_a_loss_that_is_not_finite_names_the_rate(folder):
    with pytest.raises(UserError, match=r"the loss of step 3 is nan: --rate=0.1 is too high"):
        training._finite(jnp.asarray(jnp.nan), 3, training.Protocol(9, 0.1, 33))
