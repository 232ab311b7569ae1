"""`moco_jax.load` gives features of evaluation, whatever holds the images, and refuses bad ones."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

import moco_jax
from moco_jax.base.errors import UserError
from moco_jax.inference import trained_encoder
from moco_jax.weights import bridge
from tests import states
from tests.data.pictures import PHOTO
from tests.training.test_loop import tiny

CHANGES = dict(
    arch="resnet10",
    augment="v2",
    stem="imagenet",
    image_size=28,
    mean=(0.4, 0.5, 0.3),
    std=(0.2, 0.3, 0.25),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a run that was never trained, its shorter side resized to 32 and cropped to 28."""
    place = tmp_path_factory.mktemp("run")
    states.save_drawn(epath.Path(place), tiny(**CHANGES), 7)
    return str(place)


@pytest.fixture(scope="module")
def encoder(workdir):
    return moco_jax.load(workdir, batch_size=4)


PICTURES = [PHOTO, PHOTO[:60], PHOTO[10:90, :50], PHOTO[::-1], PHOTO[:, ::-1], PHOTO[:50, :50]]


def test_images_are_resized_and_cropped_as_torchvision_does(encoder):
    transforms = pytest.importorskip("torchvision.transforms", reason="pip install '.[torch]'")
    view = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)])
    for picture in PICTURES:
        expected = np.asarray(view(Image.fromarray(picture)))
        np.testing.assert_array_equal(encoder._view(picture), expected)


def test_features_are_those_of_the_normalised_view(encoder):
    found = trained_encoder.load(encoder._called.rpartition(" ")[2])
    views = np.stack([encoder._view(picture) for picture in PICTURES])
    inputs = (views / 255 - np.asarray(CHANGES["mean"])) / np.asarray(CHANGES["std"])
    apply = jax.jit(partial(found.encoder.apply, method="features"))
    expected = apply(found.variables, inputs.astype(np.float32))
    features = encoder(PICTURES)
    assert isinstance(features, np.ndarray)
    assert (features.shape, features.dtype) == ((6, 64), np.float32)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_whatever_holds_an_image_its_features_are_the_same(encoder, tmp_path):
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "b" / "1.png", tmp_path / "b" / "2.png", tmp_path / "c.bmp"]
    pictures = [PHOTO[:80, :90], PHOTO[5:85, 9:99], PHOTO[2:82, 3:93]]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    (tmp_path / "a.txt").write_text("no image")
    expected, names = encoder(pictures), moco_jax.images_in(tmp_path)
    assert names == [str(path) for path in paths]
    for images in (
        np.stack(pictures),
        jnp.asarray(np.stack(pictures)),
        (np.stack(pictures) / 255).astype(np.float32),
        paths,
        str(tmp_path),
        [paths[0], pictures[1], Image.open(paths[2])],
    ):
        np.testing.assert_array_equal(encoder(images), expected)
    for image in (pictures[1], str(paths[1]), Image.open(paths[1])):
        np.testing.assert_allclose(encoder(image), expected[1:2], rtol=1e-4)


def test_transparent_pictures_stand_on_the_background_of_the_run(encoder, tmp_path, monkeypatch):
    alpha = np.full(PHOTO.shape[:2], 60, np.uint8)
    picture, path = Image.fromarray(np.dstack([PHOTO, alpha])), tmp_path / "1.png"
    picture.save(path)
    np.testing.assert_array_equal(encoder._view(picture), encoder._view(PHOTO))
    monkeypatch.setitem(encoder.trained.config, "background", 255)
    canvas = Image.new("RGB", picture.size, "white")
    canvas.paste(picture, mask=picture)
    for image in (picture, path):
        np.testing.assert_array_equal(encoder._view(image), encoder._view(np.asarray(canvas)))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (
            PHOTO.astype(np.float32),
            "numbers from .* to 2.. is refused; use uint8, or floating",
        ),
        (PHOTO / 255 * np.nan, "numbers from nan to nan is refused"),
        (PHOTO.astype(np.uint16), "uint16 numbers is refused; use uint8"),
        (PHOTO.transpose(2, 0, 1), r"\(3, 97, 131\) is not \[H, W, 3\].*channels stand last"),
        (PHOTO[None, ..., :2], r"\(97, 131, 2\) is not \[H, W, 3\]"),
        (PHOTO[..., 0], r"\(97, 131\) are neither"),
        ([], "no image to encode"),
        ("/no/such.png", "/no/such.png cannot be read as an image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(encoder, images, says):
    with pytest.raises(UserError, match=says) as error:
        encoder(images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "gif", "webp", "tiff"])
def test_pictures_that_are_cut_are_one_line(encoder, tmp_path, kind, share):
    path = tmp_path / f"a\nb.{kind}"
    Image.fromarray(PHOTO).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"a\\nb.{kind} cannot be read as an image: ") as error:
        encoder(path)
    assert str(error.value).isprintable()
    assert "object at" not in str(error.value)


def test_addresses_and_what_is_no_regular_file_are_one_line(encoder, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match=r"pipe.png cannot be read as an image: is no regular file"):
        encoder(tmp_path / "pipe.png")
    for images in ("https://example.com/a.jpg", ["http://example.com/a.jpg"]):
        with pytest.raises(UserError, match=r"http.*a.jpg is an address .*; download it"):
            encoder(images)
    with pytest.raises(
        UserError, match=r"https://example.com/r50.pth is an address .*; download it"
    ):
        moco_jax.load("https://example.com/r50.pth")


def test_a_run_whose_weights_are_not_finite_is_refused_by_step_and_name(tmp_path, workdir):
    found = trained_encoder.load(workdir)
    broken = jax.tree.map(np.array, found.variables)
    broken["params"]["backbone"]["conv1"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(
        UserError, match=r"^step 7 of .*: params/backbone/conv1/kernel is not finite"
    ):
        bridge.check_run(workdir, 7, broken)


def test_a_file_of_weights_serves_as_the_run_does(workdir, tmp_path):
    pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    path, backbone = str(tmp_path / "moco.safetensors"), str(tmp_path / "key.safetensors")
    pretrained = bridge.load(workdir)
    bridge.save(pretrained, path, "moco")
    bridge.save(pretrained, backbone, "torchvision", "key")
    given = {name: CHANGES[name] for name in ("image_size", "mean", "std")}
    key = dict(which="key", features="output")
    expected = moco_jax.load(workdir, **key)
    read = moco_jax.load(path, **key, **given)
    np.testing.assert_array_equal(read(PHOTO), expected(PHOTO))
    assert "step 7" in expected.about
    assert (read.dim, read.trained.step, read.trained.config.dataset) == (128, 0, "")

    silent = moco_jax.load(backbone)
    assert silent.trained.assumed == ("image_size", "mean", "std")
    assert "centre 224 x 224 (as nothing says it)" in repr(silent)
    assert "mean (0.485, 0.456, 0.406) (ImageNet's, as nothing says it)" in repr(silent)
    for place, wishes, says in (
        (backbone, dict(features="output"), "features='output' needs a head"),
        (backbone, dict(which="key"), "holds no momentum encoder"),
        (backbone, dict(step=3), "step=3 is for runs"),
        (backbone, dict(mean=(0.5,)), r"mean=\(0.5,\) has 1 values, and channels=3 asks for 3"),
        (backbone, dict(std=(0.1, 0, 1)), "must be at least 0.0001"),
        (workdir, dict(which="both"), "which='both' is no encoder"),
        (workdir, dict(step=3), "has no checkpoint of step 3"),
        (workdir, dict(features="all"), "features='all' is unknown"),
        (str(tmp_path), {}, "is no workdir"),
        (str(tmp_path / "none"), {}, "none is not there; give a workdir, or a file"),
    ):
        with pytest.raises(UserError, match=says):
            moco_jax.load(place, **wishes)


def test_statistics_of_other_channels_must_be_given(tmp_path):
    pytest.importorskip("safetensors", reason="pip install '.[safetensors]'")
    config = tiny(**CHANGES | dict(channels=2, mean=(0.5, 0.5), std=(0.2, 0.2)))
    states.save_drawn(epath.Path(tmp_path / "run"), config, 1)
    path = str(tmp_path / "two.safetensors")
    bridge.save(bridge.load(str(tmp_path / "run")), path, "torchvision")
    with pytest.raises(UserError, match="2 channels; give mean and std, 2 numbers each"):
        moco_jax.load(path)
    two = moco_jax.load(path, mean=(0.5, 0.5), std=(0.2, 0.2), image_size=28)
    same = moco_jax.load(str(tmp_path / "run"))
    np.testing.assert_allclose(two(PHOTO[..., :2]), same(PHOTO[..., :2]), rtol=1e-4)


def test_the_package_is_cheap_and_brings_neither_tensorflow_nor_pytorch(workdir):
    code = f"""
import sys
import moco_jax
loaded = [name for name in ("jax", "numpy", "tensorflow", "torch") if name in sys.modules]
encoder = moco_jax.load({workdir!r})
import numpy
encoder(numpy.zeros((1, 28, 28, 3), numpy.uint8))
print(loaded, [name for name in ("tensorflow", "torch", "torchvision") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[] []\n", done.stderr
    assert done.stderr == ""
