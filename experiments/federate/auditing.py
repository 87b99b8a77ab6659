"""Attacks on what the server sees of a round, with the machinery of one audit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.audit import prepare
from experiments.federate.training import Training
from experiments.settings.attack import Attack
from experiments.settings.victim import Victim
from invertjax import federated
from invertjax.auditing import Keys, Report, Situation, Target, Watch, observed, run
from invertjax.auditing.attackers import ATTACKERS
from invertjax.auditing.checks import needs_order
from invertjax.auditing.preparing import Prepared
from invertjax.auditing.strips import strips
from invertjax.auditing.threat_model import threat_model
from invertjax.auditing.watch import SILENT
from invertjax.base import Batch, Update
from invertjax.cli import processes
from invertjax.driver import Cache, stopping
from invertjax.reports import pictures

PROBES = 512  # held-out images, for label counts and guesses
SHOWN = 8  # updates in a picture


class Audit(NamedTuple):
    """What came of one attack.

    found: numbers for a row of metrics.jsonl; None in place of scores where there was
      nothing to attack. verdict: a line. picture: originals and reconstructions, None
      if nothing was attacked.
    """

    found: dict[str, Any]
    verdict: str
    picture: Any


NOTHING = Audit({"psnr_mean": None}, "nothing to attack: all clients dropped", None)


def checker(victim: Victim, attack: Attack) -> Callable[[Target, Any], None]:
    """Returns a check that refuses networks that the attack does not fit."""
    return prepare.checker(victim, attack, prepare.threat_of(attack))


def audit(
    training: Training,
    attack: Attack,
    seen: federated.Seen,
    batch: Batch,
    *,
    watch: Watch = SILENT,
    cache: Cache,
) -> Audit:
    """Attacks the updates that were shared in a round, or their mean.

    PSNR is of images: mean, standard deviation, the worst and the best of all; of
    updates of which the attack made nothing there is none.

    Args:
      training: whose server it is.
      attack: settings.
      seen: by the server.
      batch: pytree `[m, k, ...]`, the truth: what the clients used.
      watch: who follows.
      cache: of compiled functions, shared by the audits of a training.

    Raises:
      KeyboardInterrupt: if it was interrupted; nothing is kept of it.
      ValueError: if labels cannot be inferred from the model.
    """
    if not np.any(np.asarray(seen.weights) > 0):
        return NOTHING
    keys, prepared = prepared_for(training, attack, seen, batch, cache=cache)
    report = run.complete(
        keys,
        prepared,
        rule=stopping.RULES[attack.stop or "never"],
        control=bool(attack.null_control),
        certify=False,  # a round has no column for it
        watch=watch,
        memory_limit=processes.memory_limit(),
        cache=cache,
    )
    if report is None or report.facts["interrupted"]:
        raise KeyboardInterrupt
    lines = strips(report.rows[:SHOWN], report.arrays[:SHOWN], "update")
    return Audit(_numbers(report), report.verdict, pictures.grid(lines))


def prepared_for(
    training: Training,
    attack: Attack,
    seen: federated.Seen,
    batch: Batch,
    *,
    cache: Cache,
) -> tuple[Keys, Prepared]:
    """Returns the keys and all that an attack on a round needs; see `audit`."""
    counted = np.flatnonzero(np.asarray(seen.weights) > 0)
    target = attacked(training, tuple(np.asarray(seen.weights)[counted].tolist()))
    situation = _situation(training, target, attack, seen, batch, counted, cache)
    keys = prepare.keys_of(training.run, attack, situation.updates)
    test = training.test
    public = {
        "image": test.images[:PROBES].astype(training.run.dtype),
        "label": test.labels[:PROBES],
    }
    return keys, prepare.prepared_for(
        keys, attack, target, situation, public, cache, shown=PROBES
    )


def attacked(training: Training, weights: tuple[float, ...]) -> Target:
    """Returns what an attack takes for its target: one client, or the mean of all.

    Args:
      training: whose clients they are.
      weights: of the clients of the round that count.
    """
    target = training.target
    if training.federation.sees == "client":
        return target
    size, *shape = target.shape
    return target._replace(shape=(len(weights) * size, *shape), members=weights)


def check_labels(training: Training, attack: Attack) -> None:
    """Refuses to read labels off updates that do not say whose they are.

    Raises:
      ValueError: naming --labels and what stands in its way.
    """
    sizes = sorted({float(len(rows)) for rows in training.partition if len(rows)})
    count = training.federation.participants
    target = attacked(training, (sizes[0], *sizes[-1:] * (count - 1)))
    reason = needs_order(target, prepare.threat_of(attack))
    if reason:
        raise ValueError(
            f"--labels=inferred does not go with --sees={training.federation.sees}: "
            f"{reason}; expected known or joint."
        )


def threats(training: Training, attack: Attack, name: str) -> dict[str, Any]:
    """Returns what the attacker was given, as plain values for `summary.json`.

    Args:
      training: whose server it is.
      attack: settings.
      name: of the attack that was run.
    """
    members, data = training.federation.participants, training.data
    target = attacked(training, (1.0,) * members)
    sees = f"every client's update: {data.targets} of {members} are attacked"
    if target.members is not None:
        sees = f"only the mean of {members} clients' updates, and their weights"
    counted = attack.labels == "inferred" and target.shape[0] > 1
    known = prepare.known(data, training.victim, training.clients, attack)
    return threat_model(
        ATTACKERS[name],
        target,
        prepare.threat_of(attack),
        warm_start=attack.warm_start,
        known={
            **known,
            "server": f"honest-but-curious: sees the model and {sees}",
            "public_data": f"--split={data.split}" if counted else "none",
        },
    )


def _situation(
    training: Training,
    target: Target,
    attack: Attack,
    seen: federated.Seen,
    batch: Batch,
    counted: np.ndarray,
    cache: Cache,
) -> Situation:
    """Returns what the server sees as trials: a client each, or the mean of all."""
    truth = jax.device_get(batch)
    if target.members is None:
        chosen = counted[: training.data.targets]
        updates = jax.tree.map(lambda leaf: leaf[chosen], seen.updates)
        truth = jax.tree.map(lambda leaf: leaf[chosen], truth)
    else:
        mean = cache.jit(("secure_mean",), lambda: _secure_mean)
        updates = jax.tree.map(lambda leaf: leaf[None], mean(seen))
        truth = jax.tree.map(lambda leaf: _merged(leaf[counted]), truth)
    trials = observed.as_trials(jax.device_get(updates))
    params, threat = jax.device_get(seen.params), prepare.threat_of(attack)
    return observed.situation(target, threat, trials, params, truth=truth)


def _secure_mean(seen: federated.Seen) -> Update:
    return federated.secure_mean()(seen._replace(key=jax.random.clone(seen.key)))


def _merged(leaf: Any) -> Any:
    """Returns `[m, k, ...]` as `[1, m * k, ...]`."""
    return leaf.reshape(1, -1, *leaf.shape[2:])


def _numbers(report: Report) -> dict[str, Any]:
    summary, values = report.summary, report.metrics["psnr"].values
    psnr = values[[row["loss"] is not None for row in report.rows]]
    nulls = {name: x for name, x in summary.items() if name.startswith("null_")}
    return {
        "attack": report.attack,
        "images": psnr.size,
        "psnr_mean": float(psnr.mean()) if psnr.size else None,
        "psnr_std": float(psnr.std()) if psnr.size else None,
        "psnr_min": float(psnr.min()) if psnr.size else None,
        "psnr_max": float(psnr.max()) if psnr.size else None,
        "ssim_mean": summary["ssim_mean"],
        "label_recall": summary["label_recall"],
        "certified_share": summary["certified_share"],
        "recovered_share": summary["recovered_share"],
        "false_certificates": summary["false_certificates"],
        "failed": summary["failed"],
        **nulls,
        "update_rms": summary["update_rms_mean"],
        "seconds_attack": summary["seconds_compile"] + summary["seconds_run"],
    }
