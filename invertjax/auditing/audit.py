"""What does an update give away? One call, from a loss and params to a report."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from invertjax import layers, leaves
from invertjax.auditing import attackers, forms, observed, preparing, run
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.checks import check, check_data, check_loss, check_options
from invertjax.auditing.keys import Keys, again, keys_of
from invertjax.auditing.report import Report
from invertjax.auditing.situations import (
    LABELS,
    Local,
    Situation,
    Target,
    Threat,
)
from invertjax.auditing.watch import SILENT, Watch
from invertjax.base import Batch, Block, Client, Key, Loss, Params, Update
from invertjax.defenses.protection import Parts, Protection, network_change
from invertjax.driver import stopping
from invertjax.driver.cache import Cache


def audit(
    key: Key | Keys,
    loss_fn: Loss,
    params: Params,
    *,
    update: Update | None = None,
    batches: Batch | None = None,
    attack: str | Attacker = "auto",
    client: Client | None = None,
    local: Local | None = None,
    protection: Protection | Sequence[Protection] = (),
    protection_known: bool | None = None,
    local_known: bool = True,
    labels: Any = None,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    parts: Parts | None = None,
    blocks: Sequence[Block] = (),
    public: Batch | None = None,
    restarts: int = 1,
    steps: int | None = None,
    warm_start: str | Attacker | None = None,
    numbers: Mapping[str, float] | None = None,
    rule: stopping.Rule = stopping.NEVER,
    control: bool = True,
    certify: bool = True,
    watch: Watch = SILENT,
    cache: Cache | None = None,
) -> Report:
    """Attacks an update, or updates simulated from batches, and reports what leaked.

        report = invertjax.audit(key, loss_fn, params, batches={"image": images[None],
                                 "label": labels[None]}, attack="gauss_newton")
        print(report)
        report.save("runs/mine")

    Args:
      key: consumed; or `Keys`, where the caller has keys of its own.
      loss_fn: `(params, batch) -> []`, in JAX; batch is `{"image": [B, H, W, C] in
        [0, 1], "label": [B]}`, with joint labels `[B, K]` probabilities.
      params: pytree of arrays, of the network.
      update: one that was shared, a pytree like params: a gradient, or params before
        minus after local training. Exactly one of update and batches is given.
      batches: `{"image": [N, B, H, W, C], "label": [N, B]}`, the data of N clients,
        whose updates are simulated; then scores have a truth.
      attack: a row of `attackers.ATTACKERS`, or its name.
      client: `(params, batch, key) -> update`, in place of the gradient of the loss.
      local: local training; None: the gradient itself is shared.
      protection: what the client does to protect its data, one or several in order,
        e.g. `defenses.protections.of("prune", 0.99)`.
      protection_known: whether the attacker knows that. Default: only for an attack
        that makes no sense without.
      local_known: whether he simulates local steps, or takes the update for a gradient.
      labels: "known", "inferred" or "joint"; or, with an update, the labels `[B]` that
        the attacker has. Default: as the attack has it; with an update inferred.
      shape: with an update `(B, H, W, C)`.
      num_classes: K. Default: the outputs of the last dense layer, if there is one.
      parts: of the network, for defenses that ask for its features or put a layer
        before its last one; params are then those of the network with that layer.
      blocks: of the network, from images to logits, for attacks that go layer by layer,
        where the loss is their cross-entropy. Default: as `rewrites.blocks` finds them.
      public: `{"image": [P, H, W, C], "label": [P]}` that the attacker has, none of
        them a target: for label counts, priors, and guesses to compare with.
      restarts: random starts, of which the attacker keeps the best fit.
      steps: iterations; default: the row's.
      warm_start: an attack that the images start from.
      numbers: of the attack, in the place of the row's, e.g. `{"learning_rate": 0.1}`.
      rule: when a trial ends early.
      control: whether the attack is also run on a shuffled update, as a null.
      certify: whether what `gauss_newton` and `recursive` find of a plain gradient is
        certified, if it explains the update: by singular values of at most 4,096
        unknowns, and the same attack from a second start.
      watch: who follows.
      cache: of compiled functions, shared by audits that differ in numbers only.

    Raises:
      ValueError: naming the argument that does not fit, before anything is compiled.
    """
    row, warm = attackers.named(attack), _warm(warm_start)
    check_data(update, batches, shape, public)
    if batches is not None:
        shape = np.shape(batches["image"])[1:]
    target = _target(loss_fn, params, shape or (), protection, num_classes, parts)
    target = target._replace(local=local, client=client, blocks=tuple(blocks))
    known = row.noise if protection_known is None else protection_known
    threat = Threat(_labels(labels, row, update is not None), known, local_known)
    check_options(row, warm, restarts, steps, numbers)
    check_loss(target, params, threat)
    check(row, warm, target, params, threat, public)
    cache = cache or Cache()
    count = 1 if batches is None else len(batches["image"])
    keys = key if isinstance(key, Keys) else keys_of(key, count, restarts)
    options: dict[str, Any] = {"steps": steps, "warm_start": warm, "numbers": numbers}
    make: Callable[..., preparing.Prepared] = functools.partial(
        preparing.prepare, public=public, cache=cache
    )

    def taken(update: Update, by: Attacker) -> preparing.Prepared:
        given = _given(target, threat, params, update, labels)
        return make(again(keys), by, target, given, **(options if by is row else {}))

    if batches is None:
        prepared = forms.prepared(keys, params, update, row, taken, cache)
    else:
        truth = jax.tree.map(np.asarray, batches)
        situation = observed.simulate(
            keys.clients, row, target, threat, params, truth, cache=cache
        )
        prepared = make(keys, row, target, situation, **options)
    found = run.complete(
        keys,
        prepared,
        rule=rule,
        control=control,
        certify=certify,
        watch=watch,
        cache=cache,
    )
    assert found is not None  # there is at least one update
    return found


def _target(
    loss_fn: Loss,
    params: Params,
    shape: tuple[int, ...],
    protection: Protection | Sequence[Protection],
    num_classes: int | None,
    parts: Parts | None,
) -> Target:
    """Returns the target, with the network as a defense may have changed it."""
    protections = (
        (protection,) if isinstance(protection, Protection) else tuple(protection)
    )
    parts = parts or Parts(num_classes or _num_classes(params))
    target = Target(loss_fn, tuple(shape), parts, None, protections)
    change = network_change(protections)
    if change is None or change.network is None:
        return target
    made = change.network(parts, change.value)
    return target._replace(loss_fn=made.loss_fn, drawn=made.drawn)


def _warm(warm_start: str | Attacker | None) -> Attacker | None:
    if warm_start is None:
        return None
    row = attackers.named(warm_start)
    if not row.warms:
        raise ValueError(
            f"Expected warm_start={row.name!r} to be one of "
            f"{', '.join(attackers.WARM_STARTS)}."
        )
    return row


def _labels(labels: Any, row: Attacker, with_update: bool) -> str:
    """Returns how the attacker comes by the labels."""
    if labels is None:
        first = row.labels[0]
        return "inferred" if with_update and first == "known" else first
    if not isinstance(labels, str):
        return "known"
    if labels not in LABELS:
        raise ValueError(
            f"Expected labels={labels!r} to be one of {', '.join(LABELS)}, or an array."
        )
    if with_update and labels == "known":
        raise ValueError(
            "Expected labels='known' to come with batches=...; beside update=... give "
            "the labels themselves, or 'inferred' or 'joint'."
        )
    return labels


def _num_classes(params: Params) -> int:
    """Returns the outputs of the one dense layer that feeds no other."""
    try:
        return layers.last(params).weight.shape[1]
    except ValueError as error:
        raise ValueError(f"Expected num_classes=... to be given: {error}") from None


def _given(
    target: Target, threat: Threat, params: Params, update: Update, labels: Any
) -> Situation:
    """Returns the situation of an update that somebody has saved."""
    trials = observed.as_trials(observed.repeated(leaves.floats(update), 1))
    if threat.labels == "known":
        trials["label"] = np.asarray(labels)[None]
    return observed.situation(target, threat, trials, params)
