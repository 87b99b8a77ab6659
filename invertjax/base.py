"""The vocabulary: what clients, distances, priors, candidates and attacks are.

A client is a function from a batch to an update. A defense changes the update.
An attack runs the client backwards.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Key = jax.Array
Params = Any  # pytree of arrays
Batch = Any  # by default {"image": [B, H, W, C] in [0, 1], "label": [B] or [B, K]}
Update = Any  # pytree with the structure and shapes of Params
Point = Any  # pytree of arrays: what an optimiser moves; a Candidate decodes it

Share = Callable[[Batch], Update]  # a client at fixed params and key
Softened = Callable[[Batch, jax.Array], Update]  # (batch, sharpness) -> update
Block = Callable[[Params, jax.Array], jax.Array]  # (params, features) -> features

Loss = Callable[[Params, Batch], jax.Array]
Client = Callable[[Params, Batch, Key], Update]
Objective = Callable[[Point, jax.Array], jax.Array]
Prior = Callable[[Batch, jax.Array], jax.Array]
Residual = Callable[[Point, jax.Array], Any]

Row = dict[str, Any]  # of a table: plain values by column
Arrays = dict[str, Any]  # of one update: by name, such as a Batch with "original"


class Candidate(NamedTuple):
    """What is optimised, and how it becomes a batch.

    init: `key -> z`, a random start; the key is consumed.
    decode: `z -> batch`; known labels are closed over here.
    project: `z -> z`, back into the valid set after every step.
    bounds: of the images, (low, high), if `project` keeps them between.
    """

    init: Callable[[Key], Point]
    decode: Callable[[Point], Batch]
    project: Callable[[Point], Point]
    bounds: tuple[float, float] | None = None


class Distance(NamedTuple):
    """How far a guessed update is from the observed one.

    residual: `(guess, observed) -> pytree`, zero where they agree.
    reduce: `residual -> []`, a scalar to minimise.

    First-order attacks minimise `reduce(residual(guess, observed))`; least-squares
    attacks use the residual itself.
    """

    residual: Callable[[Update, Update], Any]
    reduce: Callable[[Any], jax.Array]

    def __call__(self, guess: Update, observed: Update) -> jax.Array:
        return self.reduce(self.residual(guess, observed))


class Stop:
    """Why a trial ended (`Result.stopped`)."""

    BUDGET = 0  # all its steps were taken
    NON_FINITE = 1  # loss, gradient or step was NaN or infinite; best so far is kept
    INTERRUPTED = 2  # the caller interrupted; best so far is kept
    DROPPED = 3  # other restarts of the target did better; best so far is kept
    PLATEAU = 4  # the objective no longer fell; best so far is kept
    CONVERGED = 5  # the optimiser itself was done
    NOTHING = 6  # not even the first step was finite: the result is only the start

    NAMES = (
        "budget",
        "non-finite",
        "interrupted",
        "dropped",
        "plateau",
        "converged",
        "no finite step",
    )


class Result(NamedTuple):
    """What an attack found.

    batch: pytree `[B, ...]`, the best iterate, decoded.
    loss: `[]`, the objective of that same iterate, at the end of any schedule; `inf`
      where none was finite, or had a finite gradient: then the batch is the start, and
      no reconstruction.
    losses: `[steps]`, the objective before each step, with the weights that it had
      then; `inf` where no step was taken.
    steps: `[]` int32, steps taken.
    stopped: `[]` int32, a code of `Stop`.
    certified: `[B]` bool, the images that are proven to be in the batch, by equations
      of the update and without the truth; all False where an attack has no such rule
      (an audit may then certify them in its report, see `auditing.certifying`).
      None, in an attack of a reader's own, says the same.
    """

    batch: Batch
    loss: jax.Array
    losses: jax.Array
    steps: jax.Array
    stopped: jax.Array
    certified: jax.Array | None = None


def uncertified(batch: Batch) -> jax.Array:
    """Returns `Result.certified` of an attack without a rule: all False."""
    named = isinstance(batch, dict) and "image" in batch
    whole = batch["image"] if named else jax.tree.leaves(batch)[0]
    return jnp.zeros(jnp.shape(whole)[:1], bool)


class Attack(NamedTuple):
    """An attack on one observed update, as three pure functions.

    init: `key -> state`; the key is consumed. While there are steps to take, the state
      has `best_loss` `[]` for the driver to show.
    advance: `(state, n) -> state` after `n` (traced int) further steps.
    result: `state -> Result`, at any time.
    steps: the budget; 0 for a closed form, which is finished after `init`.
    """

    init: Callable[[Key], Any]
    advance: Callable[[Any, jax.Array], Any]
    result: Callable[[Any], Result]
    steps: int
