"""Geiping et al. (2020), "Inverting Gradients: How easy is it to break privacy in
federated learning?", section 4."""

import jax
import optax

from invertjax import candidates, distances, matching, priors
from invertjax.base import Attack, Candidate, Distance, Share, Update


def inverting_gradients(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    steps: int = 2_000,
    learning_rate: jax.typing.ArrayLike = 0.02,
    total_variation: priors.Weight = 3e-2,
    signed: bool = True,
    distance: Distance = distances.cosine,
) -> Attack:
    """Minimises cosine distance and total variation by Adam on the gradient's sign.

        min over x in [0, 1]: 1 - cos(share(x), observed) + a TV(x)

    The learning rate falls tenfold after 3/8, 5/8 and 7/8 of the steps. Invariant to a
    positive scaling of the update: clipping alone is no defense against it.

    Args:
      share: `batch -> update`.
      observed: the shared update.
      candidate: of the batch; kept in its own bounds, or else in [0, 1].
      steps: iterations; the paper takes 4,800 to 24,000.
      learning_rate: of Adam, in units of pixels in [0, 1]. The paper's 0.1 is in units
        of normalised pixels (about four times larger).
      total_variation: weight a.
      signed: False for plain Adam.
      distance: e.g. `distances.masked(distances.cosine)` against pruning.
    """
    adam = optax.adam(step_decay(learning_rate, steps))
    optimizer = optax.chain(optax.scale_by_sign(), adam) if signed else adam
    return matching.attack(
        share,
        observed,
        candidates.boxed(candidate),
        optimizer=optimizer,
        steps=steps,
        distance=distance,
        prior=priors.total_variation(total_variation),
    )


def step_decay(learning_rate: jax.typing.ArrayLike, steps: int) -> optax.Schedule:
    """Lowers the rate tenfold after 3/8, 5/8 and 7/8 of the steps; it may be traced."""
    falls = {steps * part // 8: 0.1 for part in (3, 5, 7)}
    factor = optax.piecewise_constant_schedule(1.0, falls)
    return lambda count: learning_rate * factor(count)
