"""Do two contestants work on the same problem? Compared before anything is timed."""

import pathlib
from typing import NamedTuple

import numpy as np

# Float32 on both sides, in another order of summation.
OBJECTIVE = 1e-4  # absolute; the objective is at most 2 and a little
GRADIENT = 1e-2  # relative, in the 2-norm; measured: 1e-6, a few 1e-3 with batch norm
PIXEL, SHARE = 1e-4, 0.99  # signs amplify rounding, but seldom


class Agreement(NamedTuple):
    """What differs between two contestants; gradient: None where one has none."""

    objective: float
    gradient: float | None
    share: float

    @property
    def holds(self) -> bool:
        close = self.gradient is None or self.gradient <= GRADIENT
        return self.objective <= OBJECTIVE and close and self.share >= SHARE

    def __str__(self):
        gradient = "" if self.gradient is None else f", gradients {self.gradient:.1e}"
        return (
            f"objectives {self.objective:.1e} apart{gradient}; "
            f"{self.share:.2%} of the pixels of the first iterates agree"
        )


def compare(reference: pathlib.Path, other: pathlib.Path) -> Agreement:
    """Compares what two contestants wrote on `check`."""
    with np.load(reference) as a, np.load(other) as b:
        gradient = None
        if "gradient" in b:
            gap = np.linalg.norm(a["gradient"] - b["gradient"])
            gradient = float(gap / np.linalg.norm(a["gradient"]))
        count = min(len(a["iterates"]), len(b["iterates"]))
        same = np.abs(a["iterates"][:count] - b["iterates"][:count]) <= PIXEL
        # The worst of the iterates: they part more and more.
        share = float(same.reshape(count, -1).mean(axis=1).min())
        return Agreement(float(abs(a["objective"] - b["objective"])), gradient, share)
