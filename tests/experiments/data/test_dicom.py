"""DICOM files: levels as a viewer shows them, and what is refused by name."""

import io
import sys

import numpy as np
import pytest
from support.refusals import says

from experiments import data

STORED = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65  # of 4096


@pytest.fixture
def pydicom():
    reason = "pydicom is not installed: pip install 'invertjax[dicom]'"
    return pytest.importorskip("pydicom", reason=reason)


def _write(pydicom, path, pixels=STORED, meta=None, **entries):
    """A DICOM file of 12 stored bits, with entries changed or, if None, left out."""
    found = pydicom.Dataset()
    found.Rows, found.Columns = pixels.shape[-2:] if pixels.ndim == 2 else (8, 8)
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 8 * pixels.dtype.itemsize
    if found.BitsAllocated == 16:
        found.BitsStored = 12
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, 0
    found.PixelData = pixels.tobytes()
    for name, value in entries.items():
        delattr(found, name) if value is None else setattr(found, name, value)
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = meta or pydicom.uid.ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    content = io.BytesIO()
    pydicom.dcmwrite(content, found, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())


def _levels(path):
    return data.load(f"folder:{path}").images[0, ..., 0]


RAMP = np.float32(STORED / 4095)


@pytest.mark.parametrize(
    "entries, expected",
    [
        (dict(), RAMP),
        (dict(PhotometricInterpretation="MONOCHROME1"), 1 - RAMP),
        # The range of what the file can hold, whatever the units.
        (dict(RescaleSlope=2, RescaleIntercept=-1024), RAMP),
        (dict(RescaleSlope=-1, RescaleIntercept=0), 1 - RAMP),
        (dict(PixelRepresentation=1), None),
        # A window of 1000 around 500, in units after rescaling: 0 to 999 are shown.
        (
            dict(RescaleIntercept=-100, WindowCenter=[500, 9], WindowWidth=[1000, 9]),
            np.clip((STORED - 100.0) / 999, 0, 1),
        ),
        (
            dict(WindowCenter=500, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"),
            np.clip(STORED / 1000, 0, 1),
        ),
        (
            dict(WindowCenter=500, WindowWidth=1000, VOILUTFunction="SIGMOID"),
            1 / (1 + np.exp(-4 * (STORED - 500.0) / 1000)),
        ),
        (dict(WindowCenter=1000, WindowWidth=1), STORED > 999.5),
    ],
)
def test_levels_are_those_of_a_viewer(pydicom, tmp_path, entries, expected):
    pixels = STORED
    if entries.get("PixelRepresentation"):
        pixels = (STORED.astype(np.int16) - 2048) & 0xFFF
        expected = RAMP
    _write(pydicom, tmp_path / "scan.dcm", pixels.astype(np.uint16), **entries)
    # In float64 and rounded once: half a unit in the last place.
    np.testing.assert_allclose(_levels(tmp_path), expected, atol=1e-6)


def test_files_without_a_suffix_are_known_by_their_first_bytes(pydicom, tmp_path):
    _write(pydicom, tmp_path / "ct" / "IM000001")
    _write(pydicom, tmp_path / "mr" / "1.2.840.7")
    (tmp_path / "DICOMDIR").write_bytes(b"an index")
    found = data.load(f"folder:{tmp_path}")
    assert found.class_names == ("ct", "mr") and found.images.shape == (1, 8, 8, 1)


def test_colour_of_eight_bits(pydicom, tmp_path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    colour = dict(
        SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    _write(pydicom, tmp_path / "a.dcm", pixels, **colour)
    images = data.load(f"folder:{tmp_path}").images
    np.testing.assert_array_equal(np.round(images[0] * 255), pixels)


@pytest.mark.parametrize(
    "entries, says_",
    [
        (dict(NumberOfFrames=2), "several frames"),
        (dict(PhotometricInterpretation="PALETTE COLOR"), "PALETTE COLOR"),
        (dict(Rows=60_000, Columns=60_000), "at most"),
        (dict(Rows=None), "no image"),
        (dict(RescaleSlope=0), "RescaleSlope"),
        (dict(WindowCenter=1, WindowWidth=0), "WindowWidth"),
        (dict(PixelData=STORED.tobytes()[:50]), "scan.dcm"),
        (dict(meta="1.2.840.10008.1.2.1.99"), "deflated"),
        (dict(meta="1.2.840.10008.1.2.4.90"), "scan.dcm"),
    ],
)
def test_the_rest_is_refused_by_name(pydicom, tmp_path, entries, says_):
    path = tmp_path / "scan.dcm"
    meta = entries.get("meta")
    entries = {name: value for name, value in entries.items() if name != "meta"}
    _write(pydicom, path, **entries)
    if meta:
        content = path.read_bytes()
        own = b"1.2.840.10008.1.2.1\0"
        assert content.count(own) == 1
        start = content.index(own)
        size = len(meta) + len(meta) % 2
        length = size.to_bytes(2, "little")
        group = content.index(b"\2\0\0\0UL\4\0") + 8
        grown = int.from_bytes(content[group : group + 4], "little") + size - len(own)
        content = (
            content[:group]
            + grown.to_bytes(4, "little")
            + content[group + 4 : start - 2]
            + length
            + meta.encode().ljust(size, b"\0")
            + content[start + len(own) :]
        )
        path.write_bytes(content)
    says(str(path), says_, call=lambda: data.load(f"folder:{tmp_path}"))


def test_damage_is_one_line_that_names_the_file(pydicom, tmp_path, capfd):
    """Two hundred files with bytes changed or cut off, by a fixed seed."""
    path = tmp_path / "scan.dcm"
    _write(
        pydicom, path, RescaleSlope=1, RescaleIntercept=0, WindowCenter=9, WindowWidth=9
    )
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(200):
        content = bytearray(whole[: rng.integers(132, len(whole) + 1)])
        for place in rng.integers(128, min(len(content), 520), rng.integers(0, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            data.load(f"folder:{tmp_path}", image_size=8)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100
    assert capfd.readouterr() == ("", "")


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    call = lambda: data.check(f"folder:{tmp_path}")  # noqa: E731
    says("scan.dcm", "pip install 'invertjax[dicom]'", call=call)
