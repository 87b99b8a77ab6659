"""From a row of a scene to an attack, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.audit import simulation
from experiments.audit.scene import Scene, row
from experiments.settings import defense_flags, traced
from experiments.settings.config import ATTACK_DEFAULTS, SIGNED, Config
from experiments.victims import drawn_layers
from invertjax import attacks, candidates, clients, distances
from invertjax.base import Attack, Candidate


class Setting(NamedTuple):
    """What an attack starts from.

    scene: where it happens. config: its settings, whose numbers may be traced.
    trial: the row. params: at which the update was computed.
    client: `batch -> update`, as the attacker simulates it. candidate: of the batch.
    """

    scene: Scene
    config: Config
    trial: Any
    params: Any
    client: Callable
    candidate: Candidate

    @property
    def observed(self) -> Any:
        return self.trial["update"]

    def adapted(self, distance):
        """The distance, as far as the attacker knows of the defense and can adapt."""
        return _adapted(self.config, self.scene, distance)


def _analytic(now: Setting) -> Attack:
    invert = now.scene.from_input
    return attacks.analytic(now.client, now.observed, now.candidate, from_input=invert)


def _inverting_gradients(now: Setting) -> Attack:
    return attacks.inverting_gradients(
        now.client,
        now.observed,
        now.candidate,
        steps=now.config.steps,
        learning_rate=now.config.attack_lr,
        total_variation=now.config.total_variation,
        distance=now.adapted(distances.cosine),
    )


def _posterior(now: Setting) -> Attack:
    specs = defense_flags.specs(now.config.defense)
    return attacks.posterior(
        now.client,
        now.observed,
        now.candidate,
        noise=defense_flags.noise_scale(specs, now.config),
        prior=attacks.smoothness(now.trial["smoothness"]),
        distribution=defense_flags.noise_kind(specs) or "gaussian",
        steps=now.config.steps,
        learning_rate=now.config.attack_lr,
    )


def _gauss_newton(now: Setting) -> Attack:
    options: dict[str, Any] = {}
    if now.config.warm_start == "recursive":  # Newton's steps converge from there
        options = dict(cheap=0, damping=1e-8)
    return attacks.gauss_newton(
        now.client,
        now.observed,
        now.candidate,
        steps=now.config.steps,
        softened=simulation.softened(now.scene.soften, now.config, now.params),
        total_variation=now.config.total_variation,
        noise=_known_noise(now.config),
        distance=now.adapted(distances.squared),
        **options,
    )


def _recursive(now: Setting) -> Attack:
    return attacks.recursive(
        now.client,
        now.observed,
        now.candidate,
        params=now.params,
        blocks=now.scene.blocks,
    )


def _deep_leakage(now: Setting) -> Attack:
    return attacks.deep_leakage(
        now.client,
        now.observed,
        now.candidate,
        steps=now.config.steps,
        distance=now.adapted(distances.squared),
    )


RECIPES: dict[str, Callable[[Setting], Attack]] = {
    "analytic": _analytic,
    "recursive": _recursive,
    "inverting_gradients": _inverting_gradients,
    "posterior": _posterior,
    "gauss_newton": _gauss_newton,
    "deep_leakage": _deep_leakage,
    "idlg": _deep_leakage,  # with the label inferred, which `with_labels` has done
}


def chosen(config: Config, scene: Scene) -> str:
    """The attack that is run: what `auto` picks, on all updates, or the one named."""
    if config.attack != "auto":
        return config.attack
    if config.labels == "joint":  # a closed form has no labels to optimise
        return "inverting_gradients"
    rows = range(len(scene.trials["rms"]))
    updates = [row(scene.trials["update"], i) for i in rows]
    admitted = all(attacks.admits(update, scene.shape) for update in updates)
    return "analytic" if admitted else "inverting_gradients"


def maker(config: Config, scene: Scene, name: str) -> Callable[..., Attack]:
    """`(shared, trial) -> Attack` for the driver."""
    config = traced.as_attacked(config)

    def make(shared, trial):
        now = traced.put(config, trial["numbers"])
        params = trial.get("params", shared.get("params"))
        client = clients.at(scene.simulate(now), params, _key(trial))
        candidate = _candidate(config, scene, trial, name)
        setting = Setting(scene, now, trial, params, client, candidate)
        if config.warm_start is not None:
            setting = setting._replace(candidate=_warm(setting))
        return RECIPES[name](setting)

    return make


def _warm(now):
    """The candidate, starting where the attack of --warm_start ends."""
    name = now.config.warm_start
    own = {"steps": ATTACK_DEFAULTS[name]["steps"], **SIGNED}
    first = now._replace(config=dataclasses.replace(now.config, **own))
    return candidates.warm(now.candidate, RECIPES[name](first))


def fit(config: Config, scene: Scene, index: int, batch: Any) -> float:
    """The cosine distance of a guess's update from the observed one, in [0, 2]."""
    trial = row(scene.trials, index)
    params = trial.get("params", scene.shared.get("params"))
    client = clients.at(scene.simulate(config), params, _key(trial))
    distance = _adapted(config, scene, distances.cosine)
    return float(jax.jit(lambda b: distance(client(b), trial["update"]))(batch))


def _key(trial):
    """The client's where the attacker is told what it drew, else his own."""
    if "key" in trial:
        return jax.random.wrap_key_data(trial["key"])
    return jax.random.key(0)


def _candidate(config, scene, trial, name):
    """Pixels from noise, with the labels that the attacker has, or logits; and what the
    network has drawn, if the attacker looks for it."""
    grey = name in ("gauss_newton", "recursive")
    start = candidates.nearly_grey if grey else candidates.normal
    known = dict(num_classes=scene.num_classes)
    if "label" in trial:
        known = dict(labels=trial["label"])
    found = candidates.pixels(scene.shape, **known, init=start)
    if scene.drawn is None or not config.defense_known or config.local_steps:
        return found
    return drawn_layers.guessed(found, scene.drawn, config.batch_size)


def _adapted(config, scene, distance):
    if not config.defense_known:
        return distance
    if scene.drawn is not None and scene.drawn.behind:
        distance = distances.without(distance, *scene.drawn.behind)
    return defense_flags.adapted(distance, defense_flags.specs(config.defense))


def _known_noise(config):
    """Its standard deviation, 0 where there is none that the attacker knows."""
    if not config.defense_known:
        return 0.0
    return defense_flags.noise(defense_flags.specs(config.defense))
