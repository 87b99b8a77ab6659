"""What happened at the client, and what the attacker has of it.

A scene is everything numeric that an attack needs, as arrays with one row a target, and
the functions that turn a row into an attack.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import defense_flags, simulation
from experiments.config import Config
from experiments.given import Given, batch_shapes
from experiments.victim import Victim
from invertjax import attacks, candidates, clients, defenses, distances, labels, layers
from invertjax.base import Attack, Client


class Scene(NamedTuple):
    """One run's problem.

    simulate: the client as the attacker simulates it.
    share: its gradient on one batch, for probing labels.
    shared: pytree that all targets share. trials: pytree of `[N, ...]`.
    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`; None for a given update.
    shape: `(B, H, W, C)`. num_classes: K.
    from_input: undoes a normalisation before the first layer.
    soften: `sharpness -> simulate`, smoothed; None where that is not wanted.
    """

    simulate: Client
    share: Client
    shared: Any
    trials: Any
    truth: Any
    shape: tuple[int, ...]
    num_classes: int
    from_input: Callable
    soften: Callable[[Any], Client] | None = None


def simulated(config: Config, victim: Victim, truth, num_classes: int) -> Scene:
    """Clients compute and defend their updates on real batches.

    Args:
      config: resolved.
      victim: the loss and the params.
      truth: `{"image": [N, B, H, W, C], "label": [N, B]}`.
      num_classes: K.
    """
    first = _row(victim.params, 0) if victim.per_target else victim.params
    roles = simulation.roles(config, victim.loss_fn, first, _row(truth, 0))
    specs = [defense_flags.parse(text) for text in config.defense]
    defended = (
        defenses.defend(roles.client, defense_flags.chained(specs))
        if specs
        else roles.client
    )

    @jax.jit
    def observe(params, batch, i):
        key = jax.random.fold_in(jax.random.fold_in(_key(config), 1), i)
        raw = roles.client(params, batch, jax.random.clone(key))
        return {"update": defended(params, batch, key), "rms": _rms(raw)}

    rows = []
    for i in range(config.targets):
        params = _row(victim.params, i) if victim.per_target else victim.params
        rows.append(jax.device_get(observe(params, _row(truth, i), i)))
        _check_finite(config, rows[-1]["update"], i)
    trials = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    shared = {}
    (trials if victim.per_target else shared)["params"] = victim.params
    shape = truth["image"].shape[1:]
    return Scene(
        roles.simulate,
        roles.share,
        shared,
        trials,
        truth,
        shape,
        num_classes,
        victim.from_input,
        roles.soften,
    )


def given(config: Config, given: Given, num_classes: int) -> Scene:
    """An update that the reader's own code has saved."""
    batch = batch_shapes(config)
    roles = simulation.roles(config, given.loss_fn, given.params, batch)
    row = {"update": given.update, "rms": np.asarray(_rms(given.update))}
    return Scene(
        roles.simulate,
        roles.share,
        shared={"params": given.params},
        trials=jax.tree.map(lambda leaf: leaf[None], row),
        truth=None,
        shape=(config.batch_size, *config.image_shape),
        num_classes=num_classes,
        from_input=given.from_input,
        soften=roles.soften,
    )


def with_labels(config: Config, scene: Scene, probes) -> Scene:
    """The scene with the labels that the attacker has, or has inferred, in its trials.

    Args:
      probes: `{"image": [P, b, H, W, C], "label": [P, b]}`, public or noise images.

    Raises:
      ValueError: if labels are to be inferred from a model that does not admit it.
    """
    if config.labels == "joint":
        return scene
    if config.labels == "known":
        found = scene.truth["label"]
    else:
        try:
            found = _inferred(config, scene, probes)
        except ValueError as error:
            raise ValueError(f"--labels=inferred does not fit here: {error}") from None
    return scene._replace(trials={**scene.trials, "label": found})


def shuffled(config: Config, scene: Scene) -> Any:
    """The first target's trial with the coordinates of its update permuted.

    The update keeps its values, leaf by leaf, and says nothing of the batch any more.
    """
    random = np.random.default_rng(config.seed)

    def permute(leaf):
        return random.permutation(np.ravel(leaf)).reshape(leaf.shape)

    trial = jax.tree.map(lambda leaf: leaf[:1], scene.trials)
    return {**trial, "update": jax.tree.map(permute, trial["update"])}


def chosen_attack(config: Config, scene: Scene) -> str:
    """The attack that is run: what `auto` picks, on all updates, or the one named."""
    if config.attack != "auto":
        return config.attack
    if config.labels == "joint":  # a closed form has no labels to optimise
        return "inverting_gradients"
    rows = range(len(scene.trials["rms"]))
    updates = [_row(scene.trials["update"], i) for i in rows]
    admitted = all(attacks.admits(update, scene.shape) for update in updates)
    return "analytic" if admitted else "inverting_gradients"


def attack_maker(config: Config, scene: Scene, name: str) -> Callable[..., Attack]:
    """`(shared, trial) -> Attack` for the driver."""

    def make(shared, trial):
        params = trial.get("params", shared.get("params"))
        client = clients.at(scene.simulate, params, jax.random.key(0))
        observed = trial["update"]
        candidate = _candidate(config, scene, trial, name)
        if name == "analytic":
            invert = scene.from_input
            return attacks.analytic(client, observed, candidate, from_input=invert)
        if name == "inverting_gradients":
            return attacks.inverting_gradients(
                client,
                observed,
                candidate,
                steps=config.steps,
                learning_rate=config.attack_lr,
                total_variation=config.total_variation,
                distance=_adapted(config, distances.cosine),
            )
        if name == "gauss_newton":
            return attacks.gauss_newton(
                client,
                observed,
                candidate,
                steps=config.steps,
                softened=simulation.softened(scene.soften, params),
                total_variation=config.total_variation,
                noise=_known_noise(config),
                distance=_adapted(config, distances.squared),
            )
        # idlg is deep_leakage with the label inferred, which `with_labels` has done.
        return attacks.deep_leakage(
            client,
            observed,
            candidate,
            steps=config.steps,
            distance=_adapted(config, distances.squared),
        )

    return make


def _candidate(config, scene, trial, name):
    """Pixels from noise, with the labels that the attacker has, or logits."""
    start = candidates.nearly_grey if name == "gauss_newton" else candidates.normal
    if "label" in trial:
        return candidates.pixels(scene.shape, trial["label"], init=start)
    return candidates.pixels(scene.shape, num_classes=scene.num_classes, init=start)


def fit(config: Config, scene: Scene, index: int, batch: Any) -> float:
    """The cosine distance of a guess's update from the observed one, in [0, 2]."""
    trial = _row(scene.trials, index)
    params = trial.get("params", scene.shared.get("params"))
    client = clients.at(scene.simulate, params, jax.random.key(0))
    distance = _adapted(config, distances.cosine)
    return float(jax.jit(lambda b: distance(client(b), trial["update"]))(batch))


def _adapted(config, distance):
    if not config.defense_known:
        return distance
    specs = [defense_flags.parse(text) for text in config.defense]
    return defense_flags.adapted(distance, specs)


def _known_noise(config):
    """Its standard deviation, 0 where there is none that the attacker knows."""
    if not config.defense_known:
        return 0.0
    return defense_flags.noise([defense_flags.parse(text) for text in config.defense])


def _inferred(config, scene, probes):
    # The update of plain SGD is about learning_rate * steps times a gradient.
    steps = config.local_steps or 1
    rate = config.local_lr if config.local_steps else 1.0
    key = jax.random.fold_in(_key(config), 2)

    @jax.jit
    def one(params, update, i):
        if config.batch_size == 1:  # exact, and needs no probes
            last = layers.last(update, scene.num_classes)
            return labels.idlg(last.weight, last.bias)[None]
        counts = labels.recover(
            jax.random.fold_in(key, i),
            scene.share,
            params,
            update,
            batch_size=config.batch_size,
            num_classes=scene.num_classes,
            probe_batches=probes,
            learning_rate=rate,
            steps=steps,
        )
        return labels.from_counts(counts, config.batch_size)

    found = []
    for i in range(len(scene.trials["rms"])):
        trial = _row(scene.trials, i)
        params = trial.get("params", scene.shared.get("params"))
        found.append(np.asarray(one(params, trial["update"], i)))
    return np.stack(found)


def _check_finite(config, update, i):
    if all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(update)):
        return
    flags = ("train_lr",) * bool(config.train_steps)
    flags += ("local_lr",) * bool(config.local_steps)
    named = [f"--{flag}={getattr(config, flag)}" for flag in flags]
    named += [f"--defense={text}" for text in config.defense]
    raise ValueError(
        f"The update of target {i} is not finite: expected a model, and smaller values "
        f"of {' '.join(named) or 'its params'}, that keep it so."
    )


def _key(config):
    return jax.random.key(config.seed)


def _rms(tree):
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(leaf**2) for leaf in leaves)
    return jnp.sqrt(total / sum(leaf.size for leaf in leaves))


def _row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)
