"""What the attacker was given, in words: no figure means anything without it."""

from typing import Any

from invertjax.auditing.attacker import Attacker
from invertjax.auditing.situations import Target, Threat


def threat_model(
    row: Attacker,
    target: Target,
    threat: Threat,
    *,
    warm_start: str | None = None,
    public: bool = False,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the threat model as plain values, by name.

    Args:
      row: of the attack that was run.
      target: as the client has it, with its numbers.
      threat: what the attacker was told.
      warm_start: the attack that it started from.
      public: whether the attacker has public images.
      known: what the caller knows better: lines that take the place of ours, such as
        "server", "batch_norm" and "public_data".
    """
    found = {
        "server": f"honest-but-curious: sees {_seen(target)} and the model",
        "attack": row.name + (f", from {warm_start}" if warm_start else ""),
        "labels": threat.labels,
        "batch_size": "known",
        "update": "one gradient (FedSGD)",
        "local_steps": "none",
        "defense": [str(one) for one in target.protections] or "none",
        "defense_adaptive": _defense(row, target, threat),
        "batch_norm": "as the given loss has it",
        "public_data": "none",
        "selection": "lowest objective over restarts and iterates, never the truth",
    }
    told = [one for one in target.protections if one.told and threat.protection_known]
    if told:
        found["told"] = "; ".join(f"of {one}: {one.told}" for one in told)
    if uses_public_data(row, target, threat):
        found["public_data"] = "public images" if public else "noise images"
    if target.local is not None:
        found["update"] = "local training (FedAvg)"
        found["local_steps"] = _local(target, threat)
    # A loss of one of our adapters says in which mode its batch norms are.
    return {**found, **getattr(target.loss_fn, "known", {}), **(known or {})}


def uses_public_data(row: Attacker, target: Target, threat: Threat) -> bool:
    """Returns whether the attack looks at images outside the targets: for a prior, or
    to count labels. (Guesses to compare with are no part of the attack.)"""
    return row.public or (threat.labels == "inferred" and target.shape[0] > 1)


def _seen(target: Target) -> str:
    if target.members is None:
        return "one client's update"
    return f"only the mean of {len(target.members)} clients' updates, their weights"


def _defense(row: Attacker, target: Target, threat: Threat) -> str:
    if not target.protections:
        return "no defense"
    if not threat.protection_known:
        return "no: the attacker does not know of the defense"
    if row.closed_form:
        return f"no: known, but {row.name} has no adaptive form"
    adapts = row.adapts(target.protections) if row.adapts else None
    if adapts is not None:
        return adapts
    without = [one.name for one in target.protections if not one.is_adaptable]
    if not without:
        return "yes: the attack is adapted to the defense"
    share = "no" if len(without) == len(target.protections) else "partly"
    return f"{share}: known, but there is no adaptive form of {', '.join(without)} here"


def _local(target: Target, threat: Threat) -> str:
    if not threat.local_known:
        counted = threat.labels == "inferred" and target.shape[0] > 1
        but = " (but their number and rate serve to count labels)" if counted else ""
        return f"unknown: the update is treated as one gradient{but}"
    assert target.local is not None
    order = "unknown" if target.local.shuffle else "known"
    return f"known, with learning rate and mini-batch size; order {order}"
