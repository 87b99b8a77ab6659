"""What a run says: the threat model, the verdict, the table and the picture."""

import numpy as np
from PIL import Image, ImageDraw

import models
from experiments.settings import checks, defense_flags
from experiments.settings.config import Config

CAP_DB = 160.0


def threat_model(config: Config, attack: str) -> dict:
    """What the attacker was given, as plain values for `summary.json`."""
    local = config.local_steps > 0
    return {
        "server": "honest-but-curious: sees one client's update and the model",
        "attack": attack + (f", from {warm}" if (warm := config.warm_start) else ""),
        "labels": config.labels,
        "batch_size": "known",
        "update": "local training (FedAvg)" if local else "one gradient (FedSGD)",
        "local_steps": _local_knowledge(config) if local else "none",
        "defense": list(config.defense) or "none",
        "defense_adaptive": _defense_knowledge(config, attack),
        "batch_norm": _norm_knowledge(config),
        "public_data": _public(config),
        "selection": "lowest objective over restarts and iterates, never the truth",
    }


def _defense_knowledge(config, attack):
    if not config.defense:
        return "no defense"
    if not config.defense_known:
        return "no: the attacker does not know of the defense"
    if attack in checks.CLOSED_FORMS:
        return f"no: known, but {attack} has no adaptive form"
    specs = defense_flags.specs(config.defense)
    if attack == "gauss_newton" and defense_flags.noise(specs):
        return "yes: the attack fits the update no better than the noise allows"
    if attack == "posterior":
        return "yes: the attack weighs the update by its noise, against a prior"
    without = [spec.name for spec in specs if not defense_flags.is_adaptable(spec)]
    if not without:
        return "yes: the attack is adapted to the defense"
    share = "no" if len(without) == len(specs) else "partly"
    return f"{share}: known, but there is no adaptive form of {', '.join(without)} here"


def _local_knowledge(config):
    if not config.local_known:
        counted = config.labels == "inferred" and config.batch_size > 1
        but = " (but their number and rate serve to count labels)" if counted else ""
        return f"unknown: the update is treated as one gradient{but}"
    order = "unknown" if config.local_shuffle else "known"
    return f"known, with learning rate and mini-batch size; order {order}"


def _norm_knowledge(config):
    if config.model is None:
        return "as the given loss has it"
    if (config.norm or models.DEFAULTS[config.model].norm) != "batch":
        return "none in the model"
    if config.norm_mode == "eval":
        return "eval mode: running statistics, known with the model"
    return "train mode: statistics of the batch, not shared"


def _public(config):
    if config.labels != "inferred" or config.batch_size == 1:
        return "none"
    return "noise images" if config.update else f"--train_split={config.train_split}"


def verdict(psnr: float, best_null: float, labels: str) -> str:
    """One line for a reader who is not an engineer.

    Args:
      psnr: mean over targets, dB.
      best_null: PSNR of the best guess that did not see the update, dB.
      labels: how the attacker came by them.
    """
    tail = " (labels were given)" if labels == "known" else ""
    gain = psnr - best_null
    if psnr >= 30:
        return f"LEAKS: the update gives the images back almost exactly{tail}."
    if psnr >= 20 and gain >= 3:
        return f"LEAKS: the reconstructed images are recognisable{tail}."
    if gain >= 3:
        return f"LEAKS IN PART: coarse shapes and colours come back{tail}."
    return (
        "NOT RECONSTRUCTED by this attack: no better than guessing without the update. "
        "This does not prove that no attack can."
    )


def verdict_blind(fit: float | None) -> str:
    """The same where the truth is not at hand: only the fit can be judged.

    Args:
      fit: cosine distance of the reconstruction's update from the one observed; None
        if it is not finite.
    """
    if fit is None:
        return "FAILED: no trial had a finite objective."
    if fit < 1e-3:
        says = "explains the update almost completely: expect a faithful image"
    elif fit < 1e-1:
        says = "explains the update in part: look at the picture"
    else:
        says = "does not explain the update: nothing was recovered"
    return f"Without the truth no quality can be given. The reconstruction {says}."


def table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Columns of text, first left- and the others right-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def render(line):
        first, *rest = [cell.ljust(w) for cell, w in zip(line, widths, strict=True)]
        rest = [cell.strip().rjust(w) for cell, w in zip(rest, widths[1:], strict=True)]
        return "  ".join([first, *rest]).rstrip()

    rule = "  ".join("-" * w for w in widths)
    return "\n".join([render(header), rule, *map(render, lines[1:])])


def grid(rows: list[tuple[str, np.ndarray, list[str]]], side: int = 96) -> Image.Image:
    """Rows of images under one another, with a title a row and a caption an image.

    Args:
      rows: `(title, images [M, H, W, C] in [0, 1], captions)`.
      side: pixels of one image; enlarged without smoothing.
    """
    left, pad, caption = 190, 6, 16
    columns = max(len(images) for _, images, _ in rows)
    step = side + pad + caption
    canvas = Image.new(
        "RGB", (left + columns * (side + pad), len(rows) * step), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for y, (title, images, captions) in enumerate(rows):
        draw.multiline_text((pad, y * step + pad), title, fill="black")
        for x, image in enumerate(images):
            corner = (left + x * (side + pad), y * step)
            canvas.paste(_tile(image, side), corner)
            text = captions[x] if x < len(captions) else ""
            draw.text((corner[0], corner[1] + side + 1), text, fill="black")
    return canvas


def _tile(image, side):
    array = np.clip(np.nan_to_num(np.asarray(image, np.float32)), 0, 1)
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
    pixels = Image.fromarray((array * 255).round().astype(np.uint8))
    return pixels.resize((side, side), Image.Resampling.NEAREST)
