"""Updates that would mislead an exact attack, each with the images behind it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from invertjax import exact, losses

SHAPE, UNITS, SIZE = (6, 6, 1), 64, 6
EXACT = 1e-4  # of a mean squared error: 40 dB


def hidden(params, images):
    flat = images.reshape(len(images), -1)
    return jnp.maximum(flat @ params["in"]["w"] + params["in"]["b"][None], 0)


def logits(params, features):
    return features @ params["out"]["w"] + params["out"]["b"][None]


BLOCKS = (hidden, logits)


def loss_fn(params, batch):
    return losses.cross_entropy(logits(params, hidden(params, batch["image"])),
                                batch["label"])  # fmt: skip


def init(seed, classes=4, scale=1.0, bias=0.1):
    """Params of two dense layers; a large scale saturates the softmax."""
    normal = np.random.default_rng(seed).standard_normal

    def layer(inputs, outputs):
        weight = scale * normal((inputs, outputs)) / inputs**0.5
        return {"w": floats(weight), "b": floats(bias * normal(outputs))}

    return {"in": layer(36, UNITS), "out": layer(UNITS, classes)}


def batch(seed, classes=4, size=SIZE):
    random = np.random.default_rng(1000 + seed)
    images = random.uniform(size=(size, *SHAPE))
    return {
        "image": floats(images),
        "label": jnp.asarray(random.integers(classes, size=size)),
    }


def floats(array):
    return jnp.asarray(array, jnp.float32)


gradient = jax.jit(jax.grad(loss_fn))


def plain(seed, **options):
    return init(seed, **options), gradient(init(seed, **options), batch(seed))


def shuffled(seed):
    """Every value of the update, in another place: nothing may be certified."""
    params, update = plain(seed)
    random = np.random.default_rng(seed)
    return params, jax.tree.map(
        lambda leaf: floats(random.permutation(np.ravel(leaf)).reshape(leaf.shape)),
        update,
    )


def columns_shuffled(seed):
    """Inputs stay what they are, but of other units, so that no slope fits."""
    params, update = plain(seed)
    order = np.random.default_rng(seed).permutation(UNITS)
    moved = {"w": update["in"]["w"][:, order], "b": update["in"]["b"][order]}
    return params, {**update, "in": moved}


def noisy(seed):
    """Noise nobody tells the attacker of, from next to nothing to as much again."""
    params, update = plain(seed)
    random = np.random.default_rng(seed)
    size = 10.0 ** -(seed % 8) * float(jnp.std(update["in"]["w"]))
    return params, jax.tree.map(
        lambda leaf: leaf + floats(size * random.standard_normal(leaf.shape)), update
    )


def blended(seed):
    """Images in pairs, each pair mixed, with labels mixed in the same way."""
    truth, params = batch(seed), init(seed)
    share = np.random.default_rng(seed).uniform(0.2, 0.8)
    # A pair of one label is an image of that label: what the network did see.
    labels = (truth["label"] // 2 * 2 + jnp.arange(SIZE) % 2) % 4
    soft = jax.nn.one_hot(labels, 4)

    def mixed(x):
        pairs = x.reshape(SIZE // 2, 2, *x.shape[1:])
        return jnp.repeat(share * pairs[:, 0] + (1 - share) * pairs[:, 1], 2, axis=0)

    soft = mixed(soft) if bool(jnp.all(labels[0::2] != labels[1::2])) else mixed(
        jax.nn.one_hot(jnp.arange(SIZE) % 4, 4))  # fmt: skip
    return params, gradient(params, {"image": mixed(truth["image"]), "label": soft})


def other_network(seed):
    """The update of a network that the attacker does not have."""
    return init(seed + 500), plain(seed)[1]


def wrong_labels(seed):
    """Each label is in part another one: a label smoothing the attacker knows not."""
    truth, params = batch(seed), init(seed)
    soft = 0.7 * jax.nn.one_hot(truth["label"], 4) + 0.3 * jax.nn.one_hot(
        (truth["label"] + 1) % 4, 4
    )
    return params, gradient(params, {**truth, "label": soft})


def narrow(seed, dtype=jnp.bfloat16):
    """Rounded to a narrow type, and sent in a wide one."""
    params, update = plain(seed)
    return params, jax.tree.map(
        lambda leaf: leaf.astype(dtype).astype(jnp.float32), update
    )


def saturated(seed):
    """A network so sure that slopes hardly depend on the image."""
    return plain(seed, scale=3.0 + seed % 20)


DECOYS = (shuffled, columns_shuffled, noisy, blended, other_network, wrong_labels,
          narrow, saturated)  # fmt: skip


@functools.cache
def peeling(classes=4, size=SIZE):
    """`(params, update) -> Peeled`, compiled once."""
    layer = exact.lowest(BLOCKS, init(0, classes), (size, *SHAPE))
    return jax.jit(lambda params, update: exact.peel(layer, params, update, size))


def false_ones(peeled, truth):
    """How many certified inputs are no image of the batch with its label; and how many
    candidates were looked at."""
    images = np.asarray(truth["image"]).reshape(len(truth["image"]), -1)
    false = 0
    for row, label, sure in zip(*map(np.asarray, peeled[:3]), strict=True):
        near = np.mean((images - row) ** 2, axis=1) <= EXACT
        false += sure and not np.any(near & (np.asarray(truth["label"]) == label))
    return int(false), int(peeled.candidates)
