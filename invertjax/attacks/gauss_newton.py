"""Gradient matching as nonlinear least squares, by Levenberg-Marquardt.

A shared gradient has more coordinates than a batch has pixels, so that matching it is
an overdetermined system: where its Jacobian has full rank and the network is smooth,
damped Gauss-Newton converges quadratically to the images themselves.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invertjax import (
    candidates,
    clients,
    derivatives,
    distances,
    matching,
    priors,
    trees,
    updates,
)
from invertjax.base import (
    Attack,
    Batch,
    Candidate,
    Distance,
    Point,
    Result,
    Share,
    Softened,
    Update,
)
from invertjax.driver.quick import traced_once
from invertjax.solvers import robust
from invertjax.solvers.levenberg_marquardt import levenberg_marquardt

CHEAP = 24  # steps before J^T J is worth its price: conjugate gradients are fast here
NEARLY = 1e-4  # below this objective only a few units can be wrong
HEAVY = 0.3  # below this `robust.tail` the residual is not noise
SHARPNESS = (8.0, 32.0, 128.0, 512.0, math.inf)


class Stages(NamedTuple):
    """How the problem changes over the run, in stages of equal length."""

    sharpness: tuple[float, ...]
    total_variation: tuple[jax.Array, ...]

    def at(self, t: jax.Array) -> jax.Array:
        """Returns the number of the stage at a share t in [0, 1] of the run."""
        last = len(self.sharpness) - 1
        return jnp.minimum(jnp.floor(t * len(self.sharpness)), last).astype(int)


def gauss_newton(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    steps: int = 50,
    softened: Softened | None = None,
    sharpness: tuple[float, ...] = SHARPNESS,
    total_variation: jax.typing.ArrayLike | None = None,
    layerwise: float = 0.0,
    noise: jax.typing.ArrayLike = 0.0,
    polish: int = 16,
    distance: Distance = distances.squared,
    **options: Any,
) -> Attack:
    """Minimises the squared distance, in units of |observed|, by damped Newton steps.

        min over x: |W (share(x) - observed)|^2 / 2 + a TV(x)

    A ReLU network's gradient jumps where units turn on and off. With `softened` the
    attack first runs through smooth networks of growing sharpness, then through the
    network itself; the weight of total variation falls tenfold from stage to stage, and
    is zero in the last. A few wrong units can still hold the image in a false minimum.
    `robust.polish` leaves it, but is only tried where the objective is below 1e-4 and a
    few coordinates make most of it, as they do in a nearly matched ReLU network, and as
    noise does not.

    Args:
      share: `batch -> update`. Its twin under the rule "plain" is taken
        (`clients.plain`), which forward mode can differentiate.
      observed: the shared update.
      candidate: of the batch; with `softened` kept in its own bounds, or else in
        [0, 1]. Without that it is not: pixels leave the box on the way to an exact
        solution.
      steps: linearisations, in all stages together.
      softened: `(batch, sharpness) -> update`, the same client on the loss
        `smoothing.softened(loss_fn, sharpness)`.
      sharpness: of the stages; the last is infinite.
      total_variation: weight a in the first stage, smoothed at 1e-2; any but None and 0
        makes stages. Default: 1e-2 with `softened`, else 0.
      layerwise: s in [0, 1]; W divides a leaf's residual by its norm to the s, and by
        the whole update's to the 1 - s.
      noise: standard deviation of what was added to every coordinate of the update, if
        known: the attack stops once the residual is what the noise leaves at the best
        fit of p coordinates by d unknowns, (p - d) noise^2, or above it by no more than
        two standard deviations (the discrepancy principle: Morozov 1966).
      polish: robust steps after the last, with `softened`; they do not count as steps,
        and the objective of the result is theirs, which may be larger.
      distance: one whose reduction is the sum of squares, e.g.
        `distances.masked(distances.squared)` against pruning.
      options: of `levenberg_marquardt`; by default 24 steps do without J^T J, with
        `softened` all.

    Raises:
      ValueError: on stages that do not end with the network itself, or if `observed`
        does not have the tree and shapes of what `share` returns.
      TypeError: in `advance`, if forward mode can differentiate neither `share` nor
        `softened`.
    """
    if not sharpness or sharpness[-1] != math.inf:
        raise ValueError(f"Expected sharpness={sharpness} to end with infinity.")
    soft = softened is not None
    if total_variation is None:
        total_variation = 1e-2 if soft else 0.0
    staged = soft or not _is_zero(total_variation)
    stages = _stages(sharpness if staged else (math.inf,), total_variation)
    if soft:  # the steps between stages are too rough to be worth J^T J
        candidate, options = candidates.boxed(candidate), {"dense": 0, **options}
    share = clients.plain(share)
    observed = updates.checked(share, observed, candidate)
    weights = _weights(observed, layerwise)
    prior = priors.smoothed_total_variation(
        lambda t: jnp.stack(stages.total_variation)[stages.at(t)]
    )

    def misfit(batch: Batch, t: Any) -> Any:
        if softened is not None:
            guess = softened(batch, jnp.asarray(stages.sharpness)[stages.at(t)])
        else:
            guess = share(batch)
        residual = distance.residual(guess, observed)
        return jax.tree.map(jnp.multiply, weights, residual)

    misfit = traced_once(misfit)

    def objective(z: Point, t: Any) -> jax.Array:
        batch = candidate.decode(z)
        return 0.5 * trees.squared_norm(misfit(batch, t)) + prior(batch, t)

    def residual(z: Point, t: jax.Array) -> Any:
        batch = candidate.decode(z)
        return misfit(batch, t), prior.residual(batch, t)

    enough = _floor(observed, candidate, noise)

    def converged(state: Any, value: jax.Array, t: jax.Array) -> jax.Array:
        last = stages.at(t) == len(stages.sharpness) - 1
        return last & (state.stalled | (value <= enough))

    def rank(z: Point) -> jax.Array:
        return objective(z, 1.0)

    attack = matching.minimise(
        objective,
        candidate,
        levenberg_marquardt(**{"cheap": CHEAP, **options}),
        steps=steps,
        schedule=matching.Schedule(residual, rank, converged),
    )
    attack = attack._replace(advance=_explained(attack.advance))
    if not (soft and polish):
        return matching.in_full_precision(attack)

    def result(state: matching.State) -> Result:
        return _polished(attack.result(state), state, misfit, rank, candidate, polish)

    return matching.in_full_precision(attack._replace(result=result))


def _explained(advance: Callable[..., Any]) -> Callable[..., Any]:
    """Makes `advance` say what to do if the client has no forward-mode derivatives."""

    def advance_or_explain(state: Any, n: jax.Array) -> Any:
        try:
            return advance(state, n)
        except derivatives.NO_FORWARD_MODE as error:
            if not derivatives.lacks_forward_mode(error):
                raise
            raise TypeError(
                "Expected share and softened to have forward-mode derivatives: make "
                'their clients with clients.gradient(loss_fn, rule="plain").'
            ) from None

    return advance_or_explain


def _polished(
    found: Result,
    state: matching.State,
    misfit: Callable[[Batch, jax.typing.ArrayLike], Any],
    rank: Callable[[Point], jax.Array],
    candidate: Candidate,
    steps: int,
) -> Result:
    """Returns the result after `steps` robust steps, where these apply."""

    def residual(z: Point) -> Any:
        return misfit(candidate.decode(z), 1.0)

    z = optax.tree.where(rank(state.z) < state.best_loss, state.z, state.best)
    new = robust.polish(residual, z, steps=steps, project=candidate.project)
    loss = 0.5 * trees.squared_norm(new.after)  # as `rank`: the prior has ended
    nearly = (found.loss < NEARLY) & (loss < 10 * NEARLY)
    applies = nearly & (robust.tail(new.before) < HEAVY)
    z = optax.tree.where(applies, new.z, z)
    loss = jnp.where(applies, loss, found.loss)
    return found._replace(batch=candidate.decode(z), loss=loss)


def _stages(
    sharpness: tuple[float, ...], total_variation: jax.typing.ArrayLike
) -> Stages:
    falling = [total_variation * 10.0**-i for i in range(len(sharpness) - 1)]
    return Stages(tuple(sharpness), tuple(map(jnp.asarray, (*falling, 0.0))))


def _weights(observed: Update, layerwise: float) -> Update:
    whole = _positive_norm(observed) ** (layerwise - 1)

    def one(leaf: jax.Array) -> jax.Array:
        return whole * _positive_norm(leaf) ** -layerwise

    return jax.tree.map(one, observed)


def _positive_norm(tree: Any) -> jax.Array:
    """Returns the norm, or 1 where it is zero because the leaf was pruned away."""
    norm = trees.norm(tree)
    return jnp.where(norm > 0, norm, 1.0)


def _floor(
    observed: Update, candidate: Candidate, noise: jax.typing.ArrayLike
) -> jax.Array:
    """Returns the objective that noise, or rounding, leaves at the best fit.

    The weights of the misfit are taken to be 1 / |observed|.
    """
    start = jax.tree.leaves(candidates.shapes(candidate))
    unknowns = sum(leaf.size for leaf in start)
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(observed))
    free = max(coordinates - unknowns, 0)
    left = free + 2 * math.sqrt(2 * free)
    found = 0.5 * left * (noise / trees.norm(observed)) ** 2
    return jnp.maximum(found, 4 * jnp.finfo(found.dtype).eps ** 2)


def _is_zero(number: jax.typing.ArrayLike) -> bool:
    return isinstance(number, int | float) and number == 0
