"""Secure aggregation, simulated: pairwise masks that cancel in the sum.

Bonawitz et al. (2017), "Practical Secure Aggregation", section 4: of every two clients
i < j, i adds the stream of their common seed to what it sends, j subtracts it, modulo
2^32. The server sees uniform words, and their sum is the clients' sum, exactly.

Deviations: the seeds come from the key of the round, where clients would agree on them
without the server; and all clients stay to the end, so that nothing is recovered for
those that drop out (their double masking). The weights are public, and a client whose
update is not finite stays away before the masks are agreed on.
"""

import jax
import jax.numpy as jnp
import optax

from invertjax import keys, trees
from invertjax.base import Key, Params, Update
from invertjax.federated.base import Aggregator, Seen

Words = Update  # pytree with the update's structure and shapes, of uint32


def encode(update: Update, share: jax.typing.ArrayLike, bits: int) -> Words:
    """Encodes in fixed point, round(2^bits share u) modulo 2^32 (two's complement).

    Values u are clipped to +-2^(30 - bits); then sums over clients whose shares add up
    to one do not wrap. A share of zero gives zero, whatever the update holds.

    Args:
      update: of any float dtype; read as float32.
      share: `[]`, in [0, 1], the weight of this client in the mean.
      bits: binary places.
    """
    share, limit = jnp.asarray(share, jnp.float32), 2.0 ** (30 - bits)

    def one(leaf: jax.Array) -> jax.Array:
        clipped = jnp.clip(leaf.astype(jnp.float32), -limit, limit)
        fixed = jnp.where(share > 0, jnp.round(share * clipped * 2.0**bits), 0)
        return jax.lax.bitcast_convert_type(fixed.astype(jnp.int32), jnp.uint32)

    return jax.tree.map(one, update)


def decode(words: Words, bits: int, like: Params) -> Update:
    """Returns the numbers behind the words of a share of 1, in the dtypes of `like`."""

    def one(leaf: jax.Array, pattern: jax.Array) -> jax.Array:
        fixed = jax.lax.bitcast_convert_type(leaf, jnp.int32)
        return (fixed.astype(jnp.float32) * 2.0**-bits).astype(pattern.dtype)

    return jax.tree.map(one, words, like)


def masked(
    key: Key, words: Words, client: jax.typing.ArrayLike, count: int | jax.Array
) -> Words:
    """Returns what one client sends: its words plus its masks, modulo 2^32.

    Alone (`count` 1) a client has no mask. Takes time linear in `count`, and the memory
    of one mask.

    Args:
      key: of the round, the same for all clients; not consumed.
      words: see `encode`.
      client: `[]` int, in [0, count).
      count: clients of the round.
    """

    key = keys.typed(key)

    def add(other: jax.Array, words: Words) -> Words:
        low, high = jnp.minimum(client, other), jnp.maximum(client, other)
        seed = jax.random.fold_in(jax.random.fold_in(key, low), high)
        stream = optax.tree.random_like(seed, words, jax.random.bits)

        def one(word: jax.Array, bits: jax.Array) -> jax.Array:
            signed = jnp.where(client < other, bits, -bits)  # -b is 2^32 - b
            return word + jnp.where(client == other, jnp.uint32(0), signed)

        return jax.tree.map(one, words, stream)

    return jax.lax.fori_loop(0, count, add, words)


def total(words: Words) -> Words:
    """Sums over the leading axis, modulo 2^32: all that the server computes."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0, dtype=jnp.uint32), words)


def secure_mean(bits: int = 24) -> Aggregator:
    """Makes an aggregator that sums encoded and masked updates to their weighted mean.

    Equal to `mean` within (m + 1) / 2^(bits + 1) plus float32's rounding, for m clients
    with values of at most 2^(30 - bits); larger ones are clipped. What the server may
    know is this mean, not `Seen.updates`. Takes m^2 masks.

    Args:
      bits: binary places, 1 to 30. 24 holds values up to 64, in steps of 6e-8.

    Raises:
      ValueError: on bits out of range.
    """
    if not 1 <= bits <= 30:
        raise ValueError(f"Expected bits={bits} in 1 ... 30.")

    def aggregate(seen: Seen) -> Update:
        weights, _ = trees.scaled(jnp.asarray(seen.weights, jnp.float32))
        summed = jnp.sum(weights)
        shares = weights / jnp.where(summed > 0, summed, 1)
        count = len(shares)

        def send(update: Update, share: jax.Array, client: jax.Array) -> Words:
            return masked(seen.key, encode(update, share, bits), client, count)

        sent = jax.vmap(send)(seen.updates, shares, jnp.arange(count))
        return decode(total(sent), bits, seen.params)

    return aggregate
