"""Blocks found in a loss: they compose to it, one layer each; or a reason why not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import toy

import models
from invertjax import adapters, attacks, candidates, losses
from invertjax.rewrites import blocks, convolutions

SIDE, CLASSES = 8, 3


def batch(size, channels=1, seed=0):
    shape = (size, SIDE, SIDE, channels)
    image = np.random.default_rng(seed).uniform(size=shape)
    return {"image": toy.floats(image), "label": jnp.arange(size) % CLASSES}


def composed(chain, params, images):
    """The logits, and the shapes of what is between blocks."""

    def run(params, images):
        found = [images]
        for block in chain.blocks:
            found.append(block(params, found[-1]))
        return found[1:]

    found = jax.jit(run)(params, images)
    return found[-1], [features.shape for features in found]


def nnx_model():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(2, rngs=rngs)
            self.hidden = nnx.Linear(8, 5, rngs=rngs)
            self.last = nnx.Linear(5, CLASSES, rngs=rngs)

        def __call__(self, images):
            features = nnx.relu(self.norm(self.conv(images)))
            features = nnx.max_pool(features, (2, 2), (2, 2))
            hidden = jax.checkpoint(self.hidden)(features.reshape(len(images), -1))
            return self.last(jax.jit(nnx.gelu)(hidden))

    return adapters.from_nnx(Net(nnx.Rngs(0)))


def linen_model():
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, images, train):
            features = linen.Conv(2, (3, 3), strides=4)(images)
            features = linen.BatchNorm(use_running_average=not train)(features)
            flat = jnp.tanh(features).reshape(len(images), -1)
            return linen.Dense(CLASSES)(linen.silu(linen.Dense(5)(flat)))

    images = batch(1)["image"]
    variables = Net().init(jax.random.key(0), images, train=False)
    return adapters.from_linen(Net(), variables)


def equinox_model():
    eqx = pytest.importorskip("equinox", reason="an extra of the tests")

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        mlp: eqx.nn.MLP

        def __init__(self, key):
            one, two = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 2, 3, stride=4, padding=1, key=one)
            self.mlp = eqx.nn.MLP(8, CLASSES, 5, 1, key=two)

        def __call__(self, image):
            return self.mlp(jax.nn.relu(self.conv(image)).ravel())

    return adapters.from_equinox(Net(jax.random.key(0)))


def haiku_model():
    hk = pytest.importorskip("haiku", reason="an extra of the tests")

    def forward(images):
        features = jax.nn.relu(hk.Conv2D(2, 3, stride=4)(images))
        return hk.nets.MLP([5, CLASSES])(hk.Flatten()(features))

    net = hk.without_apply_rng(hk.transform(forward))
    params = net.init(jax.random.key(0), batch(1)["image"])

    def call(params, key, *inputs):
        del key
        return net.apply(params, *inputs)

    return adapters.from_haiku(hk.Transformed(net.init, call), params)


def torch_model():
    torch = pytest.importorskip("torch", reason="needs invertjax[torch]")
    pytest.importorskip("torchax", reason="needs invertjax[torch]")
    return adapters.from_torch(
        torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3, stride=4, padding=1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(8, 5),
            torch.nn.GELU(),
            torch.nn.Linear(5, CLASSES),
        )
    )


@pytest.mark.parametrize(
    "make", [nnx_model, linen_model, equinox_model, haiku_model, torch_model]
)
def test_a_chain_of_any_framework_has_a_block_a_layer(make):
    """For one image and for several, from a cut at a batch of two."""
    adapted = make()
    smoothed = functools.partial(losses.cross_entropy, label_smoothing=0.1)
    options = {"loss": smoothed, "train": True}
    chain = adapted.chain(batch(2), **options)
    loss_fn, params = adapted.loss(**options)
    assert len(chain.blocks) == 3
    for size in (1, 3):
        given = batch(size)
        logits, shapes = composed(chain, params, given["image"])
        assert shapes == [(size, 8), (size, 5), (size, CLASSES)]
        wanted, _ = adapted.apply(params, adapted.buffers, given["image"], True)
        np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-6)
        found = chain.loss(logits, given["label"])
        np.testing.assert_allclose(found, loss_fn(params, given), rtol=1e-5)


def of_ours(name, **options):
    net = models.build(
        name, image_shape=(SIDE, SIDE, 3), num_classes=CLASSES, width=4, **options
    )
    params, buffers = net.init(jax.random.key(0))

    def apply(params, images):
        return net.apply(params, buffers, images, True)[0]

    return net, params, apply


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn"])
def test_our_own_chains_are_cut_as_they_are_given(name):
    net, params, apply = of_ours(name)
    given, loss_fn = batch(2, 3), losses.classification(apply)
    for traced in (loss_fn, convolutions.as_matrix_products(loss_fn)):
        chain = blocks.cut(traced, params, given)
        assert len(chain.blocks) == len(net.blocks)
        logits, shapes = composed(chain, params, given["image"])
        np.testing.assert_allclose(logits, apply(params, given["image"]), atol=1e-5)
        handed = blocks.Chain(net.blocks, chain.loss)
        sizes = [np.prod(shape) for shape in shapes]
        assert sizes == [
            np.prod(shape) for shape in composed(handed, params, given["image"])[1]
        ]


def test_what_a_shortcut_spans_is_one_block():
    """The stem, nine residual blocks and the head."""
    _, params, apply = of_ours("resnet20")
    given = batch(2, 3)
    chain = blocks.cut(losses.classification(apply), params, given)
    assert len(chain.blocks) == 1 + 9 + 1
    logits, shapes = composed(chain, params, given["image"])
    assert shapes[-2:] == [(2, 16), (2, CLASSES)]  # behind the mean over pixels
    np.testing.assert_allclose(logits, apply(params, given["image"]), atol=1e-4)


def test_blocks_are_functions_like_any_other():
    """Under jit and vmap, and with the derivatives of the loss."""
    params, given = toy.init(0), toy.batch(0, size=2)
    chain = blocks.cut(toy.loss_fn, params, given)

    def whole(params, batch):
        return chain.loss(composed(chain, params, batch["image"])[0], batch["label"])

    for of in (jax.grad(whole), jax.jacfwd(whole)):
        found, wanted = of(params, given), jax.grad(toy.loss_fn)(params, given)
        for one, other in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    many = jnp.stack([given["image"], 1 - given["image"]])
    first = jax.jit(jax.vmap(chain.blocks[0], (None, 0)))(params, many)
    np.testing.assert_allclose(first[1], toy.BLOCKS[0](params, many[1]), rtol=1e-5)
    soft = toy.soft(given)  # labels of another form than those of the cut
    np.testing.assert_allclose(
        whole(params, soft), toy.loss_fn(params, soft), rtol=1e-5
    )


def test_the_recursion_goes_through_blocks_that_were_found():
    params, truth = toy.init(0), toy.batch(3)
    chain = blocks.cut(toy.loss_fn, params, truth)
    start = candidates.pixels(
        truth["image"].shape, truth["label"], init=candidates.nearly_grey
    )

    def run(parts):
        share = toy.at(params)
        attack = attacks.recursive(
            share, share(truth), start, params=params, blocks=parts, loss=chain.loss
        )
        return attack.result(attack.init(jax.random.key(0))).batch["image"]

    for parts in (toy.BLOCKS, chain.blocks):
        np.testing.assert_allclose(run(parts), truth["image"], atol=1e-3)


def flat(batch):
    return batch["image"].reshape(len(batch["image"]), -1)


def parallel(params, batch):
    """Two layers that both see the images, and meet in the logits."""
    logits = toy.dense(params["last"], flat(batch)[:, :8])
    more = toy.dense(params["first"], flat(batch))[:, : toy.CLASSES]
    return losses.cross_entropy(logits + more, batch["label"])


def labelled(params, batch):
    hidden = toy.dense(params["first"], flat(batch)) * batch["label"][:, None]
    return losses.cross_entropy(toy.dense(params["last"], hidden), batch["label"])


def quiet(params, batch):
    """With a penalty on what is inside the network."""
    penalty = jnp.mean(toy.dense(params["first"], flat(batch)) ** 2)
    return toy.loss_fn(params, batch) + penalty


def tied(params, batch):
    kernel = params["last"]["kernel"]
    hidden = jnp.tanh(toy.dense(params["last"], flat(batch)[:, :8]))
    logits = jnp.tanh(hidden @ kernel.T) @ kernel
    return losses.cross_entropy(logits, batch["label"])


def weighted(params, batch):
    return toy.loss_fn(params, batch) * jnp.mean(batch["weight"])


def decayed(params, batch):
    return toy.loss_fn(params, batch) + 1e-3 * jnp.sum(params["last"]["kernel"] ** 2)


def without_layers(params, batch):
    return jnp.mean(flat(batch) * params["last"]["bias"][0])


def each(params, batch):
    return toy.apply(params, batch["image"])[:, 0]


@pytest.mark.parametrize(
    "loss_fn, says",
    [
        (parallel, "no single array between images and logits"),
        (labelled, "the labels enter before its last layer"),
        (quiet, "reads more of the images"),
        (tied, "two of its blocks read one array"),
        (weighted, r"it reads batch\['weight'\]"),
        (decayed, "reads params, as a weight decay does"),
        (without_layers, "no dense layer or convolution"),
        (each, "returns a scalar"),
    ],
)
def test_what_is_no_chain_has_a_reason(loss_fn, says):
    given = {**toy.batch(0, size=2), "weight": jnp.ones(2)}
    with pytest.raises(ValueError, match=says) as error:
        blocks.cut(loss_fn, toy.init(0), given)
    assert str(error.value).count(". ") == 0 and "\n" not in str(error.value)


def test_features_of_another_shape_or_type_are_refused():
    params = toy.init(0)
    chain = blocks.cut(toy.loss_fn, params, toy.batch(0))
    for wrong in (jnp.zeros((1, 7)), jnp.zeros((1, 8), jnp.int32), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"\(B, 8\) of type float32, as block 1"):
            chain.blocks[1](params, wrong)
    with pytest.raises(ValueError, match="params whose loss was cut"):
        chain.blocks[0](toy.init(0, hidden=7), toy.batch(0)["image"])
    with pytest.raises(ValueError, match="'image', 'label'"):
        blocks.cut(toy.loss_fn, params, {"image": jnp.zeros((1, *toy.SHAPE))})
