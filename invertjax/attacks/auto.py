"""The attack that an auditor who does not choose should run."""

from invertjax.attacks.analytic import admits, analytic
from invertjax.attacks.inverting_gradients import inverting_gradients
from invertjax.base import Attack, Candidate, Update


def auto(client, observed: Update, candidate: Candidate, shape, **options) -> Attack:
    """`analytic` where the update admits the closed form, else `inverting_gradients`.

    Decides on concrete arrays, so call it outside `jit` and `vmap`.

    Args:
      client, observed, candidate: see `matching.attack`.
      shape: `(B, H, W, C)`.
      options: for `inverting_gradients`.
    """
    if admits(observed, shape):
        return analytic(client, observed, candidate)
    return inverting_gradients(client, observed, candidate, **options)
