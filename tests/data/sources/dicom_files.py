"""DICOM files, written for tests by pydicom."""

import io

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pip install '.[dicom]'")
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian


def dicom(values, bits=0, frames=False, **more):
    """`values` `[H, W]`, `[H, W, 3]` or, with `frames`, `[N, H, W]`; `more`: further elements."""
    facts, shape = pydicom.Dataset(), values.shape[1:] if frames else values.shape
    facts.file_meta = pydicom.dataset.FileMetaDataset()
    facts.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    facts.file_meta.MediaStorageSOPClassUID = facts.SOPClassUID = CTImageStorage
    facts.file_meta.MediaStorageSOPInstanceUID = facts.SOPInstanceUID = "1.2.3"
    facts.Rows, facts.Columns = shape[:2]
    facts.SamplesPerPixel = len(shape) * 2 - 3
    facts.PhotometricInterpretation = "MONOCHROME2" if len(shape) == 2 else "RGB"
    if len(shape) == 3:
        facts.PlanarConfiguration = 0
    if frames:
        facts.NumberOfFrames = len(values)
    facts.BitsAllocated = 8 * values.itemsize
    facts.BitsStored = bits or facts.BitsAllocated
    facts.HighBit = facts.BitsStored - 1
    facts.PixelRepresentation = int(values.dtype.kind == "i")
    content = np.ascontiguousarray(values).tobytes()
    facts.add_new(
        "PixelData", "OB" if values.itemsize == 1 else "OW", content + b"\0" * (len(content) % 2)
    )
    for name, value in more.items():
        setattr(facts, name, value)
    return bytes_of(facts)


def bytes_of(facts):
    file = io.BytesIO()
    facts.save_as(file, enforce_file_format=True)
    return file.getvalue()


def facts_of(content):
    return pydicom.dcmread(io.BytesIO(content))
