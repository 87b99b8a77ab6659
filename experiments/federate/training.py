"""A federation in memory: its data, its clients, and the compiled round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.audit import simulation
from experiments.data import Dataset
from experiments.federate import epsilon
from experiments.settings import defense_flags, federation, traced
from experiments.settings.config import Config
from experiments.settings.federation import Federation
from experiments.victims import inputs
from experiments.victims import network as victim
from invertjax import federated

TEST_BATCH = 250


class Training(NamedTuple):
    """What does not change while a federation trains.

    settings, federation: resolved.
    victim: the network that is trained; its params are those of the start.
    data, test: the clients' examples, all together, and held-out ones.
    partition: the rows of `data` that each client has.
    roles: the clients, and how an attacker simulates them.
    """

    settings: Config
    federation: Federation
    victim: victim.Victim
    data: Dataset
    test: Dataset
    partition: list[np.ndarray]
    roles: simulation.Roles

    @property
    def steps(self) -> int:
        """Batches that a client draws in a round."""
        return max(self.settings.local_steps, 1)

    def plan(self, rounds: range) -> federated.Plan:
        """Who takes part in these rounds, with what."""
        return federated.plan(
            rounds,
            self.partition,
            count=self.federation.participants,
            steps=self.steps,
            batch_size=self.settings.batch_size // self.steps,
            seed=self.settings.seed,
        )


def prepare(
    settings: Config,
    federation_: Federation,
    load: Callable[[Config, str], Dataset] = inputs.load,
) -> Training:
    """Reads the data, shares it out, and initialises the network.

    Args:
      settings: from `federation.client`.
      federation_: resolved.
      load: reads a split.

    Raises:
      ValueError: naming the flag of what is not there or does not fit.
    """
    data = load(settings, "train_split")
    test = load(settings, "split")
    partition = federation.partition(federation_, data.labels, settings.seed)
    able = sum(len(rows) > 0 for rows in partition)
    if federation_.participants > able:
        raise ValueError(
            f"--participants={federation_.participants}: expected at most {able}, the "
            f"clients that --partition={federation_.partition} gives any of the "
            f"{len(data.labels)} examples."
        )
    epsilon.check(settings, partition)
    shape = data.images.shape[1:]
    built = victim.build(settings, shape, data.num_classes, lambda: data, _no_bar)
    size = settings.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *shape), settings.dtype),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    roles = simulation.roles(
        settings, built.loss_fn, built.params, batch, built.parts, built.drawn
    )
    return Training(settings, federation_, built, data, test, partition, roles)


def make_round(training: Training, found: Any) -> federated.Round:
    """The round, at numbers (`numbers.of`) that may be traced."""
    now = traced.put(training.settings, found)
    specs = defense_flags.specs(now.defense)
    cast = [
        (
            federated.honest(training.roles.client(now)),
            training.federation.participants,
        )
    ]
    secure = training.federation.sees == "mean"
    return federated.make(
        cast,
        defense=defense_flags.chained(specs),
        aggregate=federated.secure_mean() if secure else federated.mean,
        server=federation.server(training.federation, training.settings.local_steps),
        # On CPUs one after the other takes 0.6 to 0.75 of the time of all at once.
        map="map" if jax.default_backend() == "cpu" else "vmap",
    )


def key(training: Training, found: Any) -> jax.Array:
    """That of all rounds; the network and the attacks have others."""
    now = traced.put(training.settings, found)
    return jax.random.fold_in(jax.random.key(now.seed), 0xFED)


def start(training: Training, found: Any = None, params: Any = None) -> federated.State:
    """The state before the first round; of other numbers or params than its own, which
    may be traced."""
    found = traced.of(training.settings) if found is None else found
    params = training.victim.params if params is None else params
    own = jax.random.fold_in(key(training, found), 1)
    made = make_round(training, found)
    return made.init(params, own, training.federation.clients)


def step(training: Training, found: Any, state: Any, dataset: Any, plan: Any) -> tuple:
    """One round, to be compiled: `(state, federated.Seen, federated.Log)` after it.

    Args:
      found: `numbers.of` the settings.
      state: before it.
      dataset: from `dataset`.
      plan: the round's row of a `federated.Plan`.
    """
    ids, rows, weights = plan
    data = jax.tree.map(lambda leaf: leaf[rows], dataset)
    run_key = key(training, found)
    return make_round(training, found).step(state, data, ids, weights, run_key)


def dataset(training: Training) -> Any:
    """The clients' examples as arrays on the device."""
    images = jnp.asarray(training.data.images, training.settings.dtype)
    return {"image": images, "label": jnp.asarray(training.data.labels, jnp.int32)}


def tester(training: Training) -> Callable[[Any], jax.Array]:
    """`params -> []`, the share of held-out images that are classified correctly."""
    test = training.test
    count = len(test.labels)
    size = min(TEST_BATCH, count)
    whole = -(-count // size) * size
    # What fills up the last batch has a label that no image has.
    images = np.resize(test.images, (whole, *test.images.shape[1:]))
    labels = np.where(np.arange(whole) < count, np.resize(test.labels, whole), -1)
    images = images.reshape(-1, size, *images.shape[1:]).astype(training.settings.dtype)
    labels = labels.reshape(-1, size)
    net = training.victim.net

    def accuracy(params):
        def hits(batch):
            images, labels = batch
            logits = net.apply(params, {}, images, False)[0]
            return jnp.sum(jnp.argmax(logits, -1) == labels)

        return jnp.sum(jax.lax.map(hits, (images, labels))) / count

    return accuracy


def _no_bar(items, name):
    del name
    return items
