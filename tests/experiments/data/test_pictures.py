"""Image files: which bits, turned how, and what is refused before it is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.refusals import says

from experiments import data
from experiments.data import pictures


def _folder(path, **images):
    """`folder:` of class `a`, with files of these names."""
    (path / "a").mkdir()
    for name, content in images.items():
        (path / "a" / name.replace("_", ".")).write_bytes(content)
    return f"folder:{path}"


def _bytes(image, format, **options):
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


def _chunk(kind, content):
    checked = kind + content
    return (
        struct.pack(">I", len(content))
        + checked
        + struct.pack(">I", zlib.crc32(checked))
    )


def _png(levels, depth, colour):
    """A PNG written by hand: Pillow writes 16 bits in grey only."""
    height, width = levels.shape[:2]
    kind = {8: ">u1", 16: ">u2"}[depth]
    rows = levels.astype(kind).reshape(height, -1)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(
            b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        )
        + _chunk(b"IDAT", zlib.compress(content))
        + _chunk(b"IEND", b"")
    )


def _tiff(levels, *tags):
    """An uncompressed TIFF written by hand, little-endian, one strip.

    tags: (number, value or values), shorts.
    """
    height, width, channels = levels.shape
    content = levels.tobytes()
    bits = (8 * levels.dtype.itemsize,) * channels
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: channels}
    entries |= {273: 8, 278: height, 279: len(content)} | dict(tags)
    start = 8 + len(content)
    behind = start + 2 + 12 * len(entries) + 4
    table, extra = b"", b""
    for tag, values in sorted(entries.items()):
        values = values if isinstance(values, tuple) else (values,)
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            extra += packed
            packed = struct.pack("<I", behind + len(extra) - len(packed))
        table += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = struct.pack("<2sHI", b"II", 42, start)
    return head + content + struct.pack("<H", len(entries)) + table + b"\0" * 4 + extra


RAMP = (np.arange(64).reshape(8, 8) * 1021 + 7).astype(np.uint16)


@pytest.mark.parametrize(
    "name, content",
    [
        ("0_png", _png(RAMP, 16, 0)),
        ("0_tif", _tiff(RAMP[..., None])),
        ("0_tiff", _bytes(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw")),
    ],
    ids=["png", "tiff", "lzw"],
)
def test_sixteen_bits_of_grey_are_kept_exactly(tmp_path, name, content):
    """Every level of 65536 comes back, and none is the level of 8 bits."""
    images = data.load(_folder(tmp_path, **{name: content})).images
    assert images.shape == (1, 8, 8, 1) and images.dtype == np.float32
    np.testing.assert_array_equal(np.round(images[0, ..., 0] * 65535), RAMP)
    np.testing.assert_array_equal(images[0, ..., 0], RAMP / np.float32(65535))


def test_white_is_zero_in_either_depth(tmp_path):
    content = _tiff(RAMP[..., None], (262, 0))
    images = data.load(_folder(tmp_path, **{"0_tif": content})).images
    np.testing.assert_array_equal(np.round(images[0, ..., 0] * 65535), 65535 - RAMP)
    eight = (RAMP % 256).astype(np.uint8)
    (tmp_path / "a" / "0.tif").write_bytes(_tiff(eight[..., None], (262, 0)))
    images = data.load(f"folder:{tmp_path}").images
    np.testing.assert_array_equal(np.round(images[0, ..., 0] * 255), 255 - eight)


def test_sixteen_bits_beside_colour_and_resized(tmp_path):
    colour = _png(np.full((8, 8, 3), 100), 8, 2)
    name = _folder(tmp_path, **{"0_png": _png(RAMP, 16, 0), "1_png": colour})
    found = data.load(name).images[0]
    np.testing.assert_array_equal(found, np.repeat(found[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(np.round(found[..., 0] * 65535), RAMP)
    small = data.load(name, image_size=4).images[0]
    assert small.min() >= 0 and small.max() <= 1
    # Of a linear ramp the filter keeps block means but at the border: 0.01 measured.
    blocks = (RAMP / 65535).reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(small[..., 0], blocks, atol=0.03)


DEEP = {
    "rgb": ("0_png", _png(np.zeros((8, 8, 3)), 16, 2)),
    "rgba": ("0_png", _png(np.zeros((8, 8, 4)), 16, 6)),
    "grey and alpha": ("0_png", _png(np.zeros((8, 8, 2)), 16, 4)),
    "tiff rgb": ("0_tif", _tiff(np.zeros((8, 8, 3), np.uint16), (262, 2))),
    "tiff cmyk": ("0_tif", _tiff(np.zeros((8, 8, 4), np.uint16), (262, 5))),
    "tiff 32": ("0_tif", _bytes(Image.new("I", (8, 8)), "TIFF")),
    "tiff float": ("0_tif", _bytes(Image.new("F", (8, 8)), "TIFF")),
    "tiff signed": ("0_tif", _tiff(np.zeros((8, 8, 1), np.int16), (339, 2))),
}


@pytest.mark.parametrize("name, content", DEEP.values(), ids=DEEP)
def test_bits_that_would_be_lost_are_refused(tmp_path, name, content):
    """Pillow opens the first five as 8 bits, without a word."""
    folder = _folder(tmp_path, **{name: content})
    says(f"/a/{name.replace('_', '.')}", "convert it", call=lambda: data.check(folder))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_eight_bits_are_what_pillow_makes_of_them(tmp_path, mode):
    picture = Image.effect_noise((8, 8), 90).convert("RGB").convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    content = _bytes(picture, format)
    grey = mode in ("1", "L", "LA")
    found = data.load(_folder(tmp_path, **{f"0_{format.lower()}": content})).images[0]
    expected = np.asarray(picture.convert("L" if grey else "RGB")).reshape(8, 8, -1)
    np.testing.assert_array_equal(np.round(found * 255), expected)


def test_a_transparent_palette_is_read_without_a_word(tmp_path):
    """Pillow warns of it, which is an error here."""
    picture = Image.new("P", (8, 8))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    content = _bytes(picture, "PNG", transparency=b"\x00\x80")
    found = data.load(_folder(tmp_path, **{"0_png": content})).images[0]
    np.testing.assert_array_equal(np.round(found[0, 0] * 255), [10, 20, 30])


# Orientation.

TURNED = {  # what each orientation does to rows and columns, as the standard has it
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(tmp_path, format, orientation):
    """The corners of a picture of 16x8, four greys, end where they belong."""
    stored = np.kron(np.uint8([[0, 80], [160, 240]]), np.ones((4, 8), np.uint8))
    picture = Image.fromarray(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    content = _bytes(picture, format, exif=exif, **options)
    folder = _folder(tmp_path, **{f"0_{format.lower()}": content})
    found = data.load(folder).images[0, ..., 0] * 255
    upright = TURNED[orientation](stored)
    # JPEG at Pillow's default quality is within 4 levels of four plain blocks.
    np.testing.assert_allclose(found, upright, atol=6)
    with io.BytesIO(content) as file:
        assert pictures.header(file).size == upright.shape[::-1]


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = _bytes(Image.fromarray(RAMP[:4]), "PNG", exif=exif)
    found = data.load(_folder(tmp_path, **{"0_png": content})).images[0, ..., 0]
    np.testing.assert_array_equal(np.round(found * 65535), TURNED[6](RAMP[:4]))


# What is refused by its header.


def _no_such_program(*args, **kwargs):
    raise AssertionError("a program was started")


def test_formats_are_listed_whatever_a_file_is_called(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", _no_such_program)
    monkeypatch.setattr("subprocess.Popen", _no_such_program)
    postscript = _bytes(Image.new("RGB", (8, 8)), "EPS")
    for name, content in (("0_png", postscript), ("0_jpg", b"GIF89a" + b"\1" * 99)):
        (tmp_path / name).mkdir()
        folder = _folder(tmp_path / name, **{name: content})
        says("/a/0.", "not one of PNG, JPEG", call=lambda f=folder: data.check(f))


@pytest.mark.parametrize(
    "size", [(1, 170_000_000), (170_000_000, 1), (20_000, 20_000), (1, 40_000)]
)
@pytest.mark.parametrize("function", [data.check, data.load])
def test_large_images_are_refused_by_their_header(tmp_path, size, function):
    """170 million pixels took 4.5 GB to be resized to 8."""
    head = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head)
    content += _chunk(b"IDAT", zlib.compress(b"\0" * 9)) + _chunk(b"IEND", b"")
    folder = _folder(tmp_path, **{"0_png": content})
    says("/a/0.png", "pixels", call=lambda: function(folder, image_size=8))


def test_the_limit_holds_for_images_of_data_sets():
    content = io.BytesIO(_bytes(Image.new("L", (pictures.MAX_SIDE + 1, 1)), "PNG"))
    says("at most", call=lambda: pictures.decode(content, 1))


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP"])
def test_several_pages_are_refused(tmp_path, format):
    pages = [Image.new("L", (8, 8), level) for level in (0, 255)]
    content = _bytes(pages[0], format, save_all=True, append_images=pages[1:])
    folder = _folder(tmp_path, **{f"0_{format.lower()}": content})
    says("/a/0.", "several pages", call=lambda: data.check(folder))


def test_a_telephone_s_jpeg_is_its_first_view(tmp_path):
    views = [Image.new("L", (8, 8), level) for level in (0, 255)]
    content = _bytes(views[0], "MPO", save_all=True, append_images=views[1:])
    assert data.load(_folder(tmp_path, **{"0_jpg": content})).images.max() == 0


@pytest.mark.parametrize("format", pictures.FORMATS)
def test_damage_is_one_line_that_names_the_file(tmp_path, format):
    """A hundred files with bytes changed or cut off, by a fixed seed."""
    rng = np.random.default_rng(0)
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    whole = _bytes(picture, format)
    name = f"0_{format.lower()}"
    folder = _folder(tmp_path, **{name: whole})
    path = tmp_path / "a" / name.replace("_", ".")
    refused = 0
    for _ in range(100):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, min(len(content), 120), rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            data.load(folder, image_size=8)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 50
