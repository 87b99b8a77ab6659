"""What happened at the client, and what the attacker has of it.

A scene is everything numeric that an attack needs, as arrays with one row a target, and
the client as the attacker simulates it; `attacking` makes attacks of the rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.audit import simulation
from experiments.settings import defense_flags, traced
from experiments.settings.config import Config
from experiments.settings.defense_kinds import Parts
from experiments.victims import drawn_layers
from experiments.victims.network import Victim
from experiments.victims.saved_update import Given, batch_shapes
from invertjax import attacks, defenses
from invertjax.base import Client


class Scene(NamedTuple):
    """One run's problem.

    simulate: the client as the attacker simulates it, by the config.
    share: its gradient on one batch, for probing labels.
    shared: pytree that all targets share. trials: pytree of `[N, ...]`.
    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`; None for a given update.
    shape: `(B, H, W, C)`. num_classes: K.
    from_input: undoes a normalisation before the first layer.
    blocks: of the network, from images to logits; () where it has none.
    soften: the same smoothed, by config and sharpness; None where that is not wanted.
    drawn: what the network draws, None if nothing.
    observe, infer: compiled; what the clients do, and the labels read off that. They
      serve all runs that differ in numbers only.
    """

    simulate: Callable[[Config], Client]
    share: Client
    shared: Any
    trials: Any
    truth: Any
    shape: tuple[int, ...]
    num_classes: int
    from_input: Callable
    soften: Callable[[Config, Any], Client] | None = None
    drawn: drawn_layers.Drawn | None = None
    observe: Any = None
    infer: Any = None
    blocks: tuple[Callable, ...] = ()


def simulated(
    config: Config, victim: Victim, truth, num_classes: int, like: Scene | None = None
) -> Scene:
    """Clients compute and defend their updates on real batches.

    Args:
      config: resolved.
      victim: the loss and the params.
      truth: `{"image": [N, B, H, W, C], "label": [N, B]}`.
      num_classes: K.
      like: of a run that differs in numbers only; its compiled functions are used.
    """
    first = row(victim.params, 0) if victim.per_target else victim.params
    if like is None:
        roles = simulation.roles(
            config, victim.loss_fn, first, row(truth, 0), victim.parts, victim.drawn
        )
        like = Scene(
            roles.simulate,
            roles.share,
            shared={},
            trials={},
            truth=truth,
            shape=truth["image"].shape[1:],
            num_classes=num_classes,
            from_input=victim.from_input,
            soften=roles.soften,
            drawn=victim.drawn,
            observe=jax.jit(_observer(config, roles)),
            blocks=victim.blocks,
        )
    found, rows = traced.of(config), []
    for i in range(config.targets):
        params = row(victim.params, i) if victim.per_target else victim.params
        rows.append(jax.device_get(like.observe(found, params, row(truth, i), i)))
        _check_finite(config, rows[-1]["update"], i)
    trials = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    attacked = traced.of(traced.as_attacked(config))
    trials["numbers"] = _repeated(attacked, config.targets)
    shared = {}
    (trials if victim.per_target else shared)["params"] = victim.params
    return like._replace(shared=shared, trials=trials, truth=truth)


def _observer(config, roles):
    """`(numbers, params, batch, i) -> trial`: what client i shares."""

    def observe(found, params, batch, i):
        now = traced.put(config, found)
        client = roles.client(now)
        specs = defense_flags.specs(now.defense)
        chain = defense_flags.chained(specs)
        defended = defenses.defend(client, chain) if specs else client
        mine = jax.random.fold_in(jax.random.fold_in(key(now), 1), i)
        raw = client(params, batch, jax.random.clone(mine))
        trial = {"update": defended(params, batch, mine), "rms": _rms(raw)}
        if now.defense_known and defense_flags.are_told(specs):  # as `defend` splits it
            own = jax.random.split(jax.random.clone(mine))[0]
            trial["key"] = jax.random.key_data(own)
        return trial

    return observe


def given(config: Config, given: Given, num_classes: int) -> Scene:
    """An update that the reader's own code has saved."""
    batch = batch_shapes(config)
    roles = simulation.roles(
        config, given.loss_fn, given.params, batch, Parts(num_classes), given.drawn
    )
    trial = {"update": given.update, "rms": np.asarray(_rms(given.update))}
    trial["numbers"] = traced.of(traced.as_attacked(config))
    return Scene(
        roles.simulate,
        roles.share,
        shared={"params": given.params},
        trials=_repeated(trial, 1),
        truth=None,
        shape=(config.batch_size, *config.image_shape),
        num_classes=num_classes,
        from_input=given.from_input,
        soften=roles.soften,
        drawn=given.drawn,
        blocks=given.blocks,
    )


def with_smoothness(scene: Scene, public: Any) -> Scene:
    """The scene with the smoothness of public images `[N, H, W, C]` in its trials."""
    scale = np.float32(attacks.fit_smoothness(public))
    rows = np.full(len(scene.trials["rms"]), scale)
    return scene._replace(trials={**scene.trials, "smoothness": rows})


def shuffled(config: Config, scene: Scene) -> Any:
    """The first target's trial with the coordinates of its update permuted.

    The update keeps its values, leaf by leaf, and says nothing of the batch any more.
    """
    random = np.random.default_rng(config.seed)

    def permute(leaf):
        return random.permutation(np.ravel(leaf)).reshape(leaf.shape)

    trial = jax.tree.map(lambda leaf: leaf[:1], scene.trials)
    return {**trial, "update": jax.tree.map(permute, trial["update"])}


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


def key(config: Config) -> jax.Array:
    """The run's own: clients and attacker fold different numbers into it."""
    return jax.random.key(config.seed)


def _rms(tree):
    leaves = jax.tree.leaves(tree)
    total = sum(jnp.sum(leaf**2) for leaf in leaves)
    return jnp.sqrt(total / sum(leaf.size for leaf in leaves))


def _repeated(tree, count):
    """Every leaf `count` times, along a new leading axis."""
    return jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * count), tree)


def row(tree: Any, i: int) -> Any:
    """Row i of every leaf."""
    return jax.tree.map(lambda leaf: leaf[i], tree)
