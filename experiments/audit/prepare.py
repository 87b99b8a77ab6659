"""From settings to all that an attack needs: read, observed and checked."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.audit import trying
from experiments.settings.attack import NUMBERS, Attack
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim, has_batch_norm
from experiments.victims import checkpoint, inputs, saved_update, target
from invertjax.auditing import (
    Keys,
    Situation,
    Target,
    Threat,
    forms,
    observed,
    preparing,
    situations,
)
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.attackers import ATTACKERS
from invertjax.auditing.keys import again
from invertjax.auditing.preparing import Prepared
from invertjax.base import Batch
from invertjax.driver import Cache

Progress = Callable[[Any, str], Iterator]  # `(iterable, name) -> iterable`


class Ready(NamedTuple):
    """An audit that can start.

    keys: of all that is random. prepared: the situation and the plan.
    known: lines of the threat model. facts: what belongs beside the figures.
    inputs: digests of what was read, by flag.
    """

    keys: Keys
    prepared: Prepared
    known: dict[str, str]
    facts: dict[str, Any]
    inputs: dict[str, str] = {}


def read(
    data: Data, victim: Victim, clients: Clients, run: Run, *, cache: Cache
) -> inputs.Inputs:
    """Reads the images of a simulated run; runs of the same data in turn share them.

    Raises:
      ValueError: naming the flag of what is not there or does not fit.
    """
    checkpoint.check(victim)
    key = ("inputs", inputs.key(data, clients, victim), run.dtype)
    return cache(key, lambda: inputs.read(data, clients, victim, run.dtype), most=1)


def simulated(
    found: inputs.Inputs,
    data: Data,
    victim: Victim,
    clients: Clients,
    attack: Attack,
    run: Run,
    *,
    progress: Progress = lambda items, name: iter(items),
    cache: Cache,
) -> Ready:
    """Builds the victim, lets clients share their updates, and gathers the labels.

    Args:
      found: from `read`.
      data, victim, clients, attack, run: settings.
      progress: a progress bar.
      cache: of what is slow to make.

    Raises:
      ValueError: where the attack, or the inference of labels, does not fit the model.
    """
    row, threat = ATTACKERS[attack.attack], threat_of(attack)
    built = target.build(
        data,
        victim,
        clients,
        run,
        found.truth["image"].shape[2:],
        found.num_classes,
        train_data=lambda: found.public,
        check=checker(victim, attack, threat, cache),
        progress=progress,
        cache=cache,
    )
    keys = keys_of(run, attack, data.targets)
    try:
        situation = observed.simulate(
            keys.clients,
            row,
            built.target,
            threat,
            built.params,
            found.truth,
            each=built.each,
            cache=cache,
        )
    except observed.NotFinite as error:
        raise not_finite(error.index, victim, clients) from None
    public = inputs.batch_of(found.public)
    prepared = prepared_for(keys, attack, built.target, situation, public, cache)
    return Ready(keys, prepared, known(data, victim, clients, attack), built.notes)


def given(
    saved: SavedUpdate,
    victim: Victim,
    clients: Clients,
    attack: Attack,
    run: Run,
    *,
    cache: Cache,
) -> Ready:
    """Reads an update that the reader's own code has saved, and gathers the labels.

    Raises:
      ValueError: naming the flag of what does not fit.
    """
    threat = threat_of(attack)
    found = saved_update.read(saved, victim, clients, attack, run, cache=cache)
    checker(victim, attack, threat, cache)(found.target, found.params)
    keys = keys_of(run, attack, 1)

    row = ATTACKERS[attack.attack]

    def taken(update: Any, by: Attacker) -> Prepared:
        trials = observed.as_trials(jax.tree.map(lambda leaf: leaf[None], update))
        situation = observed.situation(found.target, threat, trials, found.params)
        asked = attack if by is row else Attack(attack=by.name)
        return prepared_for(again(keys), asked, found.target, situation, None, cache)

    prepared = forms.prepared(keys, found.params, found.update, row, taken, cache)
    lines = {"batch_norm": _norm_knowledge(victim)}
    return Ready(keys, prepared, lines, {"given": saved.params})


def prepared_for(
    keys: Keys,
    attack: Attack,
    target: Target,
    situation: Situation,
    public: Batch | None,
    cache: Cache,
    **shown: int,
) -> Prepared:
    """Returns what `preparing.prepare` does of the settings of an attack."""
    row = ATTACKERS[attack.attack]
    try:
        return preparing.prepare(
            keys,
            row,
            target,
            situation,
            public=public,
            cache=cache,
            **shown,
            **options(attack),
        )
    except observed.NoLabels as error:
        raise ValueError(
            f"--labels=inferred does not fit here: {error.reason}"
        ) from None


def options(attack: Attack) -> dict[str, Any]:
    """Returns what `preparing.prepare` is told of the attack."""
    numbers = {
        number: getattr(attack, name)
        for name, number in NUMBERS.items()
        if number in ATTACKERS[attack.attack].numbers
        and getattr(attack, name) is not None
    }
    warm = ATTACKERS[attack.warm_start] if attack.warm_start else None
    return {"steps": attack.steps, "warm_start": warm, "numbers": numbers}


def threat_of(attack: Attack) -> Threat:
    """Returns what the attacker is told."""
    return Threat(
        attack.labels, bool(attack.defense_known), attack.local_known is not False
    )


def keys_of(run: Run, attack: Attack, count: int) -> Keys:
    """Returns the keys of a run: the network's own is that of the seed."""
    key = jax.random.key(run.seed % 2**32)
    starts = [jax.random.key(run.seed + use) for use in (1, 2)]
    clients, labels, trials, control = _split(
        key, *starts, count=count, restarts=attack.restarts or 1
    )
    return Keys(clients, labels, trials, control, jax.random.clone(key), run.seed)


@functools.partial(jax.jit, static_argnames=("count", "restarts"))
def _split(
    key: jax.Array,
    trials: jax.Array,
    control: jax.Array,
    *,
    count: int,
    restarts: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the keys of clients, of labels, of trials and of the control; compiled,
    as a sweep asks for them cell by cell."""

    def folded(use: int) -> jax.Array:
        start = jax.random.fold_in(key, use)
        return jax.vmap(lambda i: jax.random.fold_in(start, i))(jnp.arange(count))

    def restarted(key: jax.Array, count: int) -> jax.Array:
        keys = jax.random.split(key, count)
        return jax.vmap(lambda own: jax.random.split(own, restarts))(keys)

    return folded(1), folded(2), restarted(trials, count), restarted(control, 1)


def not_finite(index: int, victim: Victim, clients: Clients) -> ValueError:
    """Returns the error of an update that is not finite, with the flags that do it."""
    named = []
    if victim.train_steps:
        named.append(f"--train_lr={victim.train_lr}")
    if clients.local_steps:
        named.append(f"--local_lr={clients.local_lr}")
    named += [f"--defense={one}" for one in clients.defense]
    return ValueError(
        f"The update of target {index} is not finite: expected a model, and smaller "
        f"values of {' '.join(named) or 'its params'}, that keep it so."
    )


def checker(
    victim: Victim, attack: Attack, threat: Threat, cache: Cache | None = None
) -> Callable[[Target, Any], None]:
    """Returns a check that refuses attacks on networks that they do not fit, and code
    of the reader's own that fails."""
    answers = cache or Cache()
    rows = [("attack", ATTACKERS[attack.attack])]
    if attack.warm_start:
        rows.append(("warm_start", ATTACKERS[attack.warm_start]))

    def check(target: Target, params: Any) -> None:
        trying.check(victim, target, params, threat, rows[0][1].rule)
        for flag, row in rows:
            reason = _refused(row, target, params, threat, answers)
            if reason:
                named = f"--model={victim.model}" if victim.model else victim.named
                raise ValueError(f"--{flag}={row.name} does not fit {named}: {reason}.")

    return check


def _refused(
    row: Attacker, target: Target, params: Any, threat: Threat, cache: Cache
) -> str | None:
    """Returns why an attack does not fit a network; asking may mean tracing it."""
    refuses = row.refuses
    if refuses is None:
        return None
    key = ("refused", row.name, situations.without_numbers(target), threat)
    reason = cache(key, lambda: refuses(target, params, threat))
    return reason.rstrip(".") if reason else None


def known(
    data: Data, victim: Victim, clients: Clients, attack: Attack
) -> dict[str, str]:
    """Returns the lines of the threat model that settings know best."""
    lines = {"batch_norm": _norm_knowledge(victim)}
    counted = attack.labels == "inferred" and clients.batch_size > 1
    if counted or ATTACKERS[attack.attack].public:
        lines["public_data"] = f"--train_split={data.train_split}"
    return lines


def _norm_knowledge(victim: Victim) -> str:
    if victim.model is None:
        return "as the given loss has it"
    if not has_batch_norm(victim.model, victim.norm, victim.norm_mode):
        return "none in the model"
    if victim.norm_mode == "eval":
        return "eval mode: running statistics, known with the model"
    return "train mode: statistics of the batch, not shared"
