"""The attack that an auditor who does not choose should run."""

from collections.abc import Callable
from typing import Any

import jax

from invertjax import candidates
from invertjax.attacks.analytic import admits, analytic
from invertjax.attacks.inverting_gradients import inverting_gradients
from invertjax.base import Attack, Candidate, Share, Update


def auto(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    path: str | None = None,
    from_input: Callable[[jax.Array], jax.Array] = lambda flat: flat,
    **options: Any,
) -> Attack:
    """Chooses `analytic` where the update admits it, else `inverting_gradients`.

    It decides on concrete arrays, so call it outside `jit` and `vmap`.

    Args:
      share, observed, candidate: see `matching.attack`.
      path, from_input: see `analytic`.
      options: for `inverting_gradients`.
    """
    shape = candidates.shapes(candidate)["image"].shape
    if admits(observed, shape, path=path):
        return analytic(share, observed, candidate, path=path, from_input=from_input)
    return inverting_gradients(share, observed, candidate, **options)
