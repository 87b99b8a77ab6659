"""An attack that goes down layer by layer: R-GAP (Zhu and Blaschko 2021).

An update says what went into the last block of a network, since the gradient of its
weights is the slope of the loss times its input. That input is the output of the block
below, whose input follows in the same way, and so on, down to the images. Each is found
by least squares.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import distances, losses, matching, trees, updates
from invertjax.base import (
    Attack,
    Batch,
    Block,
    Candidate,
    Key,
    Params,
    Point,
    Result,
    Share,
    Stop,
    Update,
    uncertified,
)
from invertjax.rewrites import convolutions
from invertjax.solvers.levenberg_marquardt import levenberg_marquardt

MARGIN = 1.25  # equations for each unknown that a block must have to be solved alone


class _Part(NamedTuple):
    """Several blocks that follow one another.

    run: `(used, features) -> output`; the loss `[]` if they reach up to it.
    used: the params that they read. shared: their part of the update.
    """

    run: Callable
    used: list[jax.Array]
    shared: list[jax.Array]

    def equations(self, features: jax.Array) -> int:
        output = jax.eval_shape(self.run, self.used, features)
        return output.size + sum(leaf.size for leaf in self.used)


class _Rung(NamedTuple):
    """One step on the way from the loss down to the images: what is solved for there.

    alone: the blocks of this rung. whole: the blocks from here up to the loss.
    guess: the features that go in, where the solver starts.
    """

    alone: _Part
    whole: _Part
    guess: jax.Array


def recursive(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    params: Params,
    blocks: Sequence[Block],
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.cross_entropy,
    steps: int = 30,
    **options: Any,
) -> Attack:
    """Solves for the input of every block in turn, from the loss down to the images.

    For a block y = f(w, x) whose output y and slope s = dL/dy are known,

        min over x: |f(w, x) - y|^2 / |y|^2 + |s df/dw(w, x) - dL/dw|^2 / |dL/dw|^2

    is solved by Levenberg-Marquardt steps that start from the features of the
    candidate's start. For the topmost block f is the loss, and y is not known. A third
    as many steps follow on the gradients of this block and of all above it, except at
    the lowest block. A block with fewer than 1.25 equations for each unknown is solved
    together with the block below it; there the paper's rank analysis says that the
    attack fails. Deviations from the paper: its layers are linear in x, since it
    inverts activations in closed form; ours need only be smooth, and batches may have
    several images.

    Args:
      share: `batch -> update`; scores the answer (`Result.loss` is the cosine distance
        of its update from the observed one).
      observed: one gradient, the mean over the batch: no local steps.
      candidate: of the batch, whose labels must be known.
      params: of the network.
      blocks: `(params, features) -> features` each, from images to logits, such as
        `models.Network.blocks`; what follows must not look past the features.
      loss: `(logits, labels) -> []`.
      steps: Levenberg-Marquardt steps of a block, at most.
      options: of `levenberg_marquardt`; by default 300 iterations of conjugate
        gradients to 1e-4, and no J^T J, since `gauss_newton` can find the last digits.

    Raises:
      ValueError: without blocks, or if `observed` does not have the tree and
        shapes of what `share` returns.
    """
    if not blocks:
        raise ValueError(
            "Expected blocks=() to name the blocks of the network, from images to "
            "logits: this network has none."
        )
    observed = updates.checked(share, observed, candidate)
    options = {"dense": 0, "iterations": 300, "tolerance": 1e-4, **options}

    def init(key: Key) -> tuple[Point, jax.Array]:
        z = candidate.init(key)
        batch = candidate.decode(z)
        ladder = _ladder(blocks, params, observed, batch, loss)
        images, taken = _descended(ladder, steps, options)
        return {**z, "image": images}, taken

    def result(state: tuple[Point, jax.Array]) -> Result:
        z, taken = state
        batch = candidate.decode(z)
        value = distances.cosine(share(batch), observed)
        finite = jnp.isfinite(value)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        value = jnp.where(finite, value, jnp.inf)
        none = uncertified(batch)
        return Result(batch, value, jnp.zeros(0), taken, stopped, none)

    return matching.in_full_precision(Attack(init, lambda state, n: state, result, 0))


def _descended(
    ladder: list[_Rung], steps: int, options: dict[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Returns the images, and the number of steps that were taken in all."""
    top, *lower = reversed(ladder)
    features, taken = _solved(top.whole, top.guess, steps, options)
    above = top.whole
    for rung in lower:
        slope = jax.grad(above.run, argnums=1)(above.used, features)
        known = features, slope
        features, count = _solved(rung.alone, rung.guess, steps, options, known)
        taken += count
        # Errors would grow from rung to rung. At the bottom these steps would solve the
        # whole problem, as `gauss_newton` does.
        if rung is not lower[-1]:
            few = max(1, steps // 3)
            features, count = _solved(rung.whole, features, few, options)
            taken += count
        above = rung.whole
    return features, taken


def _ladder(
    blocks: Sequence[Block],
    params: Params,
    observed: Update,
    batch: Batch,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
) -> list[_Rung]:
    """Returns the rungs from the bottom up, each with enough equations if possible."""
    if convolutions.preferred():
        blocks = [convolutions.as_matrix_products(block) for block in blocks]
    features = [batch["image"]]
    for block in blocks[:-1]:
        features.append(block(params, features[-1]))
    rungs: list[_Rung] = []
    whole = [lambda params, logits: loss(logits, batch["label"])]
    alone = list(whole)
    for block, guess in zip(reversed(blocks), reversed(features), strict=True):
        whole, alone = [block, *whole], [block, *alone]
        part = _part(alone, params, observed, guess)
        if part.equations(guess) >= MARGIN * guess.size or guess is features[0]:
            rung = _Rung(part, _part(whole, params, observed, guess), guess)
            rungs, alone = [rung, *rungs], []
    return rungs


def _part(
    blocks: Sequence[Block], params: Params, observed: Update, features: jax.Array
) -> _Part:
    leaves, tree = jax.tree.flatten(params)

    def all_of(params: Params, features: jax.Array) -> jax.Array:
        for block in blocks:
            features = block(params, features)
        return features

    reads = _reads(all_of, params, features)

    def run(used: list[jax.Array], features: jax.Array) -> jax.Array:
        rest = iter(used)
        filled = [
            next(rest) if read else leaf
            for leaf, read in zip(leaves, reads, strict=True)
        ]
        return all_of(jax.tree.unflatten(tree, filled), features)

    used, shared = (
        [leaf for leaf, read in zip(of, reads, strict=True) if read]
        for of in (leaves, jax.tree.leaves(observed))
    )
    return _Part(run, used, shared)


def _reads(fun: Block, params: Params, features: jax.Array) -> list[bool]:
    """Says of each leaf of the params whether `fun` reads it."""
    traced = jax.make_jaxpr(fun)(params, features).jaxpr
    seen = {id(var) for eqn in traced.eqns for var in eqn.invars}
    seen |= {id(var) for var in traced.outvars}
    count = len(jax.tree.leaves(params))
    return [id(var) in seen for var in traced.invars[:count]]


def _solved(
    part: _Part,
    guess: jax.Array,
    steps: int,
    options: dict[str, Any],
    known: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns what goes into a part, and the number of steps that were taken.

    known: what comes out of it, and the slope of the loss there; None if what comes out
    is the loss.
    """
    output, slope = (None, jnp.ones((), guess.dtype)) if known is None else known
    scale = _inverse_norm(part.shared)

    def residual(features: jax.Array, t: Any) -> list[jax.Array]:
        del t
        value, pull = jax.vjp(lambda used: part.run(used, features), part.used)
        (gradient,) = pull(slope)
        found = [scale * (g - o) for g, o in zip(gradient, part.shared, strict=True)]
        if output is not None:
            found.append(_inverse_norm(output) * (value - output))
        return found

    def objective(features: jax.Array, t: Any) -> jax.Array:
        return 0.5 * trees.squared_norm(residual(features, t))

    rounding = 4 * jnp.finfo(guess.dtype).eps ** 2

    def converged(state: Any, value: jax.Array, t: jax.Array) -> jax.Array:
        del t
        return state.stalled | (value < rounding)

    attack = matching.minimise(
        objective,
        Candidate(lambda key: guess, lambda z: z, lambda z: z),
        levenberg_marquardt(**options),
        steps=steps,
        schedule=matching.Schedule(residual, lambda z: objective(z, 1.0), converged),
    )
    state = attack.advance(attack.init(jax.random.key(0)), jnp.array(steps))
    found = attack.result(state)
    return found.batch, found.steps


def _inverse_norm(tree: Any) -> jax.Array:
    norm = trees.norm(tree)
    return 1 / jnp.where(norm > 0, norm, 1.0)
