"""Rounds of federated learning: clients make updates, the server takes a step."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax import keys
from invertjax.base import Batch, Key, Params, Update
from invertjax.defenses.defended import Defense
from invertjax.federated import aggregation
from invertjax.federated.base import Aggregator, Behaviour, Seen, View
from invertjax.federated.sampling import Plan

FEDAVG = optax.sgd(1.0)  # params - update


class State(NamedTuple):
    """What is kept from round to round.

    params: the model that the server sends next.
    previous: the one that it sent last; at first, `params`.
    server_state: of the server's optimiser.
    defense_state: of every client's defense, leaves `[population, ...]`, less its keys.
    round: `[]` int32, rounds done.
    """

    params: Params
    previous: Params
    server_state: Any
    defense_state: Any
    round: jax.Array


class Log(NamedTuple):
    """What happened in a round.

    round: `[]` int32, its number.
    dropped: `[]` int32, clients left out because their update was not finite.
    weight: `[]`, sum of the weights that counted; if zero, the model did not change.
    """

    round: jax.Array
    dropped: jax.Array
    weight: jax.Array


class Round(NamedTuple):
    """One round, as two pure functions.

    init: `(key, params, population) -> State`; the key is consumed.
    step: `(key, state, data, ids, weights) -> (state, Seen, Log)`, with data `[m, k,
      ...]`, ids `[m]` distinct ints in [0, population) and weights `[m]` >= 0 of the m
      clients, in the order of the cast. The key is that of the run, the same in every
      round, and not consumed: the keys of the round are folded from it, the round's
      number and the clients' ids.
    """

    init: Callable[[Key, Params, int], State]
    step: Callable[..., tuple[State, Seen, Log]]


def make(
    cast: Sequence[tuple[Behaviour, int]],
    *,
    defense: Defense | None = None,
    aggregate: Aggregator = aggregation.mean,
    server: optax.GradientTransformation = FEDAVG,
    clients_map: str = "vmap",
) -> Round:
    """Makes a round of federated learning with the m clients of a cast.

    Every client makes an update from its `View`, with a key of its own for the round,
    and passes it through the defense; the server aggregates, and hands the result to
    its optimiser as the gradient (Reddi et al. 2021, "Adaptive Federated Optimization",
    Algorithm 1). With clients that share `params_before - params_after`:

    | server | is |
    |---|---|
    | `optax.sgd(1.0)` | FedAvg (McMahan et al. 2017, Algorithm 1) |
    | `optax.sgd(1.0, momentum=b)` | FedAvgM (Hsu et al. 2019) |
    | `optax.adam(lr, eps=1e-3)` | FedAdam (Reddi et al. 2021), with bias correction |

    and with clients that share gradients, `optax.sgd(lr)` is FedSGD.

    The state of a defense (an error feedback's residual, say) lives with the client
    from one of its rounds to the next, except for PRNG keys in it: these are fresh in
    every round. A defense that draws from a fixed seed, and not from its key, draws
    the same for all clients.

    A client whose update is not finite, before or after its defense, is dropped: it
    counts with weight zero, and its defense's state stays as it was. If no weight is
    left, neither model nor optimiser changes, and the round counts as done.

    Args:
      cast: who does what: the first `count` ids of a round play the first behaviour,
        and so on. `clients_of` draws them in random order; for a client that cheats in
        every round, order them. Static: a `lax.switch` under `vmap` would run every
        behaviour for every client.
      defense: `key -> optax.GradientTransformation`, as in `defenses.defend`.
      aggregate: `Seen -> update`.
      server: any optax optimiser.
      clients_map: "vmap", all clients at once, or "map", one after the other in the
        memory of one.

    Raises:
      ValueError: on a cast or clients_map that cannot be; when `step` is called, if
        there are not as many clients as in the cast.
    """
    if clients_map not in _MAPS:
        raise ValueError(
            f"Expected clients_map={clients_map!r} to be one of {', '.join(_MAPS)}."
        )
    count = _count(cast)
    build = defense or (lambda key: optax.identity())

    def init(key: Key, params: Params, population: int) -> State:
        own = jax.random.split(keys.typed(key), population)
        kept = jax.vmap(lambda key: _without_keys(build(key).init(params)))(own)
        return State(params, params, server.init(params), kept, jnp.int32(0))

    def client(state: State, key: Key, behaviour: Behaviour, one: tuple) -> tuple:
        client_id, data, kept = one
        own_key, defense_key = jax.random.split(jax.random.fold_in(key, client_id))
        view = View(state.params, state.previous, data, state.round, own_key)
        update = behaviour(view)
        transform = build(defense_key)
        opened = _with_keys(kept, transform.init(state.params))
        shared, after = transform.update(update, opened, state.params)
        finite = _finite((update, shared))
        return shared, optax.tree.where(finite, _without_keys(after), kept), finite

    def step(
        key: Key, state: State, data: Batch, ids: jax.Array, weights: jax.Array
    ) -> tuple[State, Seen, Log]:
        _check_clients(count, ids, weights, data)
        round_key = jax.random.fold_in(keys.typed(key), state.round)
        server_key, clients_key = jax.random.split(round_key)
        play = functools.partial(client, state, clients_key)
        held = (ids, data, _take(state.defense_state, ids))
        updates, kept, finite = _perform(cast, _MAPS[clients_map], play, held)

        weights = jnp.where(finite, weights, 0)
        seen = Seen(
            state.params, state.previous, updates, weights, state.round, server_key
        )
        params, server_state = _served(server, state, aggregate(seen), weights)
        defense_state = jax.tree.map(
            lambda everyone, some: everyone.at[ids].set(some), state.defense_state, kept
        )
        log = Log(state.round, jnp.sum(~finite, dtype=jnp.int32), jnp.sum(weights))
        after = State(
            params, state.params, server_state, defense_state, state.round + 1
        )
        return after, seen, log

    return Round(init, step)


def scan(
    key: Key, one_round: Round, state: State, dataset: Batch, plan: Plan
) -> tuple[State, Log]:
    """Runs the rounds of a plan, one after the other, in one `lax.scan`.

    A run in two parts is the same as in one, since keys depend on `state.round`.

    Args:
      key: that of the run, see `Round`; not consumed.
      one_round: see `make`.
      state: from `one_round.init`, or where an earlier scan ended.
      dataset: pytree `[n, ...]`, the examples of all clients.
      plan: the rounds from `state.round` on.

    Returns:
      The state after R rounds, and their logs, stacked `[R]`.
    """

    def one(state: State, now: Plan) -> tuple[State, Log]:
        ids, rows, weights = now
        data = _take(dataset, rows)
        state, _, log = one_round.step(key, state, data, ids, weights)
        return state, log

    dataset, plan = jax.tree.map(jnp.asarray, (dataset, plan))
    return jax.lax.scan(one, state, plan)


_MAPS = {"vmap": jax.vmap, "map": lambda fun: functools.partial(jax.lax.map, fun)}


def _perform(
    cast: Sequence[tuple[Behaviour, int]],
    over_clients: Callable,
    play: Callable,
    held: tuple,
) -> Any:
    """Calls `play(behaviour, client)` for every client of the cast; `[m, ...]`."""
    start, results = 0, []
    for behaviour, count in cast:
        group = _take(held, slice(start, start + count))
        results.append(over_clients(functools.partial(play, behaviour))(group))
        start += count
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)


def _served(
    server: optax.GradientTransformation,
    state: State,
    aggregated: Update,
    weights: jax.Array,
) -> tuple[Params, Any]:
    """Returns params and server state after the step; unchanged if no client counts."""
    delta, server_state = server.update(aggregated, state.server_state, state.params)
    stepped = (optax.apply_updates(state.params, delta), server_state)
    before = (state.params, state.server_state)
    return optax.tree.where(jnp.any(weights > 0), stepped, before)


def _without_keys(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: None if keys.is_key(leaf) else leaf, tree)


def _with_keys(kept: Any, fresh: Any) -> Any:
    """Puts the keys of `fresh` where `kept` has None in their place."""
    return jax.tree.map(lambda f, k: f if keys.is_key(f) else k, fresh, kept)


def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _take(tree: Any, index: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _count(cast: Sequence[tuple[Behaviour, int]]) -> int:
    counts = [count for _, count in cast]
    if not counts or min(counts) < 1:
        raise ValueError(f"Expected counts={counts} of the cast, all >= 1.")
    return sum(counts)


def _check_clients(count: int, ids: jax.Array, weights: jax.Array, data: Batch) -> None:
    leading = {leaf.shape[:1] for leaf in jax.tree.leaves((ids, weights, data))}
    if leading != {(count,)}:
        raise ValueError(
            f"Expected leading axes {sorted(leading)} of data, ids and weights to be "
            f"({count},), the clients of the cast."
        )
