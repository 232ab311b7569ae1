"""What TensorBoard finds of a run, read back by TensorBoard's own readers."""

import numpy as np
from etils import epath
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import projector
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util.tensor_util import make_ndarray

from moco_jax.base import files, storage
from moco_jax.monitoring import tensorboard_files
from moco_jax.monitoring.run_log import Writers
from tests.config.test_config import load


def test_pictures_and_settings_are_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    config = load("digits").to_dict()
    log = Writers(epath.Path(tmp_path), True, 0)
    Image.fromarray(picture).save(tmp_path / "views.png")
    log.settings(config)
    log.picture(7, "view pairs", epath.Path(tmp_path) / "views.png")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (event,) = found.Tensors("view pairs")
    assert event.step == 7
    assert [int(x) for x in event.tensor_proto.string_val[:2]] == [9, 6]
    (content,) = found.PluginTagToContent("hparams").values()
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["temperature"].number_value == config["temperature"]
    assert values["symmetric"].bool_value is False
    assert values["mean"].string_value == "(0.1, 0.1, 0.1)"
    assert values.keys() == config.keys()
    # Whoever looks on sees what follows: all of a run that goes on is in one file.
    numbers = {"loss": 1.5, "grad_norm": float("nan"), "large": 1e300}
    log.write(8, numbers)
    log._tensorboard.write_scalars(9, {"loss": 1.5})
    log.close()
    found.Reload()
    ours, theirs = found.Tensors("loss")
    assert (ours.step, theirs.step) == (8, 9)
    assert make_ndarray(ours.tensor_proto) == make_ndarray(theirs.tensor_proto) == 1.5
    assert set(found.PluginTagToContent("scalars")) == set(numbers)


def test_files_in_a_bucket_are_sent_now_and_then_and_begun_anew_once_they_are_large(
    tmp_path, network, monkeypatch
):
    place = files.absolute("gs://bucket/board")
    monkeypatch.setattr(tensorboard_files, "SECONDS", 0.0)
    monkeypatch.setattr(tensorboard_files, "FULL", 1 << 10)
    log = Writers(place, True, 0)
    network.remembers = True
    for step in range(100):
        log.write(step, {"loss": step / 2})
    log.close()
    board = storage.find(f"{place}/tensorboard")
    assert 2 < len(board) < 20
    sent = [
        size
        for t, size in zip(network.targets, network.written, strict=True)
        if "board/tensorboard" in t
    ]
    assert len(sent) <= 100 + len(board) + 1
    assert max(sent) < 2 << 10
    for name in board:
        (tmp_path / name).write_bytes(storage.read(f"{place}/tensorboard/{name}"))
    found = EventAccumulator(str(tmp_path), {"tensors": 0}).Reload().Tensors("loss")
    assert [(e.step, float(make_ndarray(e.tensor_proto))) for e in found] == [
        (step, step / 2) for step in range(100)
    ]


def test_the_projector_has_each_image_at_the_place_of_its_features(tmp_path):
    (tmp_path / "tensorboard").mkdir()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(5, 4)).astype(np.float32)
    images = rng.integers(0, 256, (5, tensorboard_files.SIDE, tensorboard_files.SIDE, 3), np.uint8)
    tensorboard_files.project(epath.Path(tmp_path), features, images, np.arange(5))
    folder = tmp_path / "tensorboard"
    text = (folder / "projector_config.pbtxt").read_text()
    (config,) = text_format.Parse(text, projector.ProjectorConfig()).embeddings
    np.testing.assert_allclose(np.loadtxt(folder / config.tensor_path), features, rtol=1e-4)
    assert (folder / config.metadata_path).read_text().split() == list("01234")
    sheet = np.asarray(Image.open(folder / config.sprite.image_path))
    width, height = config.sprite.single_image_dim
    assert sheet.shape == (3 * height, 3 * width, 3)
    np.testing.assert_array_equal(sheet[height : 2 * height, width : 2 * width], images[4])
