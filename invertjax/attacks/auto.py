"""The attack that an auditor who does not choose should run."""

from invertjax.attacks.analytic import admits, analytic
from invertjax.attacks.inverting_gradients import inverting_gradients
from invertjax.base import Attack, Candidate, Update


def auto(
    client,
    observed: Update,
    candidate: Candidate,
    shape: tuple[int, ...],
    *,
    layer: str | None = None,
    from_input=lambda flat: flat,
    **options,
) -> Attack:
    """`analytic` where the update admits the closed form, else `inverting_gradients`.

    Decides on concrete arrays, so call it outside `jit` and `vmap`.

    Args:
      client, observed, candidate: see `matching.attack`.
      shape: `(B, H, W, C)`.
      layer, from_input: see `analytic`.
      options: for `inverting_gradients`.
    """
    if admits(observed, shape, layer=layer):
        return analytic(client, observed, candidate, layer=layer, from_input=from_input)
    return inverting_gradients(client, observed, candidate, **options)
