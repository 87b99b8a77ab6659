"""Attacks on what the server sees of a round, with the machinery of one audit."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.audit import attacking, label_inference, prepare, report, scene
from experiments.audit import run as audit
from experiments.audit.prepare import Bars, Prepared
from experiments.federate.training import Training
from experiments.settings import federation, traced
from experiments.settings.config import Config
from invertjax import federated

PROBES = 512  # held-out images, for label counts and baselines
SHOWN = 16  # rows of a picture, and images in one


class Audit(NamedTuple):
    """What came of one attack.

    found: numbers for a row of metrics.jsonl; None in place of scores where there was
      nothing to attack. verdict: a line. picture: originals and reconstructions, None
      if nothing was attacked.
    """

    found: dict
    verdict: str
    picture: Any


NOTHING = Audit({"psnr_mean": None}, "nothing to attack: all clients dropped", None)


def attack(
    training: Training,
    seen: federated.Seen,
    batch: Any,
    bars: Bars = prepare.SILENT,
    known: dict | None = None,
) -> Audit:
    """Attacks the updates that were shared in a round, or their mean.

    PSNR is of images: mean, standard deviation, the worst and the best of all.

    Args:
      training: whose server it is.
      seen: by it.
      batch: pytree `[m, k, ...]`, the truth: what the clients used.
      bars: progress.
      known: what earlier audits of this training have compiled; it is added to.

    Raises:
      KeyboardInterrupt: if it was interrupted; nothing is kept of it.
      ValueError: if labels cannot be inferred from the model.
    """
    counts = np.flatnonzero(np.asarray(seen.weights) > 0)
    if not len(counts):
        return NOTHING
    known = {} if known is None else known
    ready, same = _prepared(training, seen, batch, counts, known)
    rows, pictures = [], []

    def on_row(row, arrays):
        rows.append(row)
        pictures.append(arrays)

    program = known.get((*same, ready.attack))
    measured = audit.run(ready, bars=bars, on_row=on_row, program=program)
    known[same], known[(*same, ready.attack)] = ready.scene, measured["program"]
    null = {} if measured["interrupted"] else audit.nulls(ready, measured, bars)
    missing = ready.config.null_control and "shuffled_update" not in null
    if measured["interrupted"] or missing:
        raise KeyboardInterrupt
    summary = audit.summarise(ready, rows, measured, null)
    return Audit(_numbers(summary, rows), summary["verdict"], _picture(rows, pictures))


def threat_model(training: Training, name: str) -> dict:
    """What the attacker was given, as plain values for `summary.json`."""
    settings, plan = training.settings, training.federation
    members = plan.participants
    attacked = federation.attacked(settings, plan, members)
    sees = f"every client's update: {attacked.targets} of {members} are attacked"
    if plan.sees == "mean":
        sees = f"only the mean of {members} clients' updates, and their weights"
    counted = attacked.labels == "inferred" and attacked.batch_size > 1
    return {
        **report.threat_model(attacked, name),
        "server": f"honest-but-curious: sees the model and {sees}",
        "public_data": f"--split={settings.split}" if counted else "none",
    }


def _prepared(training, seen, batch, counts, known) -> tuple[Prepared, tuple]:
    """The attack, and what is the same wherever it compiles to the same."""
    config = federation.attacked(training.settings, training.federation, len(counts))
    mean = training.federation.sees == "mean"
    same = config, tuple(np.asarray(seen.weights)[counts]) if mean else None
    stage = _scene(config, training, seen, batch, counts)
    if same in known:
        now = dict(shared=stage.shared, trials=stage.trials, truth=stage.truth)
        stage = known[same]._replace(**now)
    images = training.test.images[:PROBES].astype(config.dtype)
    probes = _probes(config, images, training.test.labels[:PROBES])
    stage = label_inference.with_labels(config, stage, probes)
    if config.attack == "posterior":
        stage = scene.with_smoothness(stage, images)
    name = attacking.chosen(config, stage)
    built, classes = training.victim, training.data.num_classes
    ready = Prepared(config, stage, name, images, built.notes, classes, built)
    return ready, same


def _scene(config: Config, training, seen, batch, counts) -> scene.Scene:
    """What the server sees as trials: a client each, or the mean of all."""
    if training.federation.sees == "mean":
        roles = _averaged(training.roles, seen.weights[counts])
        update = jax.tree.map(lambda leaf: leaf[None], _secure_mean(seen))
        truth = jax.tree.map(lambda leaf: _merged(leaf[counts]), jax.device_get(batch))
    else:
        roles, chosen = training.roles, counts[: config.targets]
        update = jax.tree.map(lambda leaf: leaf[chosen], seen.updates)
        truth = jax.tree.map(lambda leaf: leaf[chosen], jax.device_get(batch))
    update = jax.device_get(update)
    given = traced.of(traced.as_attacked(config))
    trials = {
        "update": update,
        "rms": _rms(update),
        "numbers": jax.tree.map(lambda x: np.stack([x] * config.targets), given),
    }
    return scene.Scene(
        roles.simulate,
        roles.share,
        shared={"params": jax.device_get(seen.params)},
        trials=trials,
        truth=truth,
        shape=truth["image"].shape[1:],
        num_classes=training.data.num_classes,
        from_input=training.victim.from_input,
        soften=roles.soften,
        drawn=training.victim.drawn,
        blocks=training.victim.blocks,
    )


def _averaged(roles, weights):
    """The clients of the mean, as one."""
    count, weights = len(weights), np.asarray(weights)

    def simulate(config):
        return federated.averaged(roles.simulate(config), count, weights)

    def soften(config, sharpness):
        return federated.averaged(roles.soften(config, sharpness), count, weights)

    return roles._replace(simulate=simulate, soften=roles.soften and soften)


@jax.jit
def _secure_mean(seen):
    return federated.secure_mean()(seen._replace(key=jax.random.clone(seen.key)))


def _merged(leaf):
    """`[m, k, ...]` to `[1, m * k, ...]`."""
    return leaf.reshape(1, -1, *leaf.shape[2:])


def _probes(config, images, labels):
    """Batches of the attacked size, as its counts of labels need them."""
    size = min(config.batch_size, len(images))
    count = len(images) // size
    rows = np.arange(count * size).reshape(count, size)
    return {"image": images[rows], "label": labels[rows]}


def _rms(updates):
    """`[N]`, of all coordinates of each."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(updates)]
    return np.sqrt(np.mean(np.concatenate(leaves, axis=1) ** 2, axis=1))


def _numbers(summary, rows):
    psnr = np.concatenate([row["psnr"] for row in rows])
    nulls = {name: x for name, x in summary.items() if name.startswith("null_")}
    return {
        "attack": summary["attack"],
        "images": len(psnr),
        "psnr_mean": float(psnr.mean()),
        "psnr_std": float(psnr.std()),
        "psnr_min": float(psnr.min()),
        "psnr_max": float(psnr.max()),
        "ssim_mean": summary["ssim_mean"],
        "label_recall": summary["label_recall"],
        "failed": summary["failed"],
        **nulls,
        "update_rms": summary["update_rms_mean"],
        "seconds_attack": summary["seconds_compile"] + summary["seconds_run"],
    }


def _picture(rows, arrays):
    lines = []
    for row, batch in list(zip(rows, arrays, strict=True))[: SHOWN // 2]:
        title = f"update {row['target']}"
        captions = [f"{value:.1f} dB" for value in row["psnr"]]
        lines.append((f"{title}\noriginal", batch["original"][:SHOWN], []))
        lines.append(("  reconstructed", batch["image"][:SHOWN], captions))
    return report.grid(lines)
