"""Says in one line, to a reader who is no engineer, what an audit has found."""

from typing import NamedTuple

FITTED = 1e-1  # cosine distance below which a reconstruction explains part of an update
CLOSELY = 1e-3  # and almost all of it
CLEAR = 3.0  # dB above the best guess: half its error


class Evidence(NamedTuple):
    """What tells an attack that failed from an update that gives nothing away.

    interrupted: whether it was stopped before its end.
    falling: whether its objective still fell when its budget was spent.
    fit: cosine distance of the reconstruction's update from the one observed; None
      where it is not known.
    fit_truth: the same of the true batch, as the attacker simulates its client.
    closed_form: an attack that reads such an update by itself, "" if there is none.
    certified: share of the images that are proven by the update.
    """

    interrupted: bool = False
    falling: bool = False
    fit: float | None = None
    fit_truth: float | None = None
    closed_form: str = ""
    certified: float = 0.0


NONE = Evidence()


def verdict(
    psnr: float, best_null: float, labels: str, evidence: Evidence = NONE
) -> str:
    """Returns what the scores of an attack mean.

    Args:
      psnr: mean over targets, dB.
      best_null: PSNR of the best guess that did not see the update, dB.
      labels: how the attacker came by them.
      evidence: means over targets, where there is any.
    """
    tail = " (labels were given)." if labels == "known" else "."
    if psnr - best_null < CLEAR:
        return _not_reconstructed(evidence)
    if psnr >= 30:
        return f"LEAKS: the update gives the images back almost exactly{tail}"
    if evidence.closed_form:
        tail += f" The attack {evidence.closed_form} reads such an update exactly."
    if psnr >= 20:
        return f"LEAKS: the reconstructed images are recognisable{tail}"
    return f"LEAKS IN PART: coarse shapes and colours come back{tail}"


def _not_reconstructed(evidence: Evidence) -> str:
    """Returns why the images are no better than a guess, as far as that is known."""
    if evidence.interrupted:
        return f"NO VERDICT: the attack was interrupted. {_NOTHING}"
    if evidence.closed_form:
        return (
            f"NO VERDICT: the attack {evidence.closed_form} reads such an update in "
            f"closed form: run it. {_NOTHING}"
        )
    fit, fit_truth = evidence.fit, evidence.fit_truth
    unfitted = (
        fit is not None and fit_truth is not None and fit > 1.1 * fit_truth + CLOSELY
    )
    if evidence.falling and (unfitted or fit_truth is None):
        return (
            "NO VERDICT: the objective still fell when the budget was spent: give the "
            f"attack more steps. {_NOTHING}"
        )
    if unfitted:
        return (
            "NOT FITTED: the true images explain the update better (cosine distance "
            f"{fit_truth:.1e}) than those that the attack found ({fit:.1e}): a "
            f"stronger attack may find them. {_NOTHING}"
        )
    if fit_truth is not None:
        return (
            "NOT RECONSTRUCTED by this attack: it explains the update as well as the "
            "true images do, by other images, no better than guessing without the "
            "update. This does not prove that no attack can."
        )
    return (
        "NOT RECONSTRUCTED by this attack: no better than guessing without the update. "
        "This does not prove that no attack can."
    )


def verdict_blind(
    evidence: Evidence, form: str | None = None, tried: tuple[str, ...] = ()
) -> str:
    """Returns what the fit means where the truth is not known.

    Args:
      evidence: of the reconstruction.
      form: what the update was taken for, in words; None: for what it should be.
      tried: what else it was taken for, in vain.
    """
    fit = evidence.fit
    if fit is None:
        return FAILED
    taken = f" The update was taken as {form}." if form else ""
    rests = f"the cosine distance of its update from the one observed, {fit:.1e}"
    if fit < FITTED:
        share = "almost completely" if fit < CLOSELY else "in part"
        explains = f"{taken} The reconstruction explains the update {share}; this rests"
        if evidence.certified == 1:
            return (
                "LEAKS: every image is certified, by equations of the update alone. "
                f"Without the truth its quality is not measured.{explains} on {rests}."
            )
        return (
            f"Without the truth no quality can be given.{explains} on {rests}, alone, "
            "which other images may reach as well: look at the picture."
        )
    if evidence.interrupted:
        return f"NO VERDICT: the attack was interrupted. {_NOTHING}"
    if evidence.falling:
        return (
            "NO VERDICT: the objective still fell when the budget was spent: give the "
            f"attack more steps. {_NOTHING}"
        )
    others = f", nor taken as {', '.join(tried)}" if tried else ""
    return (
        f"NOT FITTED: the reconstruction does not explain the update{others} (this "
        f"rests on {rests}). {_NOTHING}"
    )


_NOTHING = "This says nothing about what the update gives away."
FAILED = f"FAILED: no trial had a finite objective with a finite gradient. {_NOTHING}"
