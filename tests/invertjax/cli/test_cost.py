"""Operations and equations, counted; what is made of them, in words."""

import jax
import jax.numpy as jnp
import pytest

from invertjax.auditing import Local
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import cost


def test_backends_that_do_not_count_compile(monkeypatch):
    """As plugins do where JAX_PLATFORMS leaves the CPU out."""

    def none(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    product = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda lowered: None)
    found, equations = cost._counted(lambda a: a @ a, product)
    assert equations == 1 and found == pytest.approx(2 * 8**3)


def _loss(params, batch):
    return jnp.sum((batch["image"].reshape(len(batch["image"]), -1) @ params) ** 2)


def test_an_update_is_counted_by_its_loss(monkeypatch):
    """A product of n by m costs 2 n m in every pass; images have five, see the client
    whose first layer it is."""
    monkeypatch.setattr(cost, "speed", lambda: 1e6)
    params = jnp.zeros((48, 500))
    one = cost.of_update(_loss, params, (1, 4, 4, 3), 10)
    several = cost.of_update(_loss, params, (5, 4, 4, 3), 10)
    trained = cost.of_update(_loss, params, (5, 4, 4, 3), 10, Local(4, 5))
    image = several.running - one.running
    assert image == pytest.approx(4 * 10 * 5 * 2 * 48 * 500 / 1e6, rel=0.1)
    assert trained.running - one.running == pytest.approx(19 / 4 * image)
    assert one.memory == cost.MEMORY * params.size
    assert one.compiling >= cost.COMPILE


def test_a_loss_that_takes_no_single_image_is_not_counted():
    assert cost.of_update(lambda p, b: 1 / 0, jnp.zeros(3), (2, 4, 4, 3), 10) is None


def test_an_estimate_in_words():
    found = cost.Estimate(600.0, 30.0, 2e6).plus(cost.Estimate(0.0, 30.0, 1e6))
    assert str(found) == "about 11 min, 60 s of them to compile, 2 MB of updates"


@pytest.mark.parametrize(
    "name, steps, restarts, warm, expected",
    [
        ("inverting_gradients", 7, 3, None, 21),
        ("gauss_newton", 2, None, "inverting_gradients", 2 * 300 + 2000),
        ("recursive", None, None, None, 60 * 300),
    ],
)
def test_iterations_are_those_of_the_row(name, steps, restarts, warm, expected):
    row, first = ATTACKERS[name], ATTACKERS[warm] if warm else None
    assert cost.iterations(row, steps, restarts, first) == expected
