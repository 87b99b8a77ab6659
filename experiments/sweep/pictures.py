"""Pictures of a sweep: a reconstructed batch side by side, and the original."""

import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from experiments.sweep import table as table_

FOLDER = "_images"
_OF_ORIGINALS = ("dataset", "split", "image_size", "batch_size")


def save_pictures(
    folder: pathlib.Path, ready: Any, target: int, batch: dict, kept: bool
) -> dict[str, str]:
    """Keeps a target's pictures as PNG, and returns where; {} if they are not kept."""
    if not kept:
        return {}
    config = ready.config
    data = "-".join(str(getattr(config, name)) for name in _OF_ORIGINALS)
    data = "".join(c if c.isalnum() or c in "-_" else "_" for c in data)
    names = {
        "image": f"{FOLDER}/{table_.name_of(config)}-{target}.png",
        "original": f"{FOLDER}/original-{data}-{target}.png",
    }
    (folder / FOLDER).mkdir(exist_ok=True)
    _write(folder / names["image"], batch["image"])
    if not (folder / names["original"]).exists():
        _write(folder / names["original"], batch["original"])
    return names


def _write(file, images):
    """`[B, H, W, C]` in [0, 1], side by side; whole or not at all."""
    wide = np.concatenate([np.asarray(image) for image in images], axis=1)
    pixels = np.round(255 * wide).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_bytes(content.getvalue())
    beside.rename(file)
