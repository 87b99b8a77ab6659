"""Of how many images an attack is certain, and how often that is wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invertjax.base import Row

EXACTLY = 40.0  # dB: a root mean square error of a hundredth of the range


def shares(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns shares over all images, as summary.json has them.

    certified_share: those that are proven. recovered_share: those at 40 dB or more.
    false_certificates: how many are proven, but below 40 dB. The last two are None
    where the truth is not known, and the first where rows of an earlier version do not
    say it.
    """
    if not rows or any("certified" not in row for row in rows):
        return dict.fromkeys(
            ("certified_share", "recovered_share", "false_certificates")
        )
    certified = np.asarray([row["certified"] for row in rows], bool)
    found: dict[str, Any] = {
        "certified_share": float(np.mean(certified)),
        "recovered_share": None,
        "false_certificates": None,
    }
    if "psnr" in rows[0]:
        done = np.asarray([row["loss"] is not None for row in rows])
        exact = np.asarray([row["psnr"] for row in rows], float) >= EXACTLY
        exact &= done[:, None]
        found["recovered_share"] = float(np.mean(exact))
        found["false_certificates"] = int(np.sum(certified & ~exact))
    return found


def said(summary: Mapping[str, Any]) -> list[str]:
    """Returns a line for a terminal; none where nothing is certified, nor was tried."""
    share, false = summary["certified_share"], summary["false_certificates"]
    if not share:
        reason = summary.get("not_certified")
        return [f"Nothing is certified: {reason}"] if reason else []
    by = f", by {summary['certified_by']}" if "certified_by" in summary else ""
    wrong = "" if false is None else f"; {false} of these certificates are false"
    return [f"Certified without the truth: {share:.0%} of the images{by}{wrong}"]
