"""What the attacker sees of clients: their updates as trials, and labels read off."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import attacks, labels, trees
from invertjax.auditing import clients
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.checks import check_images, needs_order
from invertjax.auditing.situations import (
    Situation,
    Target,
    Threat,
    as_array,
    as_attacked,
    numbers,
    with_numbers,
    without_numbers,
)
from invertjax.base import Arrays, Batch, Key, Params, Update
from invertjax.defenses import protection
from invertjax.driver.cache import Cache

_jax: Any = jax  # for functions that JAX's own annotations leave partly unknown
PROBES = 512  # images outside the targets, for label counts
LITTLE = 50_000  # numbers in a batch: 16 images of 32x32x3


class NotFinite(ValueError):
    """The update of number `index` is not finite."""

    def __init__(self, index: int):
        self.index = index
        super().__init__(
            f"The update of target {index} is not finite: expected a model, and "
            "smaller learning rates and noise, that keep it so."
        )


class NoLabels(ValueError):
    """Labels cannot be read off the updates of a model."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(f"labels='inferred' does not fit here: {reason}")


def simulate(
    keys: Key,
    row: Attacker,
    target: Target,
    threat: Threat,
    params: Params,
    batches: Batch,
    *,
    each: bool = False,
    cache: Cache,
) -> Situation:
    """Lets clients compute and defend their updates on real batches.

    Args:
      keys: `[N]`, one a client.
      row: of the attack; its derivative rule is the clients'.
      target: with its numbers.
      threat: what the attacker is told.
      params: of the network; leading axis `[N]` where `each` update has its own.
      batches: `{"image": [N, B, H, W, C], "label": [N, B]}`.
      each: see params.
      cache: of compiled functions.

    Raises:
      NotFinite: where an update is not finite.
    """
    check_images("batches", batches)
    # A loss that takes guesses takes images of their precision, and perhaps no other.
    images = np.asarray(batches["image"])
    wide = jnp.promote_types(images.dtype, jnp.result_type(float))
    batches = {**batches, "image": images.astype(wide)}
    told = threat.protection_known and protection.are_told(target.protections)
    static, found = without_numbers(target), numbers(target)
    observe = cache.jit(
        ("observe", static, row.rule, told),
        lambda: _observer(static, row.rule, told),
        briefly=_is_brief(target),
    )
    rows: list[Arrays] = []
    for i in range(len(batches["image"])):
        of_client = take(params, i) if each else params
        rows.append(
            jax.device_get(observe(found, of_client, take(batches, i), keys[i]))
        )
        if not is_finite(rows[-1]["update"]):
            raise NotFinite(i)
    trials = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return situation(target, threat, trials, params, each=each, truth=batches)


def _is_brief(target: Target) -> bool:
    """Returns whether a client is done before its program would be well compiled."""
    return target.local is None and math.prod(target.shape) <= LITTLE


def situation(
    target: Target,
    threat: Threat,
    trials: dict[str, Any],
    params: Params,
    *,
    each: bool = False,
    truth: Batch | None = None,
) -> Situation:
    """Returns what attacks on given trials start from.

    Args:
      target: with its numbers.
      threat: what the attacker is told.
      trials: `{"update": pytree [N, ...], "rms": [N], ...}`.
      params, each: see `simulate`.
      truth: the batches behind the updates, if they are known.
    """
    attacked = as_attacked(target, threat)
    found = {"target": numbers(attacked), "attack": {}}
    trials = {**trials, "numbers": repeated(found, len(trials["rms"]))}
    shared: dict[str, Any] = {}
    (trials if each else shared)["params"] = params
    return Situation(without_numbers(attacked), threat, shared, trials, truth)


def as_trials(updates: Update) -> dict[str, Any]:
    """Returns updates `[N, ...]` that somebody has saved or seen as trials."""
    updates = jax.tree.map(np.asarray, updates)
    return {"update": updates, "rms": np.asarray(jax.vmap(trees.rms)(updates))}


def with_numbers_of_attack(situation: Situation, arrays: dict[str, Any]) -> Situation:
    """Returns the situation with the attack's own numbers in its trials."""
    found = repeated({k: as_array(v) for k, v in arrays.items()}, situation.updates)
    told = {**situation.trials["numbers"], "attack": found}
    return situation._replace(trials={**situation.trials, "numbers": told})


def with_labels(
    keys: Key,
    row: Attacker,
    target: Target,
    situation: Situation,
    probes: Batch | None,
    *,
    cache: Cache,
) -> Situation:
    """Returns the situation with the labels that the attacker has in its trials.

    Args:
      keys: `[N]`, for probing.
      row: of the attack.
      target: with its numbers, as the client has them: to count labels the attacker
        needs the number and the rate of local steps, whatever he simulates.
      situation: without labels.
      probes: `{"image": [P, b, H, W, C], "label": [P, b]}`, public or noise images.
      cache: of compiled functions.

    Raises:
      NoLabels: if they are to be read off an update that does not show them.
    """
    if situation.threat.labels == "joint":
        return situation
    unordered = needs_order(target, situation.threat)
    if unordered:
        raise NoLabels(f"{unordered}; expected known or joint.")
    if situation.threat.labels == "known":
        found = situation.truth["label"]
    else:
        found = _inferred(keys, row, target, situation, probes, cache)
    return situation._replace(trials={**situation.trials, "label": found})


def with_smoothness(situation: Situation, public: Any) -> Situation:
    """Returns the situation with the smoothness of public images `[P, H, W, C]`."""
    scale = np.float32(attacks.fit_smoothness(public))
    rows = np.full(situation.updates, scale)
    return situation._replace(trials={**situation.trials, "smoothness": rows})


def probes_of(public: Batch, batch_size: int) -> Batch:
    """Returns public batches of the client's size (batch norm sees it), for counts."""
    images = public["image"]
    size = min(batch_size, PROBES, len(images))
    count = min(PROBES, len(images)) // size

    def batched(leaf: Any) -> Any:
        return leaf[: count * size].reshape(count, size, *leaf.shape[1:])

    return {"image": batched(images), "label": batched(public["label"])}


def noise_probes(key: Key, target: Target) -> Batch:
    """Returns noise images in the place of public ones."""
    size, *shape = target.shape
    count = max(1, PROBES // size)
    classes = target.parts.num_classes
    return labels.noise_batches(key, count, size, tuple(shape), classes)


def _observer(
    static: Target, rule: str | None, told: bool
) -> Callable[[Any, Params, Batch, Key], Arrays]:
    """Returns `(numbers, params, batch, key) -> trial`: what a client shares."""

    def observe(found: Any, params: Params, batch: Batch, key: Key) -> Arrays:
        target = with_numbers(static, found)
        raw = clients.actual(target, rule)(params, batch, _jax.random.clone(key))
        update = clients.shared(target, rule)(params, batch, key)
        trial = {"update": update, "rms": trees.rms(raw)}
        if told:  # the key as `defend` splits it
            own = jax.random.split(_jax.random.clone(key))[0]
            trial["key"] = jax.random.key_data(own)
        return trial

    return observe


def _inferred(
    keys: Key,
    row: Attacker,
    target: Target,
    situation: Situation,
    probes: Batch | None,
    cache: Cache,
) -> np.ndarray:
    static, found = without_numbers(target), numbers(target)
    read = cache.jit(("labels", static, row.rule), lambda: _reader(static, row.rule))
    rows: list[jax.Array] = []
    for i in range(situation.updates):
        trial = take(situation.trials, i)
        params = trial.get("params", situation.shared.get("params"))
        try:
            rows.append(read(found, params, trial["update"], probes, keys[i]))
        except ValueError as error:
            raise NoLabels(str(error)) from None
    return np.stack([np.asarray(row) for row in rows])


def _reader(
    static: Target, rule: str | None
) -> Callable[[Any, Params, Update, Batch, Key], jax.Array]:
    """Returns `(numbers, params, update, probes, key) -> [B]`: the labels that an
    update says its client had."""

    def read(
        found: Any, params: Params, update: Update, probes: Batch, key: Key
    ) -> jax.Array:
        target = with_numbers(static, found)
        local = target.local
        return labels.read(
            key,
            clients.gradient(target, rule),
            params,
            update,
            batch_size=target.shape[0],
            num_classes=target.parts.num_classes,
            probe_batches=probes,
            # The update of plain SGD is about learning_rate * steps times a gradient.
            learning_rate=1.0 if local is None else local.learning_rate,
            steps=1 if local is None else local.steps,
        )

    return read


def take(tree: Any, rows: int | slice | np.ndarray) -> Any:
    """Returns a row, or several rows, of every leaf."""
    return jax.tree.map(operator.itemgetter(rows), tree)


def repeated(tree: Any, count: int) -> Any:
    """Returns every leaf `count` times, along a new leading axis."""

    def stack(leaf: Any) -> np.ndarray:
        return np.stack([np.asarray(leaf)] * count)

    return jax.tree.map(stack, tree)


def is_finite(tree: Any) -> bool:
    """Returns whether all numbers of a pytree are finite."""
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))
