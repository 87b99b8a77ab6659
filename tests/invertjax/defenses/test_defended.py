"""A defended client: what reaches the defense, and with which key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from invertjax import defenses


def _one(array):
    return {"leaf": jnp.asarray(array, jnp.float32)}


def _client(params, batch, key):
    del key
    return jax.tree.map(lambda leaf: leaf * batch, params)


def test_defend_applies_the_defense_to_the_clients_update():
    params = _one([3.0, 4.0])
    client = defenses.defend(_client, lambda key: defenses.clip(1.0))
    update = client(params, 2.0, jax.random.key(0))
    np.testing.assert_allclose(update["leaf"], [0.6, 0.8], rtol=1e-6)


def test_defend_gives_every_client_its_own_noise():
    params = _one(np.zeros(20_000))

    def defense(key):
        return optax.chain(defenses.clip(1.0), defenses.gaussian_noise(key, 0.1))

    client = defenses.defend(_client, defense)
    keys = jax.random.split(jax.random.key(0), 2)
    one, two = jax.vmap(lambda key: client(params, 1.0, key))(keys)["leaf"]
    # 20,000 draws: correlation 0 +- .007, one draw used twice has 1
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert one.std() == pytest.approx(0.1, rel=0.03)


def test_defend_keeps_the_clients_key_from_the_defense():
    """Noise of client and defense from one key would cancel here."""

    def noisy_client(params, batch, key):
        return jax.tree.map(lambda p: -jax.random.normal(key, p.shape), params)

    def defense(key):
        return optax.stateless_with_tree_map(
            lambda leaf, _: leaf + jax.random.normal(key, leaf.shape)
        )

    client = defenses.defend(noisy_client, defense)
    shared = client(_one(np.zeros(20_000)), 1.0, jax.random.key(0))
    assert shared["leaf"].std() == pytest.approx(np.sqrt(2), rel=0.03)


def test_defend_passes_params_to_the_defense():
    decay = defenses.defend(_client, lambda key: optax.add_decayed_weights(10.0))
    update = decay(_one([1.0, 2.0]), 1.0, jax.random.key(0))
    np.testing.assert_allclose(update["leaf"], [11.0, 22.0])
