"""Pictures of images beside one another, as PNG bytes; needs Pillow, when called."""

import io
import math
from typing import Any

import numpy as np

LEFT, PAD, CAPTION = 190, 6, 16  # pixels: of titles, between images, under an image
NARROWEST = 60  # pixels that a caption takes

Strip = tuple[str, Any, list[str]]  # title, images [M, H, W, C] in [0, 1], captions


def grid(rows: list[Strip], side: int = 96) -> Any:
    """Returns rows of images under one another, a title a row, a caption an image.

    Images keep their shape and are never made smaller; small ones are enlarged by a
    whole factor, without smoothing. One channel is grey and three are red, green and
    blue; of any other number each channel is drawn in grey, see `coloured`, and the
    title says so.

    Args:
      rows: `(title, images [M, H, W, C] in [0, 1], captions)` each.
      side: pixels that the longer side of a small image is enlarged to, at most.

    Returns:
      A `PIL.Image.Image`.
    """
    image, draw = _pillow()
    tiles = [[_tile(image, one, side) for one in images] for _, images, _ in rows]
    across = max((tile.width for row in tiles for tile in row), default=side)
    step = max(across, min(NARROWEST, side)) + PAD
    heights = [max((tile.height for tile in row), default=0) for row in tiles]
    columns = max(len(row) for row in tiles)
    size = (LEFT + columns * step, sum(heights) + len(rows) * (PAD + CAPTION))
    canvas = image.new("RGB", size, "white")
    pen, top = draw.Draw(canvas), 0
    for (title, images, captions), row, height in zip(
        rows, tiles, heights, strict=True
    ):
        title += _said_of(np.shape(images)[-1])
        pen.multiline_text((PAD, top + PAD), title, fill="black")
        for x, tile in enumerate(row):
            corner = (LEFT + x * step, top)
            canvas.paste(tile, corner)
            text = captions[x] if x < len(captions) else ""
            pen.text((corner[0], top + height + 1), text, fill="black")
        top += height + PAD + CAPTION
    return canvas


def png(picture: Any) -> bytes:
    """Returns a picture as the bytes of a PNG file."""
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _tile(image: Any, array: Any, side: int) -> Any:
    """Returns one image `[H, W, C]` in [0, 1], enlarged if it is small."""
    array = coloured(np.clip(np.nan_to_num(np.asarray(array, np.float32)), 0, 1))
    pixels = image.fromarray((array * 255).round().astype(np.uint8))
    factor = max(1, side // max(pixels.size))
    size = (pixels.width * factor, pixels.height * factor)
    return pixels.resize(size, image.Resampling.NEAREST)


def coloured(array: Any) -> np.ndarray:
    """Returns an image of any number of channels as one of three: red, green and blue.

    Channels that have no such colours are drawn each in grey, as tiles with a white
    line between: from left to right, and from the top down.

    Args:
      array: `[H, W, C]` in [0, 1].

    Returns:
      `[H, W, 3]` for one channel or three; else larger by the number of tiles.
    """
    array = np.asarray(array)
    *_, channels = array.shape
    if channels == 3:
        return array
    across = math.ceil(math.sqrt(channels))
    down = math.ceil(channels / across)
    tiles = np.ones((down * across, *array.shape[:2]), array.dtype)
    tiles[:channels] = np.moveaxis(array, -1, 0)
    lined = np.pad(tiles, ((0, 0), (0, 1), (0, 1)), constant_values=1)
    high, wide = lined.shape[1:]
    rows = lined.reshape(down, across, high, wide).swapaxes(1, 2)
    whole = rows.reshape(down * high, across * wide)[:-1, :-1]
    return np.repeat(whole[..., None], 3, axis=-1)


def _said_of(channels: int) -> str:
    """Returns what a title adds where channels are no colours."""
    if channels in (1, 3):
        return ""
    return f"\n{channels} channels, each in grey"


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ImportError(
            "Pillow is missing, which draws pictures: pip install 'invertjax[report]'."
        ) from None
    return Image, ImageDraw
