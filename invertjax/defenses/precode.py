"""PRECODE: a variational bottleneck before a network's last layer."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invertjax import losses
from invertjax.base import Batch, Key, Loss, Params, Update
from invertjax.defenses import ranges


class Bottleneck(NamedTuple):
    """A network with a variational bottleneck, and the losses that train it.

    Params are `{"model": the network's, "bottleneck": {"encoder", "decoder"}}`.

    init: `key -> params["bottleneck"]`, weights N(0, 1 / fan_in), biases zero.
    loss_fn: `(params, batch) -> []`; reads `batch["noise"]`, `[B, width]`.
    apply: `(params, images) -> logits`, with no noise: for evaluation.
    draw: `(key, batch) -> {"noise": N(0, 1) [B, width]}`, for `clients.randomised`.
    read: `(params, update) -> {"noise": [1, width]}`: what one image's gradient says of
      its noise, exact but for rounding; for the attacker.
    """

    init: Callable[[Key], Params]
    loss_fn: Loss
    apply: Callable[[Params, jax.Array], jax.Array]
    draw: Callable[[Key, Batch], dict[str, jax.Array]]
    read: Callable[[Params, Update], dict[str, jax.Array]]


def precode(
    features: Callable[[Params, jax.Array], jax.Array],
    head: Callable[[Params, jax.Array], jax.Array],
    size: int,
    width: int = 256,
    beta: jax.typing.ArrayLike = 1e-3,
) -> Bottleneck:
    """Puts a variational bottleneck between a network's features and its head.

        m, v = encoder(features)         z = m + exp(v / 2) noise
        loss = cross-entropy(head(decoder(z))) + beta KL(N(m, exp v) | N(0, 1))

    Encoder and decoder are dense; the divergence is summed over units and averaged over
    examples, in nats. The client draws afresh at every call:

        bottleneck = defenses.precode(features, head, size)
        client = clients.gradient(bottleneck.loss_fn)
        client = clients.randomised(client, bottleneck.draw)

    Scheliga et al. (2022), "PRECODE - A Generic Model Extension to Prevent Deep
    Gradient Leakage", section 3. Deviations: the authors' code has softplus(v) for the
    standard deviation, and counts the divergence in bits.

    No guarantee. A dense first layer gives the image away in closed form for any noise
    (Balunovic et al. 2022, section 5). Otherwise the attacker leaves the noisy layers
    out of the distance and optimises the noise with the image (`distances.without`,
    `candidates.with_entry`); or, for one image, reads it: encoder and decoder are dense
    layers with a bias, so their gradients give their inputs h and z in closed form, as
    `attacks.analytic`, and the noise is (z - m) / exp(v / 2) with m, v = encoder(h).

    Args:
      features: `(params["model"], images) -> [B, size]`.
      head: `(params["model"], [B, size]) -> logits [B, K]`.
      size: units of the features.
      width: units of the bottleneck.
      beta: `[]`, >= 0, the weight of the divergence.

    Raises:
      ValueError: on a number out of range.
    """
    ranges.check("size", size, at_least=1)
    ranges.check("width", width, at_least=1)
    ranges.check("beta", beta, at_least=0)

    def init(key: Key) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": _layer(encoder_key, size, 2 * width),
            "decoder": _layer(decoder_key, width, size),
        }

    def encode(params: Params, images: jax.Array) -> list[jax.Array]:
        hidden = features(params["model"], images)
        return jnp.split(_dense(params["bottleneck"]["encoder"], hidden), 2, axis=1)

    def decode(params: Params, z: jax.Array) -> jax.Array:
        return head(params["model"], _dense(params["bottleneck"]["decoder"], z))

    def loss_fn(params: Params, batch: Batch) -> jax.Array:
        mean, log_variance = encode(params, batch["image"])
        z = mean + jnp.exp(log_variance / 2) * batch["noise"]
        error = losses.cross_entropy(decode(params, z), batch["label"])
        return error + beta * _divergence(mean, log_variance)

    def apply(params: Params, images: jax.Array) -> jax.Array:
        return decode(params, encode(params, images)[0])

    def draw(key: Key, batch: Batch) -> dict[str, jax.Array]:
        image = batch["image"]
        like = jax.ShapeDtypeStruct((image.shape[0], width), image.dtype)
        # Not drawn in bfloat16, which has but 128 values.
        wide = jnp.promote_types(like.dtype, jnp.float32)
        return {"noise": jax.random.normal(key, like.shape, wide).astype(like.dtype)}

    def read(params: Params, update: Update) -> dict[str, jax.Array]:
        encoder, decoder = (update["bottleneck"][n] for n in ("encoder", "decoder"))
        statistics = _dense(params["bottleneck"]["encoder"], _input(encoder)[None])
        mean, log_variance = jnp.split(statistics, 2, axis=1)
        return {"noise": (_input(decoder)[None] - mean) * jnp.exp(-log_variance / 2)}

    return Bottleneck(init, loss_fn, apply, draw, read)


def _divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Returns KL(N(m, exp v) | N(0, 1)), summed over units, averaged over examples."""
    each = mean**2 + jnp.exp(log_variance) - 1 - log_variance
    return 0.5 * jnp.sum(each, axis=1).mean()


def _layer(key: Key, inputs: int, outputs: int) -> dict[str, jax.Array]:
    kernel = jax.random.normal(key, (inputs, outputs)) / inputs**0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"][None]


def _input(gradient: dict[str, jax.Array]) -> jax.Array:
    """Reads the input of a dense layer off one example's gradient: dW[:, j] / dc[j]."""
    index = jnp.argmax(jnp.abs(gradient["bias"]))
    return gradient["kernel"][:, index] / gradient["bias"][index]
