"""Seconds to an exact image: the second-order attack beside both of breaching's.

    python -m benchmarks.race [--peers PYTHON] [--targets 4] [--out FOLDER]

The same weights, updates and known labels; every attack with its own start, schedule
and prior, one restart, budgets growing until the mean PSNR is at 30 dB or its seconds
are spent. Writes race.json and prints a table.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import field, quality
from benchmarks.quality import BREACHING_DEFAULTS, Contest
from benchmarks.worker import ROOT
from invertjax import candidates

LEVEL = 30
PEERS = ROOT / ".venv-peers" / "bin" / "python"


def plan(targets: int, side: int, limit: float) -> quality.Plan:
    shape = (targets, 1, 1, side, side, 3)
    starts = np.asarray(candidates.nearly_grey(jax.random.key(1), shape))
    contests = (
        Contest(
            "recursive",
            "engine",
            {"attack": "recursive", "starts": starts},
            (6, 8, 10, 14, 20, 30),
        ),
        Contest(
            "gauss_newton",
            "engine",
            {"attack": "gauss_newton", "starts": starts},
            (12, 18, 24, 32, 40, 50),
        ),
        Contest("inverting_gradients", "engine"),
        BREACHING_DEFAULTS._replace(label="breaching_invertinggradients"),
        Contest(
            "breaching_deepleakage",
            "breaching",
            {"attack": "deep_leakage"},
            (40, 80, 160),
        ),
    )
    ladder = (400, 1_600)
    return quality.Plan(ladder, targets, 1, (LEVEL,), limit, contests)


def lines(model: str, flat: dict[str, Any], contests) -> list[str]:
    """A table: for every budget the PSNR of all targets and a target's seconds."""
    found = [
        "| attack | iterations | seconds a target | compile | PSNR of targets, dB |"
    ]
    found.append("|---|---|---|---|---|")
    for contest in contests:
        prefix = f"{model}_{contest.label}"
        for key in [key for key in flat if key.startswith(f"{prefix}_seconds_")]:
            steps = key.rsplit("_", 1)[1]
            of_targets = flat.get(f"{prefix}_psnr_of_targets_{steps}")
            if of_targets is not None:
                psnr = " ".join(f"{value:.1f}" for value in of_targets)
                seconds, compiling = flat[key], flat[f"{prefix}_compile_{steps}"]
                found.append(
                    f"| {contest.label} | {steps} | {seconds:.2f} | {compiling:.1f} "
                    f"| {psnr} |"
                )
        for ending in ("quality_skipped", "quality_cut"):
            if f"{prefix}_{ending}" in flat:
                found.append(
                    f"| {contest.label} | | | | {flat[f'{prefix}_{ending}']} |"
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race")
    parser.add_argument(
        "--peers", default=PEERS if PEERS.exists() else sys.executable, metavar="PYTHON"
    )
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--limit", type=float, default=90, help="seconds a contestant")
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        contestants = field.gather(str(given.peers), pathlib.Path(folder))
        chosen = plan(given.targets, 32, given.limit)
        flat = quality.measure(given.model, contestants, chosen)
    (given.out / "race.json").write_text(json.dumps(flat, indent=1), "utf-8")
    print("\n".join(lines(given.model, flat, chosen.contests)))


if __name__ == "__main__":
    main()
