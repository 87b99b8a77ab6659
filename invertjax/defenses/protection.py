"""A defense at a strength, and what an attacker who knows of it does.

`protections.PROTECTIONS` has a row for every defense. A row with a value is a
`Protection`; several in order are what a client does to protect its data.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from invertjax.base import Client, Distance, Key, Loss, Params
from invertjax.defenses.defended import Defense


class Parts(NamedTuple):
    """What some defenses need to know of a network.

    num_classes: K.
    features: `(params, images) -> [B, F]`, the input of the last dense layer; None
      where it is not known.
    head: `(params, features) -> logits [B, K]`, that layer; None where not known.
    path: of that layer, such as "layers/2".
    size: F.
    """

    num_classes: int
    features: Callable[[Params, jax.Array], jax.Array] | None = None
    head: Callable[[Params, jax.Array], jax.Array] | None = None
    path: str = ""
    size: int = 0


class Drawn(NamedTuple):
    """An entry of the batch that a network draws, `[B, size]`.

    draw: `(key, batch) -> {name: array}`.
    start: `(key, shape) -> array`, where an attacker starts who optimises the entry.
    project: maps an entry back into its range.
    behind: paths of the layers that an attacker who knows of it leaves out.
    """

    name: str
    size: int
    draw: Callable[[Key, Any], dict[str, jax.Array]]
    start: Callable[[Key, tuple[int, ...]], jax.Array]
    project: Callable[[jax.Array], jax.Array]
    behind: tuple[str, ...] = ()


class Rebuilt(NamedTuple):
    """A network that a defense has changed.

    loss_fn: `(params, batch) -> []`, reads what is drawn from its batch.
    drawn: that entry.
    init: `key -> params` of what was added, None if nothing was; the network's own
      params are then `params["model"]` beside `params[name]`.
    name: of what was added.
    logits: `(params, features) -> logits`, without noise; None: the network's own.
    """

    loss_fn: Loss
    drawn: Drawn
    init: Callable[[Key], Params] | None = None
    name: str = ""
    logits: Callable[[Params, jax.Array], jax.Array] | None = None


class Training(NamedTuple):
    """How often and from how much a client computes gradients for one update.

    images: behind one gradient. steps: local steps, 0 where the gradient itself is
    shared. learning_rate: of those steps.
    """

    images: int
    steps: int = 0
    learning_rate: Any = 1.0


class Protection(NamedTuple):
    """A defense of one of three sorts: of the update, of the client, of the network.

    name: of its row.
    value: a number (it may be traced), a tuple of them, a text, or None.
    label: how a report writes it, such as "prune:0.99"; the default is made of both.
    update: `(key, value) -> optax.GradientTransformation`, changes what is shared.
    client: `(client, value, parts) -> Client`, changes how a gradient is computed.
    network: `(parts, value) -> Rebuilt`, changes the network.
    simulated: `client` as an attacker who knows of it simulates it, if that is other.
    adapt: `(distance, value) -> distance` of an attacker who knows of it.
    law: of the noise that it adds, "gaussian" or "laplace"; None if it adds none, or
      none of a known law.
    scale: `(value, Training) -> []`, the standard deviation (Gaussian) or scale
      (Laplace) of that noise in the update that is shared; None: the value itself.
    multiplier: `value -> float`, the noise multiplier by which a privacy accountant
      counts; None where no guarantee comes with it.
    fixed: whether the value is part of a compiled program, not an array in it.
    features: whether it needs `Parts.features` and `Parts.head` of the network.
    told: what an attacker who knows of it is told of what the client drew, in words;
      "" where nothing.
    unit: of its strength, in a word or two for the axis of a figure.
    """

    name: str
    value: Any = None
    label: str | None = None
    update: Callable[[Key, Any], optax.GradientTransformation] | None = None
    client: Callable[[Client, Any, Parts], Client] | None = None
    network: Callable[[Parts, Any], Rebuilt] | None = None
    simulated: Callable[[Client, Any, Parts], Client] | None = None
    adapt: Callable[[Distance, Any], Distance] | None = None
    law: str | None = None
    scale: Callable[[Any, Training], Any] | None = None
    multiplier: Callable[[Any], float] | None = None
    fixed: bool = False
    features: bool = False
    told: str = ""
    unit: str = ""

    def noise_scale(self, training: Training) -> Any:
        """Returns the standard deviation, or scale, of the noise in what is shared."""
        return self.scale(self.value, training) if self.scale else self.value

    @property
    def strength(self) -> float | None:
        """The first number of the value, None if there is none."""
        first = self.value[0] if isinstance(self.value, tuple) else self.value
        return None if isinstance(first, str) or first is None else float(first)

    @property
    def is_number(self) -> bool:
        """Whether the value is an array in a program rather than a part of it."""
        return self.value is not None and not self.fixed

    @property
    def is_adaptable(self) -> bool:
        """Whether some form of the attack makes use of knowing this defense."""
        simulated = self.client and self.simulated is not undefended
        return bool(self.adapt or self.network or simulated)

    def __str__(self) -> str:
        if self.label is not None:
            return self.label
        parts = self.value if isinstance(self.value, tuple) else (self.value,)
        text = ",".join(str(part) for part in parts if part is not None)
        return f"{self.name}:{text}" if text else self.name


def undefended(client: Client, value: Any, parts: Parts) -> Client:
    """Returns the client as it is: what an attacker simulates where he cannot, or need
    not, simulate the defense."""
    del value, parts
    return client


def chained(protections: Sequence[Protection]) -> Defense:
    """Chains the defenses that change the update into one `key -> transformation`."""
    of_update = [p for p in protections if p.update]

    def defense(key: Key) -> optax.GradientTransformation:
        links = [
            p.update(jax.random.fold_in(key, i), p.value)
            for i, p in enumerate(of_update)
            if p.update
        ]
        return optax.chain(*links) if links else optax.identity()

    return defense


def wrapped(client: Client, protections: Sequence[Protection], parts: Parts) -> Client:
    """Wraps a client in the defenses that change how it computes its gradient."""
    for p in protections:
        if p.client:
            client = p.client(client, p.value, parts)
    return client


def simulated(
    client: Client, protections: Sequence[Protection], parts: Parts
) -> Client:
    """Returns the client as an attacker who knows of the defenses simulates it."""
    for p in protections:
        make = p.simulated or p.client
        if make:
            client = make(client, p.value, parts)
    return client


def adapted(distance: Distance, protections: Sequence[Protection]) -> Distance:
    """Returns the distance of an attacker who knows of the defenses."""
    for p in reversed(protections):  # the attacker sees what the last one has left
        distance = p.adapt(distance, p.value) if p.adapt else distance
    return distance


def of_network(protections: Sequence[Protection]) -> tuple[Protection, ...]:
    """Returns the defenses that change the network, which the model itself shows."""
    return tuple(p for p in protections if p.network)


def are_told(protections: Sequence[Protection]) -> bool:
    """Returns whether an attacker who knows of them is told what the client drew."""
    return any(bool(p.told) for p in protections)


def noise(protections: Sequence[Protection]) -> Protection | None:
    """Returns the only defense if its noise is of a known law, else None."""
    alone = protections[0] if len(protections) == 1 else None
    return alone if alone is not None and alone.law else None


def network_change(protections: Sequence[Protection]) -> Protection | None:
    """Returns the one defense that changes the network, None if there is none.

    Raises:
      ValueError: if there are several.
    """
    found = of_network(protections)
    if len(found) > 1:
        raise ValueError(
            f"defense={found[1]} does not go with defense={found[0]}: expected one of "
            "them."
        )
    return found[0] if found else None
