"""A variational bottleneck, and dropout: losses, draws, and what a gradient tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

from invertjax import candidates, clients, defenses

SIZE, WIDTH = 8, 5
SHAPE = (1, *toy.SHAPE)


def features(params, images):
    return jnp.tanh(toy.dense(params["first"], images.reshape(len(images), -1)))


def head(params, hidden):
    return toy.dense(params["last"], hidden)


def bottleneck(beta=1e-3):
    return defenses.precode(features, head, SIZE, WIDTH, beta)


@pytest.fixture(scope="module")
def params():
    inner = bottleneck().init(jax.random.key(0))
    # Biases are zero only at the start.
    inner["encoder"]["bias"] = toy.floats(np.linspace(-0.5, 0.5, 2 * WIDTH))
    return {"model": toy.init(0), "bottleneck": inner}


def noise(seed, size=1):
    return toy.floats(np.random.default_rng(seed).standard_normal((size, WIDTH)))


def statistics(params, images):
    """Mean and variance of the bottleneck's units, `[B, WIDTH]` each."""
    hidden = np.asarray(features(params["model"], images))
    encoder = params["bottleneck"]["encoder"]
    both = hidden @ np.asarray(encoder["kernel"]) + np.asarray(encoder["bias"])
    return both[:, :WIDTH], np.exp(both[:, WIDTH:])


def divergence(mean, variance):
    """KL(N(mean, variance) | N(0, 1)) by quadrature."""
    x = np.linspace(-15, 15, 6001)
    log_p = -((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2
    log_q = -(x**2) / 2 - np.log(2 * np.pi) / 2
    return np.trapezoid(np.exp(log_p) * (log_p - log_q), x)


def test_the_loss_is_a_cross_entropy_and_a_divergence(params):
    batch = {**toy.batch(0, 2), "noise": noise(0, 2)}
    mean, variance = statistics(params, batch["image"])
    decoder = jax.tree.map(np.asarray, params["bottleneck"]["decoder"])
    z = mean + np.sqrt(variance) * np.asarray(batch["noise"])
    hidden = z @ decoder["kernel"] + decoder["bias"]
    logits = np.asarray(head(params["model"], toy.floats(hidden)))
    logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    error = -logits[np.arange(2), np.asarray(batch["label"])].mean()
    each = [divergence(m, v) for m, v in zip(mean.flat, variance.flat, strict=True)]
    betas = toy.floats([0.0, 1e-3, 1.0])  # strengths are an axis
    found = jax.jit(jax.vmap(lambda beta: bottleneck(beta).loss_fn(params, batch)))
    np.testing.assert_allclose(found(betas), error + betas * sum(each) / 2, rtol=1e-4)


def test_without_noise_it_is_the_network_for_evaluation(params):
    batch = toy.batch(1, 3)
    logits = bottleneck().apply(params, batch["image"])
    mean = toy.floats(statistics(params, batch["image"])[0])
    hidden = toy.dense(params["bottleneck"]["decoder"], mean)
    np.testing.assert_allclose(logits, head(params["model"], hidden), atol=1e-5)


def test_every_call_draws_its_own_noise(params):
    made = bottleneck()
    client = clients.randomised(clients.gradient(made.loss_fn), made.draw)
    batch = toy.batch(2)
    keys = jax.random.split(jax.random.key(1), 3)
    updates = jax.jit(jax.vmap(lambda key: client(params, batch, key)))(keys)
    kernels = np.asarray(updates["bottleneck"]["decoder"]["kernel"])
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    # And so has every example: 10,000 draws, correlation 0 +- .01.
    drawn = defenses.precode(features, head, SIZE, 10_000)
    two = drawn.draw(jax.random.key(2), toy.batch(0, 2))["noise"]
    assert abs(np.corrcoef(two)[0, 1]) < 0.05
    assert two.std() == pytest.approx(1, abs=0.03)


def test_the_bottleneck_starts_with_variance_one_over_fan_in():
    wide = defenses.precode(features, head, 200, 100).init(jax.random.key(0))
    for name, fan_in in (("encoder", 200), ("decoder", 100)):
        spread = wide[name]["kernel"].std()
        assert spread == pytest.approx(fan_in**-0.5, rel=0.03)  # 20,000 draws
        assert not wide[name]["bias"].any()


def test_the_gradient_of_one_image_gives_its_noise_away(params):
    @jax.jit
    def read(batch):
        update = jax.grad(bottleneck().loss_fn)(params, batch)
        return bottleneck().read(params, update)["noise"]

    for seed in range(3):
        batch = {**toy.batch(seed), "noise": noise(seed)}
        np.testing.assert_allclose(read(batch), batch["noise"], rtol=1e-3, atol=1e-4)


def test_dropout_leaves_out_its_share_and_keeps_the_mean():
    params, batch, size = toy.init(0), toy.batch(1), 20_000

    @jax.jit
    @jax.vmap
    def draw_and_loss(share, key):
        drawn = defenses.dropout(features, head, size, share).draw(key, toy.batch(0, 2))
        mean = {**batch, "kept": jnp.full((1, SIZE), 1 - share)}
        layer = defenses.dropout(features, head, SIZE, share)
        return drawn["kept"], layer.loss_fn(params, mean)

    shares = np.array([0.0, 0.2, 0.5, 0.95])
    keys = jax.random.split(jax.random.key(0), len(shares))
    kept, loss = draw_and_loss(toy.floats(shares), keys)
    assert kept.shape == (4, 2, size) and set(np.unique(kept)) == {0, 1}
    # 40,000 draws: a standard error of at most .0025.
    np.testing.assert_allclose(kept.mean((1, 2)), 1 - shares, atol=0.01)
    assert abs(np.corrcoef(kept[2])[0, 1]) < 0.05  # every example has its own
    # The mean mask gives the loss without dropout: so kept / (1 - share) has mean 1.
    np.testing.assert_allclose(loss, np.full(4, toy.loss_fn(params, batch)), rtol=1e-4)


def test_the_gradient_of_one_image_shows_what_dropout_left_out():
    params, batch = toy.init(0), toy.batch(2)
    layer = defenses.dropout(features, head, SIZE, 0.5)
    kept = layer.draw(jax.random.key(3), batch)["kept"]
    update = jax.grad(layer.loss_fn)(params, {**batch, "kept": kept})
    shown = (update["last"]["kernel"] != 0).any(1)
    np.testing.assert_array_equal(shown, kept[0] == 1)
    assert 0 < shown.sum() < SIZE


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: defenses.precode(features, head, 0), "size=0 >= 1"),
        (lambda: defenses.precode(features, head, 8, 0), "width=0 >= 1"),
        (lambda: defenses.precode(features, head, 8, 4, -1.0), "beta=-1.0 >= 0"),
        (lambda: defenses.dropout(features, head, 8, -0.5), "share=-0.5 >= 0"),
        (lambda: defenses.dropout(features, head, 8, 1.0), "1 - share=0.0 > 0"),
    ],
)
def test_strengths_out_of_range(make, message):
    with pytest.raises(ValueError, match=f"Expected {message}"):
        make()


def test_a_candidate_with_another_entry_of_the_batch():
    label = jnp.array([1])
    inner = candidates.pixels(SHAPE, label, init=candidates.grey)
    plus = candidates.with_entry(
        inner,
        "kept",
        lambda key: 2 * jax.random.uniform(key, (1, SIZE)),
        lambda kept: jnp.clip(kept, 0, 1),
    )
    candidate = candidates.box(plus)
    z = candidate.init(jax.random.key(0))
    assert set(z) == {"image", "kept"}
    batch = candidate.decode(z)
    assert set(batch) == {"image", "label", "kept"}
    np.testing.assert_array_equal(batch["kept"], z["kept"])
    out = {"image": z["image"] + 5, "kept": z["kept"] - 5}
    back = candidate.project(out)
    assert (back["image"] == 1).all() and (back["kept"] == 0).all()
    # Starts are independent of one another, and differ between restarts.
    other = candidate.init(jax.random.key(1))
    assert (other["kept"] != z["kept"]).any()


def test_an_entry_cannot_take_the_name_of_another():
    inner = candidates.pixels(SHAPE, jnp.array([1]))
    twice = candidates.with_entry(inner, "image", lambda key: jnp.zeros(3))
    with pytest.raises(ValueError, match="Expected name='image' not to be one of"):
        twice.init(jax.random.key(0))
