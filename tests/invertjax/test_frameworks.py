"""The same inversion through a loss written in several frameworks.

What a user has to do is in each `*_problem`: to write `loss_fn(params, batch)`, where
`params` is a pytree of nothing but arrays that a client trains.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import invertjax
from invertjax import attacks, candidates, clients, losses

SHAPE = (1, *toy.SHAPE)
INPUTS, HIDDEN = 36, 8


def plain_problem():
    return toy.init(0), toy.loss_fn


def linen_problem():
    linen = pytest.importorskip("flax.linen")

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images):
            flat = images.reshape(len(images), -1)
            return linen.Dense(toy.CLASSES)(jnp.tanh(linen.Dense(HIDDEN)(flat)))

    model = Net()
    # Other collections (batch statistics) are closed over: {"params": params, **rest}.
    params = model.init(jax.random.key(0), jnp.zeros(SHAPE))["params"]
    return params, losses.classification(
        lambda params, images: model.apply({"params": params}, images)
    )


def nnx_model():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(INPUTS, HIDDEN, rngs=rngs)
            self.last = nnx.Linear(HIDDEN, toy.CLASSES, rngs=rngs)

        def __call__(self, images):
            flat = images.reshape(len(images), -1)
            return self.last(jnp.tanh(self.first(flat)))

    return nnx, Net(nnx.Rngs(0))


def nnx_state_problem():
    nnx, model = nnx_model()
    # Name `nnx.Param`: what is left (keys, counts, statistics) has no gradient.
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return params, losses.classification(
        lambda params, images: nnx.merge(graph, params, rest, copy=True)(images)
    )


def nnx_dict_problem():
    params, loss_fn = nnx_state_problem()
    nnx = pytest.importorskip("flax.nnx")
    return nnx.to_pure_dict(params), loss_fn  # `nnx.merge` takes either


def equinox_problem():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        first: eqx.nn.Linear
        last: eqx.nn.Linear

        def __init__(self, key):
            first_key, last_key = jax.random.split(key)
            self.first = eqx.nn.Linear(INPUTS, HIDDEN, key=first_key)
            self.last = eqx.nn.Linear(HIDDEN, toy.CLASSES, key=last_key)

        def __call__(self, image):
            return self.last(jnp.tanh(self.first(image.ravel())))

    # Functions and other leaves that are no arrays stay behind.
    params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)
    return params, losses.classification(
        lambda params, images: jax.vmap(eqx.combine(params, static))(images)
    )


PROBLEMS = {
    "plain": plain_problem,
    "linen": linen_problem,
    "nnx state": nnx_state_problem,
    "nnx dict": nnx_dict_problem,
    "equinox": equinox_problem,
}


def observed(framework):
    """The client's inverse problem: client, update, batch, and a first guess."""
    params, loss_fn = PROBLEMS[framework]()
    batch = toy.batch(1)
    client = toy.at(params, clients.gradient(loss_fn))
    update = jax.jit(client)(batch)
    assert jax.tree.structure(update) == jax.tree.structure(params)
    guess = candidates.pixels(SHAPE, batch["label"], init=candidates.grey)
    return client, update, batch, guess


@pytest.mark.parametrize("framework", PROBLEMS)
def test_layers_are_found_in_the_tree_of_any_framework(framework):
    client, update, batch, guess = observed(framework)
    sizes = [leaf.size for leaf in jax.tree.leaves(update)]
    assert sorted(sizes) == [toy.CLASSES, HIDDEN, HIDDEN * toy.CLASSES, INPUTS * HIDDEN]
    attack = attacks.auto(client, update, guess)
    assert attack.steps == 0
    image = attack.init(jax.random.key(2))["image"]
    np.testing.assert_allclose(image, batch["image"], atol=1e-5)


@pytest.mark.parametrize("framework", ["linen", "nnx state", "equinox"])
def test_gradient_matching_through_any_framework(framework):
    client, update, batch, guess = observed(framework)
    attack = attacks.inverting_gradients(
        client, update, guess, steps=400, total_variation=0.0
    )
    result = invertjax.invert(jax.random.key(2), attack)
    assert result.loss < 1e-3 * result.losses[0]
    np.testing.assert_allclose(result.batch["image"], batch["image"], atol=0.02)


@pytest.mark.parametrize("framework", ["nnx state", "equinox"])
def test_local_training_through_modules(framework):
    optax = pytest.importorskip("optax")
    params, loss_fn = PROBLEMS[framework]()
    batch = toy.batch(1, size=2)
    client = clients.local_sgd(loss_fn, optax.adam(0.01), epochs=2, batch_size=1)
    update = jax.jit(toy.at(params, client))(batch)
    assert jax.tree.structure(update) == jax.tree.structure(params)
    # Four steps of Adam move what has a gradient by up to 0.01 each.
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(update))
    assert 0.01 < largest <= 0.041


def test_an_update_of_the_other_kind_of_tree_is_refused():
    state, loss_fn = nnx_state_problem()
    params, _ = nnx_dict_problem()
    batch = toy.batch(1)
    with pytest.raises(ValueError, match="update with the tree .*State.*got.*"):
        attacks.inverting_gradients(
            toy.at(state, clients.gradient(loss_fn)),
            params,
            candidates.pixels(SHAPE, batch["label"]),
        )
