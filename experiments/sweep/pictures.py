"""Pictures of a sweep: a reconstructed batch side by side, and the original."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from experiments.settings.settings import Settings
from experiments.sweep import table as table_
from invertjax.cli import run_folder

FOLDER = "_images"


def save(
    folder: pathlib.Path, cell: Settings, target: int, arrays: dict[str, Any]
) -> dict[str, str]:
    """Writes a target's pictures as PNG, and returns where they are.

    Args:
      folder: of the sweep.
      cell: that the target is of.
      target: which.
      arrays: "image" and "original", `[B, H, W, C]` in [0, 1].
    """
    data = cell.data
    of = (data.dataset, data.split, data.image_size, cell.clients.batch_size)
    named = "-".join(map(str, of))
    named = "".join(c if c.isalnum() or c in "-_" else "_" for c in named)
    names = {
        "image": f"{FOLDER}/{table_.name_of(cell)}-{target}.png",
        "original": f"{FOLDER}/original-{named}-{target}.png",
    }
    (folder / FOLDER).mkdir(exist_ok=True)
    _write(folder / names["image"], arrays["image"])
    if not (folder / names["original"]).exists():
        _write(folder / names["original"], arrays["original"])
    return names


def _write(file: pathlib.Path, images: np.ndarray) -> None:
    """Writes `[B, H, W, C]` in [0, 1] side by side, whole or not at all."""
    wide = np.concatenate([np.asarray(image) for image in images], axis=1)
    pixels = np.round(255 * wide).astype(np.uint8)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    with run_folder.replacing(file) as out:
        Image.fromarray(pixels).save(out, "PNG")
