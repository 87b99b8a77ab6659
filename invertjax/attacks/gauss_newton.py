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

from invertjax import candidates, distances, matching, priors
from invertjax.base import Attack, Batch, Candidate, Distance, Update
from invertjax.solvers import robust
from invertjax.solvers.levenberg_marquardt import levenberg_marquardt

Softened = Callable[[Batch, jax.Array], Update]
CHEAP = 24  # steps: J^T J is worth its price once conjugate gradients slow down
NEARLY = 1e-4  # objective below which only few units can be wrong
HEAVY = 0.3  # `robust.tail` below which noise is not what is left
SHARPNESS = (8.0, 32.0, 128.0, 512.0, math.inf)


class Stages(NamedTuple):
    """How the problem changes over the run; stages are of equal length."""

    sharpness: tuple[float, ...]
    total_variation: tuple[jax.Array, ...]

    def at(self, t):
        """The number of the stage at a share t in [0, 1] of the run."""
        last = len(self.sharpness) - 1
        return jnp.minimum(jnp.floor(t * len(self.sharpness)), last).astype(int)


def gauss_newton(
    client,
    observed: Update,
    candidate: Candidate,
    *,
    steps: int = 50,
    softened: Softened | None = None,
    sharpness: tuple[float, ...] = SHARPNESS,
    total_variation=None,
    layerwise: float = 0.0,
    noise=0.0,
    polish: int = 16,
    distance: Distance = distances.squared,
    **options: Any,
) -> Attack:
    """Half the squared distance of updates, in units of |observed|, by damped steps.

        min over x: |W (client(x) - observed)|^2 / 2 + a TV(x)

    A ReLU network's gradient jumps where units turn on and off. With `softened` the
    attack takes smooth ones instead, of growing sharpness, then the network itself, and
    the weight of total variation falls tenfold from stage to stage, to zero. At the end
    `robust.polish` leaves the minimum in which a few wrong units hold the image, if the
    objective is below 1e-4 and few coordinates make most of it: those of a ReLU network
    that is nearly matched, and not noise.

    Args:
      client: `batch -> update`, one that forward mode can differentiate:
        `clients.gradient(loss_fn, rule="plain")`.
      observed: the shared update.
      candidate: of the batch; kept in [0, 1] with `softened`. Without, it is not: on
        the way to an exact solution pixels leave the box.
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
        does not fit the client.
      TypeError: if the client has no forward mode.
    """
    if not sharpness or sharpness[-1] != math.inf:
        raise ValueError(f"Expected sharpness={sharpness} to end with infinity.")
    soft = softened is not None
    if total_variation is None:
        total_variation = 1e-2 if soft else 0.0
    staged = soft or not _is_zero(total_variation)
    stages = _stages(sharpness if staged else (math.inf,), total_variation)
    if soft:  # a step there is too rough to be worth J^T J
        candidate, options = candidates.box(candidate), {"dense": 0, **options}
    matching.check_structure(client, observed, candidate)
    weights = _weights(observed, layerwise)
    prior = priors.smoothed_total_variation(
        lambda t: jnp.stack(stages.total_variation)[stages.at(t)]
    )

    def misfit(batch, t):
        if softened is not None:
            guess = softened(batch, jnp.asarray(stages.sharpness)[stages.at(t)])
        else:
            guess = client(batch)
        residual = distance.residual(guess, observed)
        return jax.tree.map(jnp.multiply, weights, residual)

    def objective(z, t):
        batch = candidate.decode(z)
        return 0.5 * distances.squared_norm(misfit(batch, t)) + prior(batch, t)

    def residual(z, t):
        batch = candidate.decode(z)
        return misfit(batch, t), prior.residual(batch, t)

    enough = _floor(observed, candidate, noise)

    def converged(state, value, t):
        last = stages.at(t) == len(stages.sharpness) - 1
        return last & (state.stalled | (value <= enough))

    def rank(z):
        return objective(z, 1.0)

    attack = matching.minimise(
        objective,
        candidate,
        levenberg_marquardt(**{"cheap": CHEAP, **options}),
        steps=steps,
        schedule=matching.Schedule(residual, rank, converged),
    )
    if not (soft and polish):
        return matching.in_full_precision(attack)

    def result(state):
        return _polished(attack.result(state), state, misfit, rank, candidate, polish)

    return matching.in_full_precision(attack._replace(result=result))


def _polished(found, state, misfit, rank, candidate, steps):
    """The result after `steps` robust steps, or as it is where they do not apply."""

    def residual(z):
        return misfit(candidate.decode(z), 1.0)

    z = optax.tree.where(rank(state.z) < state.best_loss, state.z, state.best)
    rest = residual(z)
    new = robust.polish(residual, z, steps=steps, project=candidate.project)
    loss = rank(new)
    nearly = (found.loss < NEARLY) & (loss < 10 * NEARLY)
    applies = nearly & (robust.tail(rest) < HEAVY)
    z = optax.tree.where(applies, new, z)
    loss = jnp.where(applies, loss, found.loss)
    return found._replace(batch=candidate.decode(z), loss=loss)


def _stages(sharpness, total_variation):
    falling = [total_variation * 10.0**-i for i in range(len(sharpness) - 1)]
    return Stages(tuple(sharpness), tuple(map(jnp.asarray, (*falling, 0.0))))


def _weights(observed, layerwise):
    whole = distances.squared_norm(observed) ** (-0.5 * (1 - layerwise))

    def one(leaf):
        squares = distances.squared_norm(leaf)
        squares = jnp.where(squares > 0, squares, 1.0)  # a leaf that was pruned away
        return whole * squares ** (-0.5 * layerwise)

    return jax.tree.map(one, observed)


def _floor(observed, candidate, noise):
    """The objective that noise, or rounding, leaves at the best fit, by weights of
    1 / |observed|."""
    start = jax.eval_shape(candidate.init, jax.eval_shape(lambda: jax.random.key(0)))
    unknowns = sum(leaf.size for leaf in jax.tree.leaves(start))
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(observed))
    free = max(coordinates - unknowns, 0)
    left = (free + 2 * math.sqrt(2 * free)) * noise**2
    found = 0.5 * left / distances.squared_norm(observed)
    return jnp.maximum(found, 4 * jnp.finfo(found.dtype).eps ** 2)


def _is_zero(number):
    return isinstance(number, int | float) and number == 0
