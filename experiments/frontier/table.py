"""What a frontier found: a row for every defense and strength."""

import pathlib
from typing import Any

import numpy as np
import pandas

from experiments.frontier import accuracy, run
from experiments.frontier.rows import LABELS, TRAININGS
from experiments.frontier.rows import read as read_rows
from experiments.settings.federation import Federation
from experiments.settings.settings import Settings
from experiments.show import summaries
from experiments.sweep import table as table_

Frame = Any  # of pandas, whose own annotations do not survive indexing
PLACE = ["dataset", "model"]
POINT = [*PLACE, "defense"]
NEEDED = (*PLACE, "train_steps", "attack", "defense_known", "ssim")  # of attacks


def read(folder: pathlib.Path, cells: list[Settings], plan: Federation) -> Frame:
    """Returns the rows of frontier.csv.

    Of all attackers and stages of training (`train_steps`) the one with the highest
    mean PSNR counts. Columns: dataset, model, defense, defense_name, strength; psnr,
    its deviation over targets and seeds, ssim; which attack, whether it is adaptive,
    and at which stage; the number of targets; the share of labels that updates give
    away, at most over stages; psnr_guess, of what never saw the update; accuracy and
    its deviation over seeds; epsilon, delta; pareto.
    """
    attacked = _attacked(folder)
    strongest = attacked.loc[attacked.groupby(POINT)["psnr"].idxmax()]
    found = strongest.merge(_labels(folder, cells), on=POINT, how="left")
    found = found.merge(_accuracies(folder, cells, plan), on=POINT, how="left")
    found["pareto"] = False
    for _, place in found.groupby(PLACE):
        # Below what a guess scores nothing is left to protect.
        place = place[place["accuracy"].notna()]  # whose federation did not fail
        leak = place[["psnr", "psnr_guess"]].max(axis=1).to_numpy()
        kept = place["accuracy"].to_numpy()
        found.loc[place.index, "pareto"] = pareto(leak, kept)
    order = [*PLACE, "defense_name", "strength"]
    return found.sort_values(order, na_position="first").reset_index(drop=True)


def pareto(psnr: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Returns the Pareto front as `[n]` bool: no other point leaks at most as much at
    an accuracy at least as high, and is better in one of them."""
    leaks = psnr[:, None] >= psnr[None]
    costs = accuracy[:, None] <= accuracy[None]
    strictly = (psnr[:, None] > psnr[None]) | (accuracy[:, None] < accuracy[None])
    return ~np.any(leaks & costs & strictly, axis=1)


def cheapest(table: Frame, threshold: float) -> list[str]:
    """Says for every data set and model which defense costs least accuracy, of those
    that keep the PSNR under a threshold in dB."""
    return [
        f"{dataset}, {model}: {_cheapest(place, threshold)}"
        for (dataset, model), place in table.groupby(PLACE)
    ]


def _cheapest(place: Frame, threshold: float) -> str:
    place = place[place["accuracy"].notna()]
    bare = place[place["defense"] == "none"]
    if bare.empty:
        before = ""
    else:
        before = f"{100 * bare['accuracy'].iloc[0]:.1f}% without a defense"
        if bare["psnr"].iloc[0] < threshold:
            leak = f"{bare['psnr'].iloc[0]:.1f}"
            return f"no attack reaches {threshold:g} dB ({leak} dB), {before}."
    enough = place[(place["psnr"] < threshold) & (place["defense"] != "none")]
    if enough.empty:
        return f"no defense that was tried keeps the PSNR under {threshold:g} dB."
    best = enough.loc[enough["accuracy"].idxmax()]
    epsilon = best["epsilon"]
    spent = "" if pandas.isna(epsilon) else f", epsilon {rounded(epsilon)}"
    return (
        f"{best['defense']} keeps the PSNR under {threshold:g} dB ({best['psnr']:.1f} "
        f"dB) at {100 * best['accuracy']:.1f}% accuracy{spent}; {before}."
    )


def text(table: Frame) -> str:
    """Returns the table as a person reads it."""
    shown = pandas.DataFrame(
        {
            "data": table["dataset"],
            "model": table["model"],
            "defense": table["defense"],
            "PSNR dB": table["psnr"].map("{:.1f}".format),
            "guess": table["psnr_guess"].map("{:.1f}".format),
            "by": [_by(row) for row in table.itertuples()],
            "labels": table["label_recall"].map("{:.0%}".format),
            "accuracy": table["accuracy"].map("{:.1%}".format),
            "epsilon": ["" if pandas.isna(x) else rounded(x) for x in table["epsilon"]],
            "Pareto": np.where(table["pareto"], "*", ""),
        }
    )
    return shown.to_string(index=False)


def rounded(epsilon: float) -> str:
    """Returns three digits, or a whole number."""
    return f"{epsilon:,.0f}" if epsilon >= 100 else f"{epsilon:.3g}"


def _by(row: Any) -> str:
    """Says which attack was the strongest."""
    known = ", knows" if row.adaptive else ""
    stage = f", after {row.train_steps} steps" if row.train_steps else ""
    return f"{row.attack}{known}{stage}"


def _attacked(folder: pathlib.Path) -> Frame:
    """Returns means over targets and seeds, a row an attacker and stage."""
    frame = summaries.read(folder / run.ATTACKS, NEEDED)
    frame = frame[summaries.done(frame)].copy()
    frame["adaptive"] = frame["defense_known"].fillna(False).astype(bool)
    keys = [*POINT, "defense_name", "train_steps", "attack", "adaptive"]
    columns = {
        "strength": ("strength", "first"),
        "psnr": ("psnr", "mean"),
        "psnr_std": ("psnr", "std"),
        "ssim": ("ssim", "mean"),
        "targets": ("psnr", "size"),
    }
    return frame.groupby(keys, as_index=False, dropna=False).agg(**columns)


def _labels(folder: pathlib.Path, cells: list[Settings]) -> Frame:
    """Returns what updates give away and what guesses score, a row a point."""
    found = _done(folder, LABELS, "cell")
    rows = [
        {**_point(cell), **found[name]}
        for cell in cells
        if (name := table_.name_of(cell)) in found
    ]
    frame = _frame(rows, ["label_recall", "guess"])
    columns = {"label_recall": ("label_recall", "max"), "psnr_guess": ("guess", "max")}
    return frame.groupby(POINT, as_index=False).agg(**columns)


def _accuracies(folder: pathlib.Path, cells: list[Settings], plan: Federation) -> Frame:
    """Returns what federations reached, a row a point."""
    found = _done(folder, TRAININGS, "training")
    wanted = {accuracy.setup_of(cell): _point(cell) for cell in cells}
    rows = [
        {**point, **found[name]}
        for setup, point in wanted.items()
        if (name := accuracy.name_of(setup, plan)) in found
    ]
    frame = _frame(rows, ["accuracy", "dropped", "epsilon", "delta"])
    columns = {
        "accuracy": ("accuracy", "mean"),
        "accuracy_std": ("accuracy", "std"),
        "dropped": ("dropped", "sum"),
        "epsilon": ("epsilon", "max"),
        "delta": ("delta", "max"),
    }
    return frame.groupby(POINT, as_index=False).agg(**columns)


def _frame(rows: list[dict[str, Any]], numbers: list[str]) -> Frame:
    """Returns rows of points and numbers, however many there are."""
    frame = pandas.DataFrame(rows, columns=[*POINT, *numbers])
    return frame.astype(dict.fromkeys(numbers, float))


def _done(folder: pathlib.Path, file: str, column: str) -> dict[str, dict[str, Any]]:
    """Returns the rows of a file that did not fail, by a column."""
    rows = read_rows(folder, file)
    return {row[column]: row for row in rows if "failed" not in row}


def _point(cell: Settings) -> dict[str, Any]:
    return {
        "dataset": cell.data.dataset,
        "model": cell.victim.model,
        "defense": table_.defense_of(cell),
    }
