"""Pictures of images beside one another, as PNG bytes; needs Pillow, when called."""

import io
from typing import Any

import numpy as np

LEFT, PAD, CAPTION = 190, 6, 16  # pixels: of titles, between images, under an image
NARROWEST = 60  # pixels that a caption takes

Strip = tuple[str, Any, list[str]]  # title, images [M, H, W, C] in [0, 1], captions


def grid(rows: list[Strip], side: int = 96) -> Any:
    """Returns rows of images under one another, a title a row, a caption an image.

    Images keep their shape and are never made smaller; small ones are enlarged by a
    whole factor, without smoothing.

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
    for (title, _, captions), row, height in zip(rows, tiles, heights, strict=True):
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
    array = np.clip(np.nan_to_num(np.asarray(array, np.float32)), 0, 1)
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
    pixels = image.fromarray((array * 255).round().astype(np.uint8))
    factor = max(1, side // max(pixels.size))
    size = (pixels.width * factor, pixels.height * factor)
    return pixels.resize(size, image.Resampling.NEAREST)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ImportError(
            "Pillow is missing, which draws pictures: pip install 'invertjax[report]'."
        ) from None
    return Image, ImageDraw
