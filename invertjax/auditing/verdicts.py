"""One line for a reader who is not an engineer."""


def verdict(psnr: float, best_null: float, labels: str) -> str:
    """Returns what the scores of an attack mean.

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
    """Returns the same where the truth is not at hand, and only the fit can be judged.

    Args:
      fit: cosine distance of the reconstruction's update from the one observed; None
        if it is not finite.
    """
    if fit is None:
        return FAILED
    if fit < 1e-3:
        says = "explains the update almost completely: expect a faithful image"
    elif fit < 1e-1:
        says = "explains the update in part: look at the picture"
    else:
        says = "does not explain the update: nothing was recovered"
    return f"Without the truth no quality can be given. The reconstruction {says}."


FAILED = "FAILED: no trial had a finite objective with a finite gradient."
