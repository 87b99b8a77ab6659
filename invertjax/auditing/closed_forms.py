"""How attacks in closed form are made of what an audit has, and where they apply."""

from collections.abc import Callable, Sequence
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

MOST_WEIGHTS = 64  # of an image that are tried


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
    return _in_blocks(attacks.recursive, trial)


def peeling(trial: Trial, *, steps: int) -> Attack:
    """Makes the attack that takes a batch apart."""
    known = told(trial.target, trial.threat)
    return _in_blocks(
        attacks.peeling, trial, steps=steps, softened=trial.softened, **known
    )


def _in_blocks(make: Callable[..., Attack], trial: Trial, **options: Any) -> Attack:
    """Makes an attack that is given the network block by block."""
    chain = clients.chain(trial.target, trial.params, trial.threat)
    return make(
        trial.share,
        trial.observed,
        trial.candidate,
        params=trial.params,
        blocks=chain.blocks,
        loss=chain.loss,
        **options,
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
        known = told(target, threat)
        found = exact.peel(
            layer, params, update, target.shape[0], loss=chain.loss, **known
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
    noisy = protection.noise(protections)
    if noisy and noisy.law == "gaussian":
        return "yes: certificates allow for the noise, and for no more"
    return "partly: a common scale, as clipping leaves it, is found with the labels"


def told(target: Target, threat: Threat) -> dict[str, Any]:
    """Returns what the attacker knows of weights and noise."""
    known: dict[str, Any] = {}
    shares = np.asarray(target.members or (1.0,), float)
    shares = shares / shares.sum()
    if target.members is not None:
        each = shares / (target.shape[0] // len(shares))
        known["weights"] = _counted(each.tolist())
    if threat.protection_known and target.protections:
        alone = protection.noise(target.protections)
        if alone is None or not alone.update:
            known["weights"] = ()  # clipping has left each image its own
        if alone and alone.law == "gaussian" and alone.value is not None:
            of_one = alone.noise_scale(target.training)
            known["noise"] = of_one * float(np.linalg.norm(shares))  # of their mean
    return known


def _counted(each: list[float]) -> list[float]:
    """Returns what an image may count: once, or twice where equal images add up."""
    once = sorted(set(each))
    twice = sorted({a + b for a in each for b in each} - set(once))
    return [*once, *twice] if len(once) + len(twice) <= MOST_WEIGHTS else once
