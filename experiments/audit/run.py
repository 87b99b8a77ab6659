"""One reconstruction run, from a resolved config to rows, arrays and a summary."""

import platform
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np
import optax

import invertjax
from experiments.audit import attacking, baselines, report, scene
from experiments.audit.prepare import SILENT, Bars, Prepared
from experiments.audit.prepare import prepare as prepare
from experiments.settings import defense_flags
from experiments.settings.config import Config
from experiments.victims.inputs import Sources as Sources
from experiments.victims.inputs import read as read
from invertjax import driver, metrics
from invertjax.base import Stop
from invertjax.cli import processes
from invertjax.driver import stopping

RULES = {
    "never": stopping.NEVER,
    "halving": stopping.halving(),
    "plateau": stopping.plateau(),
}


def run(
    prepared: Prepared,
    *,
    first: int = 0,
    bars: Bars = SILENT,
    on_row: Callable[[dict, dict], None] | None = None,
    program: driver.Program | None = None,
) -> dict:
    """Attacks the targets from `first` on, and returns the summary's measured part.

    Args:
      prepared: from `prepare`.
      first: targets before this one are done (a resumed run).
      bars: progress.
      on_row: told each finished target: its row, and its batch of arrays; None: they
        are not scored here.
      program: of a run of the same config and scene, but for its arrays.
    """
    config, stage = prepared.config, prepared.scene
    count = len(stage.trials["rms"])
    keys = keys_of(config, 1, count)
    compiled = program is not None
    if program is None:
        make = attacking.maker(config, stage, prepared.attack)
        limit = processes.memory_limit()
        args = (make, stage.shared, stage.trials, keys)
        program = driver.build(*args, memory_limit=limit)
    measured = {
        "program": program,
        "seconds_compile": 0.0 if compiled else program.seconds_compile,
        "seconds_run": 0.0,
        "interrupted": False,
    }
    if first == count:
        return measured

    def report_chunk(progress):
        bars.steps(progress)
        bars.check()

    def report_group(rows, results):
        if on_row is None:
            return
        picked = driver.best(results)
        for i, row in enumerate(rows):
            result = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), picked)
            on_row(*scored(prepared, first + row, result))

    rest = jax.tree.map(lambda leaf: leaf[first:], stage.trials)
    done = driver.run(
        program,
        stage.shared,
        rest,
        keys[first:],
        rule=RULES[config.stop or "never"],
        on_chunk=report_chunk,
        on_group=report_group,
    )
    stopped = np.asarray(done.results.stopped)
    interrupted = len(stopped) < count - first or _interrupted(stopped)
    return {**measured, "seconds_run": done.seconds, "interrupted": interrupted}


def keys_of(config: Config, use: int, count: int) -> jax.Array:
    """`[count, R]` keys of the run; use: 1 for its trials, 2 for the control."""
    keys = jax.random.split(jax.random.key(config.seed + use), count)
    return jax.vmap(lambda key: jax.random.split(key, config.restarts or 1))(keys)


def nulls(prepared: Prepared, measured: dict, bars: Bars = SILENT) -> dict:
    """Scores that need no knowledge of the update, beside which others are read.

    Without "shuffled_update" where that was not asked for, or was interrupted.
    """
    config, stage = prepared.config, prepared.scene
    if stage.truth is None:
        return {}
    found = baselines.guesses(stage.truth, prepared.public, config.seed)
    if not config.null_control or measured["interrupted"]:
        return found
    results = driver.run(
        measured["program"],
        stage.shared,
        scene.shuffled(config, stage),
        keys_of(config, 2, 1),
        on_chunk=lambda progress: bars.check(),
    ).results
    if not _interrupted(np.asarray(results.stopped)):
        image = _finite(driver.best(results).batch["image"][0])
        score = metrics.score({"image": image}, {"image": stage.truth["image"][0]})
        found["shuffled_update"] = {"psnr_mean": float(np.mean(score["psnr"]))}
    return found


def summarise(prepared: Prepared, rows: list[dict], measured: dict, null: dict) -> dict:
    """`summary.json`: flat keys, and the threat model."""
    config = prepared.config
    summary = {
        "targets": len(rows),
        "attack": prepared.attack,
        "layout": str(measured["program"].layout),
        "seconds_compile": measured["seconds_compile"],
        "seconds_run": measured["seconds_run"],
        "interrupted": measured["interrupted"],
        "failed": sum(row["loss"] is None for row in rows),
        "loss_mean": _mean([row["loss"] for row in rows if row["loss"] is not None]),
    }
    if prepared.scene.truth is None:
        summary |= _without_truth(rows[0])
    else:
        summary |= _scores(config, rows, null)
    if summary["failed"] == len(rows):
        summary["verdict"] = "FAILED: no trial had a finite objective."
    rms = float(np.mean([row["update_rms"] for row in rows]))
    summary["update_rms_mean"] = rms
    summary["defense_to_rms"] = _noise_to_rms(config, rms)
    summary["victim"] = prepared.notes
    summary["threat_model"] = report.threat_model(config, prepared.attack)
    return summary


def _scores(config, rows, null):
    psnr = [np.mean(row["psnr"]) for row in rows]
    floor = max(value["psnr_mean"] for value in null.values())
    return {
        "psnr_mean": float(np.mean(psnr)),
        "psnr_std": float(np.std(psnr)),
        "psnr_min": float(np.min(psnr)),
        "ssim_mean": _mean([value for row in rows for value in row["ssim"]]),
        "label_recall": float(np.mean([row["label_recall"] for row in rows])),
        **{f"null_{name}": value["psnr_mean"] for name, value in null.items()},
        "verdict": report.verdict(float(np.mean(psnr)), floor, config.labels),
    }


def _noise_to_rms(config, rms):
    """How large the noise is beside the undefended update's coordinates."""
    specs = defense_flags.specs(config.defense)
    return {
        f"{spec.name}:{spec.value:g}": spec.value / rms if rms else None
        for spec in specs
        if spec.name in ("gaussian", "laplace") and spec.value is not None
    }


def _without_truth(row):
    return {
        "psnr_mean": None,
        "truth": "not given: no PSNR can be computed",
        "fit": row["fit"],
        "verdict": report.verdict_blind(row["fit"]),
    }


def versions() -> dict:
    """What a repetition needs to know of this machine."""
    device = jax.devices()[0]
    modules = {"invertjax": invertjax, "jax": jax, "flax": flax, "optax": optax}
    found = {name: module.__version__ for name, module in modules.items()}
    return {
        "versions": {
            **found,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        "platform": platform.platform(),
    }


_by_image = jax.jit(metrics.by_image)


def scored(prepared: Prepared, index: int, result: Any) -> tuple[dict, dict]:
    """The row of one target, and its arrays; result: of its best restart."""
    stage = prepared.scene
    label = result.batch["label"]
    guess = label.argmax(-1) if label.ndim == 2 else label
    row = {
        "target": index,
        "loss": float(result.loss) if np.isfinite(result.loss) else None,
        "steps": int(result.steps),
        "stopped": Stop.NAMES[int(result.stopped)],
        "labels": [int(value) for value in guess],
        "update_rms": float(stage.trials["rms"][index]),
    }
    images = _finite(result.batch["image"])
    if stage.truth is None:
        fit = attacking.fit(prepared.config, stage, index, result.batch)
        row["fit"] = fit if np.isfinite(fit) else None
        return row, {"image": np.clip(images, 0, 1), "label": guess}
    truth = jax.tree.map(lambda leaf: leaf[index], stage.truth)
    score = metrics.score({"image": images}, truth, by_image=_by_image)
    order = score.pop("order")
    recall = metrics.label_recall(truth["label"], guess, prepared.num_classes)
    row |= {**score, "ssim": score.get("ssim", []), "label_recall": float(recall)}
    row["labels_true"] = [int(value) for value in truth["label"]]
    row["labels"] = [int(guess[i]) for i in order]
    batch = {"image": np.clip(images[order], 0, 1), "label": guess[order]}
    return row, {**batch, "original": truth["image"]}


def _interrupted(stopped):
    return bool(np.any(stopped == Stop.INTERRUPTED))


def _finite(images):
    """What a trial that failed gives back is scored and kept as mid-grey."""
    return np.where(np.isfinite(images), images, 0.5)


def _mean(values):
    return float(np.mean(values)) if len(values) else None
