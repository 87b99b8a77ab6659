"""Zhu et al. (2019), "Deep Leakage from Gradients", Algorithm 1."""

import optax

from invertjax import distances, matching
from invertjax.base import Attack, Candidate, Distance, Share, Update


def deep_leakage(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    steps: int = 300,
    history: int = 100,
    distance: Distance = distances.squared,
) -> Attack:
    """Minimises the squared distance by L-BFGS, over images and labels as in the paper.

        min over x, y: |share(x, softmax(y)) - observed|^2

    The returned batch holds the optimised labels. Needs a twice differentiable
    activation (sigmoid), small batches, and better float64: in float32 the line search
    stalls before the images are exact.

    Args:
      share: `batch -> update`.
      observed: the shared update.
      candidate: `candidates.pixels(shape, num_classes=K)` for joint labels, or
        `candidates.pixels(shape, labels)`. Not boxed: a projection breaks the
        curvature pairs of L-BFGS.
      steps: L-BFGS iterations, one line search each. The paper's 300 calls are of up to
        20 iterations each.
      history: curvature pairs kept.
      distance: see `distances`.
    """
    return matching.attack(
        share,
        observed,
        candidate,
        optimizer=optax.lbfgs(memory_size=history),
        steps=steps,
        distance=distance,
    )
