"""What a picture of an audit shows: originals, and what was made of their updates."""

from collections.abc import Sequence

import numpy as np

from invertjax.base import Arrays, Row
from invertjax.reports import pictures

SHOWN = 16  # updates in a picture, and images of one


def strips(
    rows: Sequence[Row],
    arrays: Sequence[Arrays],
    word: str = "target",
) -> list[pictures.Strip]:
    """Returns rows of a picture: originals, and what was made of their update.

    A single image stands beside its original; of larger batches each image stands
    under its own. An update of which nothing came shows the start, and says so.
    """
    lines: list[pictures.Strip] = []
    for row, batch in list(zip(rows, arrays, strict=True))[:SHOWN]:
        title = f"{word} {row['target']}"
        failed = row["loss"] is None
        if failed:
            title += "\nfailed: a start"
        scores = ["-" if failed else f"{one:.1f} dB" for one in row.get("psnr", ())]
        if "original" in batch and len(batch["image"]) == 1:  # beside one another
            pair = np.concatenate([batch["original"], batch["image"]])
            lines.append((title, pair, ["original", *scores]))
        elif "original" in batch:
            lines.append((f"{title}\noriginal", batch["original"][:SHOWN], []))
            lines.append(("  reconstructed", batch["image"][:SHOWN], scores))
        else:
            lines.append((f"{title}\nreconstructed", batch["image"][:SHOWN], []))
    return lines
