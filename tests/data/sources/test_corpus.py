"""Training, evaluation, embedding, packing and `load` give files PIL's pixels or refuse them alike.

`python -m tests.data.sources.test_corpus` prints a table of kinds of files and ways to read them.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest
from PIL import Image

from moco_jax.base.errors import UserError
from moco_jax.data import labelled_views, packing, pipeline
from moco_jax.data.sources import headers, open_source, pixels, refusals
from moco_jax.data.sources.folder import FolderSource
from moco_jax.data.sources.pixels import Decoding
from moco_jax.data.views import recipes
from moco_jax.evaluation import features
from moco_jax.inference.loading import FeatureEncoder
from moco_jax.parallel import mesh
from tests.data.batches import train_batches
from tests.data.pictures import decoded
from tests.data.sources import corpus

SIZE = 16
RECIPE = recipes.create("v1", SIZE)
WAYS = ("training", "evaluation", "embed", "packing", "load")


def decoding_of(kind):
    return Decoding(exif_rotation=kind == "rotated")


def written(folder, contents):
    """The contents as files whose endings say nothing of what they are."""
    for number, content in enumerate(contents):
        (pathlib.Path(folder) / f"{number:03d}.png").write_bytes(content)
    return str(folder)


def in_training(source):
    """The decoded images of the graph that views are made in."""
    return [image if ok else None for image, ok in decoded(source)]


def in_evaluation(source):
    batches = labelled_views.evaluation_batches(source, RECIPE, np.arange(len(source))[None], 2)
    (made,) = batches
    return [image if ok else None for image, ok in zip(made["image"], made["ok"], strict=True)]


def in_embedding(source):
    """What the encoder is shown, as if these were the features."""
    number, device = len(source), mesh.create_mesh(jax.devices()[:1])

    def flat(images):
        return np.asarray(images).reshape(number, -1)

    settings = (np.arange(number), number, 2, device, flat)
    found, places = features.extract(source, RECIPE, *settings)
    seen = dict(zip(places.tolist(), found.astype(np.uint8), strict=True))
    return [seen[n].reshape(SIZE, SIZE, 3) if n in seen else None for n in range(number)]


def in_packing(folder, decoding, out):
    """The images of the shards, in their places among all files."""
    plan = packing.make_plan(folder, str(out), 1, "tfrecord", decoding)
    with contextlib.suppress(UserError):  # where none can be decoded
        packing.pack(plan, lambda shard, image: None)
    damaged = set(packing.damaged_names(plan))
    if len(damaged) == len(plan.source):
        return [None] * len(damaged)
    sound = iter(decoded(open_source("tfrecord", "", str(out), str(out), decoding)))
    names = [plan.source.name(n) for n in range(len(plan.source))]
    return [None if name in damaged else next(sound)[0] for name in names]


def in_load(source):
    encoder = FeatureEncoder.__new__(FeatureEncoder)
    config = {"channels": 3, "exif_rotation": source.decoding.exif_rotation}
    encoder.recipe, encoder.trained = RECIPE, SimpleNamespace(config=config)

    def one(path):
        try:
            return encoder._view(path)
        except UserError as error:
            return None if path in str(error) else error

    return [one(source.name(n)) for n in range(len(source))]


def centre(image):
    """As torchvision's `Resize` and `CenterCrop` have it."""
    height, width = image.shape[:2]
    side, short = RECIPE.evaluation_resize, min(height, width)
    lengths = side * width // short, side * height // short
    left, top = (round((length - SIZE) / 2) for length in lengths)
    resized = Image.fromarray(image).resize(lengths, Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)))


def read(kind, scratch):
    """What each of `WAYS` makes of the members of a kind: {way: (found, expected)}."""
    contents, whole = zip(*corpus.members(kind), strict=True)
    decoding = decoding_of(kind)
    files, out = pathlib.Path(scratch) / "files", pathlib.Path(scratch) / "out"
    files.mkdir()
    source = FolderSource(written(files, contents), decoding)
    cropped = [None if image is None else centre(image) for image in whole]
    return {
        "training": (in_training(source), whole),
        "evaluation": (in_evaluation(source), cropped),
        "embed": (in_embedding(source), cropped),
        "packing": (in_packing(str(files), decoding, out), whole),
        "load": (in_load(source), cropped),
    }


def verdict(found, expected):
    if expected is None:
        return "refused" if found is None else "READ"
    if found is None:
        return "REFUSED"
    return "equal" if np.array_equal(found, expected) else "DIFFERENT"


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_every_way_has_pils_pixels_or_refuses_alike(tmp_path, kind, capfd, recwarn):
    assert len(corpus.members(kind)) >= 20
    for way, (found, expected) in read(kind, tmp_path).items():
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert verdict(*pair) in ("equal", "refused"), (kind, number, way, verdict(*pair))
    assert not [w for w in recwarn if "PIL" in str(w.filename)]
    assert "Warning" not in capfd.readouterr().err


def test_views_of_training_are_those_of_the_same_pixels_as_plain_png(tmp_path):
    """Drawn crops of odd files, through `train_batches`, and what it names as damaged."""
    kinds = ("JPEG, odd", "GIF", "TIFF", "PNG, odd")
    found = [pair for kind in kinds for pair in corpus.members(kind)]
    # Programs are compiled for each shape of padded images: only images of one shape are taken,
    # and some that are damaged.
    sound = [pair for pair in found if pair[1] is not None]
    narrow = [p for p in sound if p[1].shape[0] <= 32 and 16 < p[1].shape[1] <= 24]
    some = narrow[:20] + [pair for pair in found if pair[1] is None][::6]
    assert len(some) > 20
    shown = [image for _, image in some]
    plain = [b"" if x is None else corpus.saved(Image.fromarray(x), "PNG") for x in shown]
    made, names = [], []
    for place, contents in (("odd", [content for content, _ in some]), ("plain", plain)):
        (tmp_path / place).mkdir()
        source = FolderSource(written(tmp_path / place, contents))
        damaged = pipeline.DamagedImages(len(some))
        batches = train_batches(source, RECIPE, len(some), damaged=damaged, crop_only=True)
        made.append(next(batches))
        batches.close()
        names.append({os.path.basename(name.split(":")[0]) for name in damaged.names})
    assert names[0] == names[1]
    assert len(names[0]) == sum(image is None for image in shown)
    for key in ("query", "key", "index"):
        np.testing.assert_array_equal(made[0][key], made[1][key])


def test_tensorflow_decodes_what_is_ordinary_and_nothing_that_is_doubtful():
    def share(kind, **settings):
        decoding = Decoding(**settings)
        ways = [pixels.rule(content, decoding).way for content, _ in corpus.members(kind)]
        return sum(way != pixels.PYTHON for way in ways) / len(ways)

    assert share("JPEG, ordinary") == share("JPEG, ordinary", background=255) == 1
    assert share("JPEG, ordinary", channels=1) == share("JPEG, ordinary", max_pixels=9) == 0
    for kind in corpus.KINDS:
        if "JPEG, o" not in kind and "PNG" not in kind and kind != "rotated":
            assert share(kind) == 0, kind
    assert 0 < share("PNG", background=255) < share("PNG") < 1


def test_the_size_in_a_header_is_that_of_the_picture_whatever_else_it_says():
    for kind in ("JPEG, ordinary", "PNG", "rotated"):
        for content, shown in corpus.members(kind):
            header, turned = headers.read(content), pixels.rule(content, Decoding(True))
            if header.height:
                assert sorted(header[1:3]) == sorted(shown.shape[:2])
            if turned.way != pixels.PYTHON:
                assert (turned.height, turned.width) == shown.shape[:2]


def test_a_header_of_any_bytes_is_read_without_an_error():
    rng = np.random.default_rng(0)
    for kind in ("JPEG, ordinary", "PNG"):
        for content, _ in corpus.members(kind):
            for end in rng.integers(0, min(len(content), 900), 8).tolist():
                cut = headers.read(content[:end])
                assert not cut.plain
                odd = bytearray(content)
                odd[end] ^= int(rng.integers(1, 256))
                headers.read(bytes(odd))


def test_larger_images_are_refused_with_the_reason_and_others_are_read(tmp_path):
    kinds = (
        "JPEG, ordinary",
        "PNG",
        "GIF",
        "TIFF",
        "BMP",
        "WebP",
        "PPM, PGM, PBM",
        "gray of 16 bits",
        "PNG of 16 bits, colours",
    )
    some = [pair for kind in kinds for pair in corpus.members(kind)[:3] if pair[1] is not None]
    folder = written(tmp_path, [content for content, _ in some])
    limit = 600
    source = FolderSource(folder, Decoding(max_pixels=limit))
    large = [shown.shape[0] * shown.shape[1] > limit for _, shown in some]
    assert 3 < sum(large) < len(some) - 3
    for found, above, (content, _) in zip(in_training(source), large, some, strict=True):
        assert (found is None) == above
        assert (f"above max_pixels={limit}" in refusals.refusal(source, content)) == above


def test_a_limit_above_pillows_is_kept_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("GIF", "TIFF", "PNG of 16 bits, colours"):
        content, shown = corpus.members(kind)[0]
        with pytest.raises(pixels.Unfit, match="max_pixels=200"):
            pixels.pixels(content, Decoding(max_pixels=200))
        found = pixels.pixels(content, Decoding(max_pixels=shown.shape[0] * shown.shape[1]))
        np.testing.assert_array_equal(found, shown)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16", "1"])
@pytest.mark.parametrize("size", [(30, 30), (900, 1), (1, 900)])
def test_a_picture_that_is_open_is_held_to_the_limit_too(mode, size):
    picture = Image.new(mode, size)
    assert pixels.of_picture(picture, Decoding(max_pixels=900)).shape == (*size[::-1], 3)
    with pytest.raises(pixels.Unfit, match="900, above max_pixels=899"):
        pixels.of_picture(picture, Decoding(max_pixels=899))


def test_an_array_that_claims_more_than_it_holds_is_refused():
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (%d, %d, 3), }"
    for sides, says in (((9000, 9000), "cut off"), ((10**6, 10**6), "above max_pixels")):
        text = (head % sides).ljust(117) + "\n"
        content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)
        with pytest.raises(ValueError, match=says):
            pixels.pixels(content, Decoding())


def table():
    """Print by kind and way how many members have PIL's pixels, are refused alike, are wrong."""
    print(f"{'kind':25} {'files':>5}  " + "".join(f"{way:>22}" for way in WAYS))
    for kind in corpus.KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            found = read(kind, scratch)
        cells = []
        for way in WAYS:
            told = [verdict(*pair) for pair in zip(*found[way], strict=True)]
            equal, refused = told.count("equal"), told.count("refused")
            wrong = len(told) - equal - refused
            cells.append(f"{equal} equal, {refused} refused" + f", {wrong} WRONG" * bool(wrong))
        print(f"{kind:25} {len(told):5}  " + "".join(f"{cell:>22}" for cell in cells), flush=True)


if __name__ == "__main__":
    sys.exit(table())
