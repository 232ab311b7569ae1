"""Decodes DICOM files to eight bits, by the package pydicom.

Gray values become what the file says that a person should see: its first window, or else its
first look-up table, or else the whole range of its bits (DICOM PS3.3, C.11.1 and C.11.2).
"""

import importlib.util
import io
import re
import warnings
from typing import Any

import numpy as np

from moco_jax.base import packages
from moco_jax.base.errors import UserError
from moco_jax.data.sources import headers
from moco_jax.data.sources.conversion import Decoding, Unfit, colours, exactly, to_eight_bits

MAGIC, PLACE = b"DICM", 128  # what stands in a DICOM file, and where
ENDINGS = (".dcm",)
PACKAGE = "pydicom"
_QUIET = ("ignore", None, Warning, re.compile(r"pydicom\."), 0)
# What decodes a compressed transfer syntax where pydicom alone does not.
_JPEG = "1.2.840.10008.1.2.4."
_DECODERS = {
    "50": ["pylibjpeg", "pylibjpeg-libjpeg"],
    "51": ["pylibjpeg", "pylibjpeg-libjpeg"],
    "57": ["pylibjpeg", "pylibjpeg-libjpeg"],
    "70": ["pylibjpeg", "pylibjpeg-libjpeg"],
    "80": ["pyjpegls"],
    "81": ["pyjpegls"],
    "90": ["pylibjpeg", "pylibjpeg-openjpeg"],
    "91": ["pylibjpeg", "pylibjpeg-openjpeg"],
    "201": ["pylibjpeg", "pylibjpeg-openjpeg"],
    "202": ["pylibjpeg", "pylibjpeg-openjpeg"],
    "203": ["pylibjpeg", "pylibjpeg-openjpeg"],
}


def is_dicom(content: bytes) -> bool:
    """Whether `content` begins as a DICOM file does."""
    if content[PLACE : PLACE + len(MAGIC)] != MAGIC:
        return False
    return not content.startswith((headers.JPEG, headers.PNG))


def lacks_pydicom() -> bool:
    """Whether the package that reads DICOM is missing."""
    return importlib.util.find_spec(PACKAGE) is None


def _pydicom() -> Any:
    """Import the package pydicom; raises UserError where it is missing."""
    if lacks_pydicom():
        raise UserError(
            f"DICOM files are read by the package {PACKAGE}, and it is missing:"
            f" {packages.how_to_have([PACKAGE])}"
        )
    import pydicom
    import pydicom.pixels

    # Each odd value would be told, and damaged images are named elsewhere.
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", category=Warning, module=r"pydicom\.")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.logger.setLevel("CRITICAL")
    return pydicom


def require_decoder(content: bytes) -> Any:
    """Read what a DICOM file says beside its pixels, as pydicom's Dataset.

    Raises:
        UserError: a package is missing that its transfer syntax needs.
        Unfit: nothing decodes it, or it has no pixels.
    """
    library = _pydicom()
    facts = library.dcmread(io.BytesIO(content))
    if "PixelData" not in facts:
        raise Unfit("a DICOM file without an image, as reports and directories are")
    syntax = facts.file_meta.TransferSyntaxUID
    try:
        ready = library.pixels.get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise Unfit(f"DICOM in {syntax.name}, which pydicom does not decode") from error
    if not ready:
        wanted = _decoders(syntax)
        raise UserError(
            f"DICOM in {syntax.name} needs {' and '.join(wanted)} beside pydicom:"
            f" {packages.how_to_have(wanted)}"
        )
    return facts


def _decoders(syntax: Any) -> list[str]:
    """Return the packages that decode a compressed transfer syntax."""
    return _DECODERS.get(str(syntax).removeprefix(_JPEG), ["pylibjpeg"])


def of_dicom(content: bytes, decoding: Decoding) -> np.ndarray:
    """Decode the first frame of a DICOM file to uint8 `[H, W, C]`.

    Raises:
        Unfit: it has more than `max_pixels`, other channels than `decoding` asks for, or no image.
        UserError: a package is missing.
        Exception: of any kind, where it is damaged.
    """
    facts = require_decoder(content)
    decoding.require_room(int(facts.Rows), int(facts.Columns))
    library = _pydicom()
    _take_first_frame(facts)
    try:
        samples = np.asarray(library.pixels.pixel_array(facts, index=0))
    except RuntimeError as error:  # of decoders, which may know a part of a syntax only
        syntax = facts.file_meta.TransferSyntaxUID
        raise Unfit(
            f"DICOM in {syntax.name} that is damaged, or needs {' and '.join(_decoders(syntax))}"
        ) from error
    kind = str(facts.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        coloured = library.pixels.apply_color_lut(samples, facts)
        return colours(to_eight_bits(coloured, 0), decoding.channels)
    if samples.ndim == 3:
        bits = int(facts.BitsStored)
        white = 0 if bits == 8 else decoding.white or float(2**bits - 1)
        return colours(to_eight_bits(samples, white), decoding.channels)
    gray = _gray(library, facts, samples, decoding.white)[..., None]
    gray = 255 - gray if kind == "MONOCHROME1" else gray
    return (colours if decoding.channels == 3 else exactly)(gray, decoding.channels)


def _take_first_frame(facts: Any) -> None:
    """Put what an enhanced file says of its first frame's gray values where others say it."""
    for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
        for group in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
            said = facts[group].value[0].get(name) if facts.get(group) else None
            if said:
                facts.update({element.tag: element for element in said[0]})
                break


def _gray(library: Any, facts: Any, stored: np.ndarray, white: float) -> np.ndarray:
    """Bring gray values `[H, W]`, as they are stored, to uint8."""
    values = np.asarray(library.pixels.apply_modality_lut(stored, facts))
    if white:
        return to_eight_bits(values, white)
    if "WindowCenter" in facts and "WindowWidth" in facts:
        return _eight(_windowed(facts, values.astype(np.float64)))
    if facts.get("VOILUTSequence"):
        table = facts.VOILUTSequence[0]
        seen = library.pixels.apply_voi(values, facts, index=0)
        return _eight(seen / float(2 ** int(table.LUTDescriptor[2]) - 1))
    least, most = _ends(library, facts, stored.dtype)
    return _eight((values.astype(np.float64) - least) / (most - least))


def _ends(library: Any, facts: Any, kind: np.dtype) -> tuple[float, float]:
    """Return the least and the largest gray value that the file can have."""
    if facts.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(facts.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(facts.BitsStored)
    signed = int(facts.PixelRepresentation) == 1
    ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    both = library.pixels.apply_modality_lut(np.asarray(ends, np.int64), facts)
    return float(min(both)), float(max(both))


def _first(value: Any) -> float:
    """Return a number, or the first of several."""
    return float(value if isinstance(value, str | float | int) else value[0])


def _windowed(facts: Any, values: np.ndarray) -> np.ndarray:
    """Return the shares of white, about 0 to 1, that the file's first window gives `values`."""
    centre, width = _first(facts.WindowCenter), _first(facts.WindowWidth)
    function = str(facts.get("VOILUTFunction", "LINEAR")).upper()
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR_EXACT":
        return (values - centre) / width + 0.5
    if width < 1:
        raise ValueError(f"a window of width {width}")
    centre, width = centre - 0.5, width - 1
    # The one of width 1 is a step: what lies above its centre is white.
    return (values - centre) / width + 0.5 if width else (values > centre).astype(np.float64)


def _eight(shares: np.ndarray) -> np.ndarray:
    """Bring shares of white to uint8; below 0 is black, above 1 is white."""
    return np.floor(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
