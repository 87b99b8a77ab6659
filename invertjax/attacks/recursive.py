"""Layer by layer, from the loss down: R-GAP (Zhu and Blaschko 2021), by least squares.

Of the last block of a network the update says what went in: the gradient of its weights
is the slope of the loss times its input. Once that input is known, it is the output of
the block below, and the slope there is known as well; and so on, down to the images.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invertjax import distances, losses, matching
from invertjax.base import Attack, Candidate, Params, Result, Stop, Update
from invertjax.rewrites import convolutions
from invertjax.solvers.levenberg_marquardt import levenberg_marquardt

Block = Callable[[Params, jax.Array], jax.Array]
MARGIN = 1.25  # equations an unknown, below which a block is not solved on its own


class _Part(NamedTuple):
    """Blocks in a row.

    run: `(used, features) -> output`; the loss `[]` if they reach up to it.
    used: the params that they read. shared: their part of the update.
    """

    run: Callable
    used: list[jax.Array]
    shared: list[jax.Array]

    def equations(self, features) -> int:
        output = jax.eval_shape(self.run, self.used, features)
        return output.size + sum(leaf.size for leaf in self.used)


class _Rung(NamedTuple):
    """One step of the way down.

    alone: the blocks of this rung. whole: from here up to the loss.
    guess: the features that go in, at the start.
    """

    alone: _Part
    whole: _Part
    guess: jax.Array


def recursive(
    client,
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

    is solved by Levenberg-Marquardt steps from the features of the candidate's start; y
    is unknown for the topmost block, whose f is the loss. A third as many steps on the
    gradients of this block and of all above it follow, but for the lowest. Deviations
    from the paper: its layers are linear in x, as activations are inverted in closed
    form; ours need only be smooth, and batches may have several images. A block of
    fewer equations than its unknowns times 1.25 is solved together with the block below
    it (the paper's rank analysis says there that the attack fails).

    Args:
      client: `batch -> update`; scores the answer (`Result.loss` is the cosine distance
        of its update from the observed one).
      observed: one gradient, the mean over the batch: no local steps.
      candidate: of the batch, whose labels must be known.
      params: of the network.
      blocks: `(params, features) -> features` each, from images to logits, such as
        `models.Network.blocks`; what follows must not look past the features.
      loss: `(logits, labels) -> []`.
      steps: Levenberg-Marquardt steps of a block, at most.
      options: of `levenberg_marquardt`; by default 300 iterations of conjugate
        gradients to 1e-4, and no J^T J: this is a start, and `gauss_newton` is there
        for the last digits.

    Raises:
      ValueError: without blocks, or if `observed` does not fit the client.
    """
    if not blocks:
        raise ValueError(
            "Expected blocks=() to name the blocks of the network, from images to "
            "logits: this network has none."
        )
    matching.check_structure(client, observed, candidate)
    options = {"dense": 0, "iterations": 300, "tolerance": 1e-4, **options}

    def init(key):
        z = candidate.init(key)
        batch = candidate.decode(z)
        ladder = _ladder(blocks, params, observed, batch, loss)
        images, taken = _descended(ladder, steps, options)
        return {**z, "image": images}, taken

    def result(state):
        z, taken = state
        batch = candidate.decode(z)
        value = distances.cosine(client(batch), observed)
        finite = jnp.isfinite(value)
        stopped = jnp.where(finite, Stop.BUDGET, Stop.NON_FINITE)
        value = jnp.where(finite, value, jnp.inf)
        return Result(batch, value, jnp.zeros(0), taken, stopped)

    return matching.in_full_precision(Attack(init, lambda state, n: state, result, 0))


def _descended(ladder, steps, options):
    """The images, and the number of steps in all."""
    top, *lower = reversed(ladder)
    features, taken = _solved(top.whole, top.guess, steps, options)
    above = top.whole
    for rung in lower:
        slope = jax.grad(above.run, argnums=1)(above.used, features)
        known = features, slope
        features, count = _solved(rung.alone, rung.guess, steps, options, known)
        taken += count
        # Left to itself an error grows from rung to rung. At the bottom this would be
        # the whole problem, which is `gauss_newton`'s.
        if rung is not lower[-1]:
            few = max(1, steps // 3)
            features, count = _solved(rung.whole, features, few, options)
            taken += count
        above = rung.whole
    return features, taken


def _ladder(blocks, params, observed, batch, loss) -> list[_Rung]:
    """The rungs from the bottom up, each with equations enough if it can be."""
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


def _part(blocks, params, observed, features) -> _Part:
    leaves, tree = jax.tree.flatten(params)

    def all_of(params, features):
        for block in blocks:
            features = block(params, features)
        return features

    reads = _reads(all_of, params, features)

    def run(used, features):
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


def _reads(fun, params, features) -> list[bool]:
    """Which leaves of the params `fun` reads."""
    traced = jax.make_jaxpr(fun)(params, features).jaxpr
    seen = {id(var) for eqn in traced.eqns for var in eqn.invars}
    seen |= {id(var) for var in traced.outvars}
    count = len(jax.tree.leaves(params))
    return [id(var) in seen for var in traced.invars[:count]]


def _solved(part, guess, steps, options, known=None):
    """What goes into a part, and the number of steps; known: what comes out, and the
    slope of the loss there, where that is not the loss itself."""
    output, slope = (None, jnp.ones((), guess.dtype)) if known is None else known
    scale = _inverse_norm(part.shared)

    def residual(features, t):
        del t
        value, pull = jax.vjp(lambda used: part.run(used, features), part.used)
        (share,) = pull(slope)
        found = [scale * (g - o) for g, o in zip(share, part.shared, strict=True)]
        if output is not None:
            found.append(_inverse_norm(output) * (value - output))
        return found

    def objective(features, t):
        return 0.5 * distances.squared_norm(residual(features, t))

    rounding = 4 * jnp.finfo(guess.dtype).eps ** 2

    def converged(state, value, t):
        del t
        return state.stalled | (value < rounding)

    attack = matching.minimise(
        objective,
        Candidate(lambda key: guess, lambda z: z, lambda z: z),
        levenberg_marquardt(**options),
        steps=steps,
        schedule=matching.Schedule(residual, lambda z: objective(z, 1.0), converged),
    )
    state = attack.advance(attack.init(jax.random.key(0)), steps)
    found = attack.result(state)
    return found.batch, found.steps


def _inverse_norm(tree):
    squares = distances.squared_norm(tree)
    return jnp.where(squares > 0, squares, 1.0) ** -0.5
