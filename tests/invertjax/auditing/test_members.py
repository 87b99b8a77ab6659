"""Targets whose server sees nothing but the mean of several clients' updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invertjax.auditing import Local, Target, Threat, attackers, clients
from invertjax.auditing.threat_model import threat_model
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts

# Two members of one pixel and one channel each, two images a member.
IMAGES = np.array([1.0, 3.0, 8.0, 12.0], np.float32).reshape(4, 1, 1, 1)
BATCH = {"image": jnp.asarray(IMAGES), "label": jnp.zeros(4, jnp.int32)}
OF_MEMBERS = (2.0, 10.0)  # their gradients: the means of their images


def loss_fn(params, batch):
    """Its gradient is the mean image, wherever it is taken."""
    return jnp.mean(batch["image"] * params["scale"])


def target(members, **facts) -> Target:
    return Target(loss_fn, (4, 1, 1, 1), Parts(1), members=members, **facts)


def scalar(client) -> float:
    params = {"scale": jnp.float32(1)}
    return float(jax.jit(client)(params, BATCH, jax.random.key(0))["scale"])


@pytest.mark.parametrize(
    "members, mean", [(None, 6.0), ((1.0, 1.0), 6.0), ((3.0, 1.0), 4.0)]
)
def test_the_update_is_the_weighted_mean_of_the_members(members, mean):
    made = target(members)
    for client in (
        clients.shared(made),
        clients.actual(made),
        clients.simulated(made, knows=False),
    ):
        assert scalar(client) == pytest.approx(mean, rel=1e-6)


def test_every_member_trains_on_its_own_batch():
    """Two steps of rate 0.5 with one image each: half the sum of a member's images."""
    local = Local(steps=2, batch_size=1, learning_rate=0.5)
    made = target((3.0, 1.0), local=local)
    assert scalar(clients.shared(made)) == pytest.approx((3 * 2 + 10) / 4, rel=1e-6)
    assert scalar(clients.simulated(made, knows=True)) == pytest.approx(4, rel=1e-6)


def test_every_member_defends_its_own_update():
    """Clipped at 5 the second member sends 5; who does not know of that expects 10."""
    made = target((3.0, 1.0), protections=(protections.of("clip", 5.0),))
    assert scalar(clients.shared(made)) == pytest.approx((3 * 2 + 5) / 4, rel=1e-6)
    assert scalar(clients.actual(made)) == pytest.approx((3 * 2 + 10) / 4, rel=1e-6)
    assert scalar(clients.simulated(made, knows=False)) == pytest.approx(4, rel=1e-6)


def test_the_threat_model_says_what_the_server_sees():
    row = attackers.INVERTING_GRADIENTS
    alone = threat_model(row, target(None), Threat())["server"]
    several = threat_model(row, target((1.0, 2.0)), Threat())["server"]
    assert "one client's update" in alone and "mean of 2 clients" in several
