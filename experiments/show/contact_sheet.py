"""A contact sheet: what was reconstructed under each defense, by strength."""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pandas
from PIL import Image, ImageDraw, ImageFont

from experiments.show import summaries
from experiments.show.style import axis_label, curve_label
from experiments.show.summaries import Choice, Frame
from invertjax.cli import run_folder

COLUMNS = 10  # reconstructions in a row, at most
WIDTH = 2400  # pixels, about, that a sheet takes at most
HEIGHT = 96  # pixels of an image
SHOWN = 4  # images of a batch
PIXELS = 2**25  # of a picture that is read, at most
PAD, LINE = 10, 25


class Tile(NamedTuple):
    """One picture and what is written under it."""

    image: Image.Image
    caption: str


def draw(
    frame: Frame, choice: Choice, workdir: pathlib.Path, path: pathlib.Path
) -> str:
    """Writes the sheet; returns why there is none, or an empty text."""
    kept = frame[summaries.done(frame)]
    for name in summaries.PICTURES:
        if name not in kept:
            return "no images were kept"
    kept = kept[kept["image"].map(lambda name: _exists(workdir, name))]
    if kept.empty:
        return "no images were kept"
    kept, which = _one_draw(frame, kept, choice)
    rows = [
        (curve_label(str(curve), choice.curves), _tiles(group, choice, workdir))
        for curve, group in kept.groupby(
            summaries.shown(kept, choice.curves), observed=True
        )
    ]
    title = "Reconstructions, by ascending strength of the defense"
    if choice.x != "strength":
        by = f", by {axis_label(choice.x)}" if choice.x else ""
        title = f"Reconstructions{by}"
    sheet = _sheet(f"{title}{f' ({which})' if which else ''}", rows)
    with run_folder.replacing(path) as file:
        sheet.save(file, "PNG")
    return ""


def _exists(workdir: pathlib.Path, name: Any) -> bool:
    """Whether a picture is there, in the folder itself: a table may come from anybody,
    and what it names is shown."""
    if not isinstance(name, str):
        return False
    try:
        path, folder = (workdir / name).resolve(), workdir.resolve()
        return path.is_relative_to(folder) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # no name of a file; links in a circle
        return False


def _one_draw(frame: Frame, kept: Frame, choice: Choice) -> tuple[Frame, str]:
    """Returns the rows like the first one but for x and curve, and what sets them
    apart from others."""
    along = kept[choice.x].notna() if choice.x else summaries.done(kept)
    first, which = (kept[along] if along.any() else kept).iloc[0], []
    given = [name for name in {choice.curves, choice.x} if name]
    for name in (*summaries.settings(kept), "target"):
        if name in given or name == "defense" or summaries.follows(frame, name, given):
            continue
        same = kept[name].isna() if pandas.isna(first[name]) else None
        kept = kept[kept[name] == first[name] if same is None else same]
        which.append(f"{name}={summaries.text(first[name])}")
    if "batch_size" in kept and kept["batch_size"].max() > SHOWN:
        which.append(f"the first {SHOWN} images of a batch")
    return kept, ", ".join(which)


def _tiles(group: Frame, choice: Choice, workdir: pathlib.Path) -> list[Tile]:
    """Returns the original and at most `COLUMNS` reconstructions."""
    if choice.x:
        group = group.drop_duplicates(choice.x)
        group = group.sort_values(choice.x, na_position="first")
    wide = _open(workdir, group.iloc[0]["image"]).width + PAD
    number = int(np.clip(WIDTH // wide - 1, 2, COLUMNS))
    if len(group) > number:  # evenly, with both ends
        group = group.iloc[np.linspace(0, len(group) - 1, number).round().astype(int)]
    originals = [name for name in group["original"] if _exists(workdir, name)]
    tiles = [Tile(_open(workdir, name), "original") for name in originals[-1:]]
    for entry in group.to_dict("records"):
        caption = f"{entry['psnr']:.1f} dB\n{_place(entry, choice)}"
        tiles.append(Tile(_open(workdir, entry["image"]), caption))
    return tiles


def _place(entry: dict[str, Any], choice: Choice) -> str:
    """Says where a picture is along x."""
    if not choice.x:
        return ""
    if not pandas.isna(entry[choice.x]):
        return f"{choice.x} {entry[choice.x]:.3g}"
    if choice.curves == "defense_name":  # the title of the row says it
        return ""
    return "no defense" if choice.x == "strength" else f"no {choice.x}"


def _open(workdir: pathlib.Path, name: str) -> Image.Image:
    """Returns a picture at the height of the sheet; of a large batch the first images.

    Raises:
      ValueError: naming a file that is no picture.
    """
    path = workdir / name
    try:
        with Image.open(path, formats=("PNG",)) as file:
            if file.width * file.height > PIXELS:
                raise ValueError
            image = file.convert("RGB")
    except Exception:  # Pillow raises all sorts on what is damaged
        expected = f"a PNG of at most {PIXELS} pixels"
        raise ValueError(
            f"{path}: not a readable picture, expected {expected}."
        ) from None
    image = image.crop((0, 0, min(image.width, SHOWN * image.height), image.height))
    scale = max(1, HEIGHT // image.height)
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.NEAREST)


def _sheet(title: str, rows: list[tuple[str, list[Tile]]]) -> Image.Image:
    """Draws rows of tiles under one another, each under its own title."""
    small, middle, large = (ImageFont.load_default(size) for size in (15, 18, 22))
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    tiles = [tile for _, row in rows for tile in row]
    texts = [probe.multiline_textbbox((0, 0), tile.caption, small) for tile in tiles]
    wide = PAD + int(max([tile.image.width for tile in tiles] + [t[2] for t in texts]))
    high = max(tile.image.height for tile in tiles)
    step = LINE + high + 2 * LINE + 2 * PAD
    across = PAD + wide * max(len(row) for _, row in rows)
    texts = [(title, large), *((name, middle) for name, _ in rows)]
    across = max(across, *(int(font.getlength(text)) + 2 * PAD for text, font in texts))
    top = 2 * LINE
    canvas = Image.new("RGB", (across, top + step * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((PAD, PAD), title, "black", large)
    for y, (name, row) in enumerate(rows):
        at = top + y * step
        pen.text((PAD, at), name, "black", middle)
        for x, tile in enumerate(row):
            corner = (PAD + x * wide, at + LINE)
            canvas.paste(tile.image, corner)
            below = (corner[0], corner[1] + high + 2)
            pen.multiline_text(below, tile.caption, "black", small)
    return canvas
