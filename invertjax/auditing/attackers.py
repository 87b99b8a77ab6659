"""One row a published attack: all that an audit needs to know of it.

To add an attack, write its file in `invertjax/attacks/`, export it there, and add its
row here. Command lines, defaults, checks, sweeps, threat models and the common test of
all attacks read the row.
"""

from collections.abc import Sequence
from typing import Any

from invertjax import attacks, candidates, distances
from invertjax.auditing import clients, closed_forms, observed
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.situations import (
    Situation,
    Target,
    Threat,
    Trial,
    shapes_of_batch,
)
from invertjax.base import Attack, Params
from invertjax.defenses import protection
from invertjax.defenses.protection import Protection
from invertjax.driver.cache import Cache


def _inverting_gradients(
    trial: Trial, *, steps: int, learning_rate: Any, total_variation: Any
) -> Attack:
    return attacks.inverting_gradients(
        trial.share,
        trial.observed,
        trial.candidate,
        steps=steps,
        learning_rate=learning_rate,
        total_variation=total_variation,
        distance=trial.adapted(distances.cosine),
    )


INVERTING_GRADIENTS = Attacker(
    "inverting_gradients",
    _inverting_gradients,
    numbers={"learning_rate": 0.02, "total_variation": 0.03},
    scale_free=True,
    warms=True,
)


def _posterior(trial: Trial, *, steps: int, learning_rate: Any) -> Attack:
    (noisy,) = trial.target.protections
    return attacks.posterior(
        trial.share,
        trial.observed,
        trial.candidate,
        noise=noisy.noise_scale(trial.target.training),
        prior=attacks.smoothness(trial.smoothness),
        distribution=noisy.law or "gaussian",
        steps=steps,
        learning_rate=learning_rate,
    )


def _knows_the_noise(target: Target, params: Params, threat: Threat) -> str | None:
    del params
    if threat.protection_known and protection.noise(target.protections):
        return None
    return "expected one known defense whose noise is of a known law"


def _weighs_noise(protections: Sequence[Protection]) -> str:
    del protections
    return "yes: the attack weighs the update by its noise, against a prior"


POSTERIOR = Attacker(
    "posterior",
    _posterior,
    numbers={"learning_rate": 0.02},
    noise=True,
    public=True,
    refuses=_knows_the_noise,
    adapts=_weighs_noise,
    says="posterior: for noise that is known.",
)


def _gauss_newton(trial: Trial, *, steps: int, total_variation: Any) -> Attack:
    options: dict[str, Any] = {}
    if trial.near:  # Newton's steps converge from there
        options = {"cheap": 0, "damping": 1e-8}
    return attacks.gauss_newton(
        trial.share,
        trial.observed,
        trial.candidate,
        steps=steps,
        softened=trial.softened,
        total_variation=total_variation,
        noise=_stddev(trial) if trial.threat.protection_known else 0.0,
        distance=trial.adapted(distances.squared),
        **options,
    )


def _stddev(trial: Trial) -> Any:
    noisy = _gaussian(trial.target.protections)
    return noisy.value if noisy else 0.0


def _gaussian(protections: Sequence[Protection]) -> Protection | None:
    """Returns the only defense if it adds Gaussian noise to the update, else None."""
    noisy = protection.noise(protections)
    return noisy if noisy and noisy.update and noisy.law == "gaussian" else None


def _has_forward_mode(target: Target, params: Params, threat: Threat) -> str | None:
    batch, knows = shapes_of_batch(target, threat), threat.protection_known
    return clients.refuses_forward_mode(target, knows=knows, params=params, batch=batch)


def _fits_noise(protections: Sequence[Protection]) -> str | None:
    noisy = _gaussian(protections)
    if noisy is None or not noisy.value:
        return None
    return "yes: the attack fits the update no better than the noise allows"


GAUSS_NEWTON = Attacker(
    "gauss_newton",
    _gauss_newton,
    numbers={"total_variation": None},
    steps=50,
    rule="plain",
    smooths=True,
    start=candidates.nearly_grey,
    switches=("total_variation",),
    refuses=_has_forward_mode,
    adapts=_fits_noise,
    identifiable=True,
    network="lenet",
    work=300,
)


def _deep_leakage(trial: Trial, *, steps: int) -> Attack:
    return attacks.deep_leakage(
        trial.share,
        trial.observed,
        trial.candidate,
        steps=steps,
        distance=trial.adapted(distances.squared),
    )


DEEP_LEAKAGE = Attacker(
    "deep_leakage",
    _deep_leakage,
    steps=6_000,
    labels=("joint", "known", "inferred"),
    network="lenet",
)
# The label in closed form; an audit has inferred it before the attack starts.
IDLG = DEEP_LEAKAGE._replace(name="idlg", labels=("inferred",), images=1)


# Closed forms


ANALYTIC = Attacker(
    "analytic",
    closed_forms.analytic,
    steps=None,
    labels=("known", "inferred"),
    images=1,
    refuses=closed_forms.refuses_analytic,
    scale_free=True,
    network="mlp",
)


PEELING = Attacker(
    "peeling",
    closed_forms.peeling,
    steps=100,  # of least squares; none where the layer sees the pixels
    labels=("joint", "known", "inferred"),
    one_gradient=True,
    blocks=True,
    rule="plain",
    smooths=True,
    refuses=closed_forms.refuses_peeling,
    prefers=closed_forms.peels,
    network="mlp",
    work=100,
    adapts=closed_forms.adapts_peeling,
    says="peeling: for networks with a dense layer and relu; says of each image "
    "whether it is certain, and finds the labels.",
)


RECURSIVE = Attacker(
    "recursive",
    closed_forms.recursive,
    steps=None,
    labels=("known", "inferred"),
    one_gradient=True,
    blocks=True,
    rule="plain",
    start=candidates.nearly_grey,
    refuses=clients.refuses_blocks,
    warms=True,
    exact=True,
    identifiable=True,
    network="lenet",
    work=60 * 300,
)


# What an auditor who does not choose should run


def _choose(situation: Situation, cache: Cache) -> str:
    """Returns the attack that says that it should go first, the closed form where all
    updates admit it, else gradient matching."""
    for row in _ROWS:
        if row.prefers is not None and row.prefers(situation, cache):
            return row.name
    if situation.threat.labels == "joint":  # a closed form has no labels to optimise
        return INVERTING_GRADIENTS.name
    return closed_form(situation) or INVERTING_GRADIENTS.name


def closed_form(situation: Situation, of: Sequence[int] | None = None) -> str:
    """Returns the attack that reads updates, by default all, in closed form, or ""."""
    updates, shape = situation.trials["update"], situation.target.shape
    admitted = all(
        attacks.admits(observed.take(updates, i), shape)
        for i in (range(situation.updates) if of is None else of)
    )
    return ANALYTIC.name if admitted else ""


AUTO = INVERTING_GRADIENTS._replace(
    name="auto",
    choose=_choose,
    warms=False,
    says="auto: peeling where it proves an image, analytic where the update admits the "
    "closed form, else inverting_gradients.",
)

_ROWS = (
    AUTO,
    INVERTING_GRADIENTS,
    POSTERIOR,
    GAUSS_NEWTON,
    DEEP_LEAKAGE,
    IDLG,
    ANALYTIC,
    PEELING,
    RECURSIVE,
)
ATTACKERS = {row.name: row for row in _ROWS}
NAMES = tuple(ATTACKERS)
SCALE_FREE = INVERTING_GRADIENTS  # for updates of unknown scale, of any network
WARM_STARTS = tuple(row.name for row in reversed(_ROWS) if row.warms)


def named(attack: str | Attacker) -> Attacker:
    """Returns the row of an attack, by its name or as it is.

    Raises:
      ValueError: on an unknown name.
    """
    if isinstance(attack, Attacker):
        return attack
    if attack not in ATTACKERS:
        raise ValueError(f"Expected attack={attack!r} to be one of {', '.join(NAMES)}.")
    return ATTACKERS[attack]


def with_number(name: str) -> list[str]:
    """Returns the names of the attacks that can be told a number."""
    return [row.name for row in _ROWS if name in row.numbers and row.choose is None]


def for_noise() -> list[Attacker]:
    """Returns the attacks that use what an attacker knows of the law of the noise."""
    return [row for row in _ROWS if row.noise]
