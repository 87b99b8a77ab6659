"""What an audit found: metrics by name, nulls, threat model, verdict."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invertjax.auditing import certainty, verdicts
from invertjax.auditing.strips import strips
from invertjax.base import Arrays, Row
from invertjax.reports import pictures, text

COLUMNS = ("target", "PSNR dB", "SSIM", "labels", "steps", "stopped")
BLIND = ("target", "objective", "misfit", "steps", "stopped")
NULLS = {
    "grey_image": "guessing a grey image",
    "mean_image": "guessing the mean public image",
    "random_image": "guessing random public images",
    "shuffled_update": "the same attack on a shuffled update",
}


class Metric(NamedTuple):
    """Values of one score: an array, and the name of each axis, such as ("update",)."""

    values: np.ndarray
    axes: tuple[str, ...]


class Report(NamedTuple):
    """What an audit found.

    attack: that was run, by name.
    metrics: by name. Of a reconstruction "psnr" (dB) and "ssim" have the axes
      ("update", "image"), and so has "certified" (bool); "label_recall", "loss" and
      "update_rms" the axis "update".
      "fit" is the cosine distance of the reconstruction's update from the one
      observed, "fit_truth" that of the true batch, as the attacker simulates its
      client. Without the truth there is "fit" alone. Scores are NaN where an attack
      came to nothing, and only its start could be scored: no mean counts them.
    nulls: what is reached without knowing the update, in dB, by name.
    threat_model: what the attacker was given.
    verdict: one line for a reader who is not an engineer.
    facts: plain values that belong beside the figures: times, layout, failures.
    rows: a dict an update, as in metrics.jsonl.
    arrays: a dict an update: "target" `[]`, which update it is of; "image"
      `[B, H, W, C]`, "label" `[B]`, and "original" where the truth is known, in the
      same order.
    """

    attack: str
    metrics: dict[str, Metric]
    nulls: dict[str, float]
    threat_model: dict[str, Any]
    verdict: str
    facts: dict[str, Any]
    rows: list[Row]
    arrays: list[Arrays]

    @property
    def summary(self) -> dict[str, Any]:
        """Returns the content of summary.json: flat keys, and the threat model."""
        facts = dict(self.facts)
        last = {name: facts.pop(name) for name in _LAST if name in facts}
        scores = _scores(self) if "psnr" in self.metrics else _blind(self)
        return {
            "targets": len(self.rows),
            "attack": self.attack,
            **facts,
            "failed": sum(row["loss"] is None for row in self.rows),
            "loss_mean": _mean([r["loss"] for r in self.rows if r["loss"] is not None]),
            **scores,
            **certainty.shares(self.rows),
            "verdict": self.verdict,
            **last,
            "threat_model": self.threat_model,
        }

    def __str__(self) -> str:
        """Returns the table of a terminal."""
        return "\n".join(_lines(self))

    def _repr_html_(self) -> str:
        """Returns originals beside reconstructions, and the table, for a notebook."""
        picture = base64.b64encode(self.picture()).decode()
        return (
            f"<p><b>{html.escape(self.verdict)}</b></p>"
            f'<img alt="originals and reconstructions" style="max-width: none" '
            f'src="data:image/png;base64,{picture}">'
            f"<pre>{html.escape(str(self))}</pre>"
        )

    def picture(self) -> bytes:
        """Returns originals and reconstructions as a PNG file; needs Pillow.

        Images of one channel are grey, of three in colour; of any other number every
        channel is a tile of its own in grey, and the title says so.
        """
        return pictures.png(pictures.grid(strips(self.rows, self.arrays)))

    def files(self, picture: bool = True) -> dict[str, bytes]:
        """Returns the report as files, by name; with the picture it needs Pillow."""
        lines = [json.dumps(row, allow_nan=False) + "\n" for row in self.rows]
        summary = json.dumps(self.summary, indent=2, allow_nan=False) + "\n"
        arrays = io.BytesIO()
        if self.arrays:
            everything: dict[str, Any] = stacked(self.arrays)
            np.savez(arrays, **everything)
        drawn = {"grid.png": self.picture()} if picture else {}
        return {
            "metrics.jsonl": "".join(lines).encode(),
            "summary.json": summary.encode(),
            "reconstructions.npz": arrays.getvalue(),
            **drawn,
        }

    def save(self, folder: Any, picture: bool = True) -> None:
        """Writes `files(picture)` into a folder, each of them whole or not at all."""
        from invertjax.cli import run_folder

        run_folder.write_all(folder, self.files(picture))


_OF_RESULTS = ("psnr", "ssim", "label_recall", "fit")
_LAST = ("update_rms_mean", "defense_to_rms", "victim")


def reconstruction(
    attack: str,
    rows: Sequence[Row],
    arrays: Sequence[Arrays],
    nulls: Mapping[str, Mapping[str, float]],
    threat_model: dict[str, Any],
    facts: dict[str, Any],
) -> Report:
    """Returns the report of an attack that reconstructs images.

    Args:
      attack: that was run.
      rows, arrays: of `scores.scored`, one each for an update.
      nulls: `{name: {"psnr_mean": dB}}`.
      threat_model: what the attacker was given.
      facts: see `Report`.
    """
    per_update = {
        name: Metric(_floats([row[name] for row in rows]), ("update",))
        for name in ("label_recall", "loss", "update_rms", "fit", "fit_truth")
        if name in rows[0]
    }
    per_image = {
        name: Metric(_floats([row[name] for row in rows]), ("update", "image"))
        for name in ("psnr", "ssim")
        if rows[0].get(name)
    }
    if all("certified" in row for row in rows):  # results of earlier versions have none
        proven = np.asarray([row["certified"] for row in rows], bool)
        per_image["certified"] = Metric(proven, ("update", "image"))
    failed = [row["loss"] is None for row in rows]
    for name, metric in (per_update | per_image).items():
        if name in _OF_RESULTS:
            metric.values[failed] = np.nan
    floors = {name: value["psnr_mean"] for name, value in nulls.items()}
    return Report(
        attack,
        {**per_image, **per_update},
        floors,
        threat_model,
        _verdict(rows, floors, threat_model["labels"], facts),
        {**facts, "update_rms_mean": float(np.mean([r["update_rms"] for r in rows]))},
        list(rows),
        list(arrays),
    )


def _verdict(
    rows: Sequence[Row],
    floors: Mapping[str, float],
    labels: str,
    facts: Mapping[str, Any],
) -> str:
    interrupted = any(row["stopped"] == "interrupted" for row in rows)
    rows = [row for row in rows if row["loss"] is not None]
    if not rows:
        return verdicts.FAILED
    evidence = _evidence(rows, facts)._replace(interrupted=interrupted)
    if "psnr" not in rows[0]:
        if facts["interrupted"]:  # before all forms of the update were tried
            evidence = evidence._replace(interrupted=True)
        tried = tuple(facts.get("update_forms_tried", ()))
        return verdicts.verdict_blind(evidence, facts.get("update_form"), tried)
    scores: list[list[float]] = [row["psnr"] for row in rows]
    psnr = float(np.mean([np.mean(score) for score in scores]))
    return verdicts.verdict(psnr, max(floors.values()), labels, evidence)


def _evidence(rows: Sequence[Row], facts: Mapping[str, Any]) -> verdicts.Evidence:
    def mean(name: str) -> float | None:
        found = [row.get(name) for row in rows]
        return None if None in found else float(np.mean(_floats(found)))

    falling = [row.get("still_falling", False) for row in rows]
    return verdicts.Evidence(
        falling=float(np.mean(falling)) > 0.5,
        fit=mean("fit"),
        fit_truth=mean("fit_truth"),
        closed_form=facts.get("closed_form", ""),
        certified=certainty.shares(rows)["certified_share"] or 0.0,
    )


def _scores(report: Report) -> dict[str, Any]:
    done = [row["loss"] is not None for row in report.rows]
    values = {name: one.values[done] for name, one in report.metrics.items()}
    psnr: np.ndarray = values["psnr"].mean(axis=1)
    return {
        "psnr_mean": float(np.mean(psnr)) if len(psnr) else None,
        "psnr_std": float(np.std(psnr)) if len(psnr) else None,
        "psnr_min": float(np.min(psnr)) if len(psnr) else None,
        "ssim_mean": _mean(values.get("ssim", ())),
        "label_recall": _mean(values["label_recall"]),
        **{f"null_{name}": value for name, value in report.nulls.items()},
    }


def _blind(report: Report) -> dict[str, Any]:
    row = report.rows[0]
    return {
        "psnr_mean": None,
        "truth": "not given: no PSNR can be computed",
        "fit": None if row["loss"] is None else row["fit"],
    }


def _lines(report: Report) -> list[str]:
    summary, scored = report.summary, "psnr" in report.metrics
    header = COLUMNS if scored else BLIND
    lines = [text.table([_line(row) for row in report.rows], header)]
    if scored:
        lines.append(_said_of_scores(summary))
        lines += [
            f"  {value:6.2f} dB  {NULLS.get(name, name)}"
            for name, value in report.nulls.items()
        ]
    lines += certainty.said(summary)
    lines.append(
        f"{summary['seconds_compile']:.1f} s to compile, "
        f"{summary['seconds_run']:.1f} s to run: {summary['layout']}"
    )
    if summary.get("derivatives"):
        lines.append(f"Derivatives: {summary['derivatives']}")
    lines.append("The attacker was given:")
    lines += [f"  {name}: {value}" for name, value in report.threat_model.items()]
    return [*lines, report.verdict]


def _said_of_scores(summary: Mapping[str, Any]) -> str:
    failed = summary["failed"]
    left_out = f"; {failed} failed, and are left out" if failed else ""
    if summary["psnr_mean"] is None:
        return f"PSNR of 0 targets{left_out}"
    return (
        f"PSNR {summary['psnr_mean']:.2f} +- {summary['psnr_std']:.2f} dB over "
        f"{summary['targets'] - failed} targets (lowest {summary['psnr_min']:.2f})"
        f"{left_out}"
    )


def _line(row: Row) -> tuple[str, ...]:
    """Returns one row of the table, under COLUMNS or BLIND."""
    if row["loss"] is None:  # what was scored is only the start
        scores = ["-"] * (len(COLUMNS if "psnr" in row else BLIND) - 3)
    elif "psnr" in row:
        scores = [
            f"{np.mean(row['psnr']):.2f}",
            f"{np.mean(row['ssim']):.3f}" if row["ssim"] else "-",
            f"{row['label_recall']:.0%}",
        ]
    else:
        values = (row["loss"], row["fit"])
        scores = ["-" if value is None else f"{value:.2e}" for value in values]
    return (str(row["target"]), *scores, str(row["steps"]), row["stopped"])


def stacked(arrays: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Returns the arrays of all updates by name, along a leading axis."""
    return {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.asarray([np.nan if v is None else v for v in values], float)


def _mean(values: Sequence[float] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
