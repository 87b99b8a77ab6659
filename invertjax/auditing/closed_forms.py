"""How attacks in closed form are made of what an audit has, and where they apply."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from invertjax import attacks, exact
from invertjax.auditing import clients
from invertjax.auditing.observed import take
from invertjax.auditing.situations import Situation, Target, Threat, Trial
from invertjax.base import Attack, Params, Update
from invertjax.defenses import protection
from invertjax.defenses.protection import Protection
from invertjax.driver.cache import Cache


def analytic(trial: Trial) -> Attack:
    """Makes the attack on the one image of a batch."""
    return attacks.analytic(
        trial.share,
        trial.observed,
        trial.candidate,
        from_input=trial.target.from_input,
    )


def refuses_analytic(target: Target, params: Params, threat: Threat) -> str | None:
    """Returns why there is no dense first layer."""
    del threat
    return attacks.refuses_closed_form(params, target.shape)


def recursive(trial: Trial) -> Attack:
    """Makes the attack that goes down block by block."""
    chain = clients.chain(trial.target, trial.params, trial.threat)
    return attacks.recursive(
        trial.share,
        trial.observed,
        trial.candidate,
        params=trial.params,
        blocks=chain.blocks,
        loss=chain.loss,
    )


def peeling(trial: Trial, *, steps: int) -> Attack:
    """Makes the attack that takes a batch apart."""
    chain = clients.chain(trial.target, trial.params, trial.threat)
    return attacks.peeling(
        trial.share,
        trial.observed,
        trial.candidate,
        params=trial.params,
        blocks=chain.blocks,
        loss=chain.loss,
        steps=steps,
        softened=trial.softened,
        **_told(trial.target, trial.threat),
    )


def refuses_peeling(target: Target, params: Params, threat: Threat) -> str | None:
    """Returns why no layer of a network can be peeled."""
    reason = clients.refuses_blocks(target, params, threat)
    if reason:
        return reason
    blocks = clients.chain(target, params, threat).blocks
    return attacks.refuses_peeling(blocks, params, target.shape)


def peels(situation: Situation, cache: Cache) -> bool:
    """Says whether peeling proves an image of every update, by trying it."""
    target, threat = situation.target, situation.threat
    params = situation.shared.get("params")
    if params is None:  # each update has its own
        params = take(situation.trials["params"], 0)
    if target.local is not None or refuses_peeling(target, params, threat):
        return False
    chain = clients.chain(target, params, threat)
    layer = exact.lowest(chain.blocks, params, target.shape)
    if not layer.pixelwise:
        return False

    def certified(params: Params, update: Update) -> Any:
        told = _told(target, threat)
        found = exact.peel(
            layer, params, update, target.shape[0], loss=chain.loss, **told
        )
        return found.certified

    compiled = cache.jit(("peel", target, threat), lambda: certified)
    for i in range(situation.updates):
        own = situation.trials.get("params")
        of = params if own is None else take(own, i)
        if not np.any(compiled(of, take(situation.trials["update"], i))):
            return False
    return True


def adapts_peeling(protections: Sequence[Protection]) -> str:
    """Returns what peeling makes of known defenses, for the threat model."""
    if _known_noise(protections) is not None:
        return "yes: certificates allow for the noise, and for no more"
    return "no: known, but certificates hold for updates as they are alone"


def _known_noise(protections: Sequence[Protection]) -> Any:
    """Returns the standard deviation of Gaussian noise in the update, None without."""
    noisy = protection.noise(protections)
    return noisy.value if noisy and noisy.update and noisy.law == "gaussian" else None


def _told(target: Target, threat: Threat) -> dict[str, Any]:
    """Returns what the attacker knows of weights and noise."""
    told: dict[str, Any] = {}
    if target.members is not None:
        members = np.asarray(target.members, float)
        each = members / members.sum() / (target.shape[0] // len(members))
        told["weights"] = sorted(set(each.tolist()))
    noise = _known_noise(target.protections) if threat.protection_known else None
    return told if noise is None else {**told, "noise": noise}
