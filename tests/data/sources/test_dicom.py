"""DICOM files become the eight bits that a viewer would show; what cannot be decoded says why."""

import numpy as np
import pytest

from moco_jax.base.errors import UserError
from moco_jax.data.sources import dicom_decode, open_source, pixels, refusals, remarks_of
from moco_jax.data.sources.pixels import Decoding, Unfit
from moco_jax.inference.loading import images_in
from tests.data.pictures import encoded, write
from tests.data.sources.dicom_files import bytes_of, dicom, facts_of, pydicom

GRAY = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SIGNED = (GRAY.astype(np.int32) * 16 - 2**15).astype(np.int16)


def eight(shares):
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)


def gray(content, **settings):
    found = pixels.pixels(content, Decoding(channels=1, **settings))
    assert (found.dtype, found.shape[2]) == (np.uint8, 1)
    assert found.flags.c_contiguous
    three = pixels.pixels(content, Decoding(**settings))
    np.testing.assert_array_equal(three, np.repeat(found, 3, -1))
    return found[..., 0]


@pytest.mark.parametrize(
    ("values", "bits", "said", "expected"),
    [
        (GRAY, 12, {}, GRAY / 4095),
        (GRAY << 4, 16, {}, (GRAY << 4) / 65535),
        (SIGNED, 16, {}, (SIGNED + 2.0**15) / 65535),
        (GRAY, 12, {"RescaleSlope": -1, "RescaleIntercept": 7}, (4095 - GRAY) / 4095),
        (GRAY, 12, {"WindowCenter": 1000, "WindowWidth": 201}, (GRAY - 999.5) / 200 + 0.5),
        (
            GRAY,
            12,
            {
                "RescaleSlope": 1,
                "RescaleIntercept": -1024,
                "WindowCenter": [40, 300],
                "WindowWidth": [400, 1500],
            },
            (GRAY - 1024.0 - 39.5) / 399 + 0.5,
        ),
        (GRAY, 12, {"WindowCenter": 1000, "WindowWidth": 1}, GRAY > 999.5),
        (
            GRAY,
            12,
            {"WindowCenter": 1000, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"},
            (GRAY - 1000.0) / 200 + 0.5,
        ),
        (
            GRAY,
            12,
            {"WindowCenter": 1000, "WindowWidth": 200, "VOILUTFunction": "SIGMOID"},
            1 / (1 + np.exp(-4 * (GRAY - 1000.0) / 200)),
        ),
    ],
)
def test_gray_values_become_what_the_file_says(values, bits, said, expected):
    np.testing.assert_array_equal(gray(dicom(values, bits, **said)), eight(expected))
    inverted = gray(dicom(values, bits, PhotometricInterpretation="MONOCHROME1", **said))
    np.testing.assert_array_equal(inverted, 255 - eight(expected))


def test_windows_are_those_of_pydicom():
    said = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 900, "WindowWidth": 750}
    content = dicom(GRAY, 12, **said)
    facts = facts_of(content)
    values = pydicom.pixels.apply_modality_lut(facts.pixel_array, facts)
    seen = pydicom.pixels.apply_voi_lut(values, facts)
    shares = (seen - seen.min()) / (seen.max() - seen.min())
    np.testing.assert_array_equal(gray(content), eight(shares))


def test_a_look_up_table_and_the_white_of_the_settings():
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 10])
    table.add_new("LUTData", "US", (np.arange(4096) // 4).tolist())
    content = dicom(GRAY, 12, VOILUTSequence=pydicom.Sequence([table]))
    np.testing.assert_array_equal(gray(content), eight((GRAY // 4) / 1023))
    content = dicom(GRAY, 12, RescaleSlope=2, RescaleIntercept=0, WindowCenter=9, WindowWidth=9)
    np.testing.assert_array_equal(gray(content, white=4000), eight(GRAY / 2000))


def test_colour_frames_and_compressed_ones():
    colour = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)
    np.testing.assert_array_equal(pixels.pixels(dicom(colour), Decoding()), colour)
    frames = np.stack([GRAY, GRAY[::-1], GRAY.T])
    np.testing.assert_array_equal(gray(dicom(frames, 12, frames=True)), gray(dicom(GRAY, 12)))
    first, shared = pydicom.Dataset(), pydicom.Dataset()
    window, rescaled = pydicom.Dataset(), pydicom.Dataset()
    window.WindowCenter, window.WindowWidth = 1000, 100
    rescaled.RescaleSlope, rescaled.RescaleIntercept = 1, -5
    first.FrameVOILUTSequence = pydicom.Sequence([window])
    shared.PixelValueTransformationSequence = pydicom.Sequence([rescaled])
    groups = {
        "PerFrameFunctionalGroupsSequence": pydicom.Sequence([first] + [pydicom.Dataset()] * 2),
        "SharedFunctionalGroupsSequence": pydicom.Sequence([shared]),
    }
    enhanced = gray(dicom(frames, 12, frames=True, **groups))
    plain = dicom(GRAY, 12, WindowCenter=1005, WindowWidth=100)
    np.testing.assert_array_equal(enhanced, gray(plain))
    facts = facts_of(plain)
    facts.compress(pydicom.uid.RLELossless)
    np.testing.assert_array_equal(gray(bytes_of(facts)), enhanced)


def as_if_in(syntax):
    facts = facts_of(dicom(GRAY, 12))
    facts.file_meta.TransferSyntaxUID = syntax
    facts.PixelData = pydicom.encaps.encapsulate([bytes(10)])
    facts["PixelData"].VR = "OB"
    return bytes_of(facts)


def test_what_cannot_be_decoded_says_what_is_wrong(monkeypatch):
    content = dicom(GRAY, 12)
    for damaged in (content[:3000], content[:200]):
        with pytest.raises(Exception, match=r"."):
            pixels.pixels(damaged, Decoding())
    with pytest.raises(Unfit, match="channels=4 is asked for, it has 1"):
        pixels.pixels(content, Decoding(channels=4))
    with pytest.raises(Unfit, match="64 x 64 pixels are 4,096, above max_pixels=10"):
        pixels.pixels(content, Decoding(max_pixels=10))
    facts = facts_of(content)
    del facts.PixelData
    with pytest.raises(Unfit, match="a DICOM file without an image"):
        pixels.pixels(bytes_of(facts), Decoding())
    with pytest.raises(Unfit, match=r"MPEG2 .* which pydicom does not decode"):
        pixels.pixels(as_if_in(pydicom.uid.MPEG2MPML), Decoding())
    with pytest.raises(
        Unfit, match=r"JPEG Base.* damaged, or needs pylibjpeg and pylibjpeg-libjpeg"
    ):
        pixels.pixels(as_if_in(pydicom.uid.JPEGBaseline8Bit), Decoding())
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEGLSLossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(UserError, match=r"JPEG-LS .* needs pyjpegls beside pydicom: pip install"):
        pixels.pixels(as_if_in(pydicom.uid.JPEGLSLossless), Decoding())


def test_a_folder_has_dicom_files_with_an_ending_and_without(tmp_path, monkeypatch):
    content = dicom(GRAY, 12)
    files = dict.fromkeys(("a/x.dcm", "a/1.2.840.5", "b/IM0001", "b/DICOMDIR"), content)
    files |= {"b/README": b"words", "b/7.png": encoded("PNG"), "b/notes.txt": content}
    folder = write(tmp_path, files)
    source = open_source("folder", "", folder)
    every = np.arange(len(source))
    assert source.names(every) == ["a/1.2.840.5", "a/x.dcm", "b/7.png", "b/IM0001"]
    assert images_in(folder) == [f"{folder}/{name}" for name in source.names(every)]
    assert "3 other files there are left out, by their ending: 2 no ending" in remarks_of(source)[0]
    assert [refusals.why(source, n) for n in every.tolist()] == [""] * 4
    monkeypatch.setattr(dicom_decode, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="DICOM files are read by the package no_such_package, and"):
        open_source("folder", "", folder)
