"""A federation in memory: its data, its clients, and the compiled round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset
from experiments.federate import epsilon
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.federation import Federation
from experiments.settings.run import Run
from experiments.settings.victim import Victim, is_own
from experiments.victims import inputs, own_model
from experiments.victims import target as victims
from invertjax import federated
from invertjax.auditing import Target, situations
from invertjax.auditing import clients as audited
from invertjax.base import Batch, Key, Params
from invertjax.defenses import protection
from invertjax.driver import Cache

TEST_BATCH = 250


class Training(NamedTuple):
    """What does not change while a federation trains.

    data, victim, clients, run, federation: settings, complete.
    built: the network that is trained; its params are those of the start.
    examples, test: the clients' examples, all together, and held-out ones.
    partition: the rows of `examples` that each client has.
    rule: of the clients' derivatives, as `clients.gradient` has it; None: any.
    """

    data: Data
    victim: Victim
    clients: Clients
    run: Run
    federation: Federation
    built: victims.Built
    examples: Dataset
    test: Dataset
    partition: list[np.ndarray]
    rule: str | None = None

    @property
    def target(self) -> Target:
        """One client as an audit sees it."""
        return self.built.target

    @property
    def params(self) -> Params:
        """Those of the start."""
        return self.built.params

    @property
    def steps(self) -> int:
        """Batches that a client draws in a round: one a local step, or one for all its
        epochs."""
        return 1 if self.clients.local_epochs else max(self.clients.local_steps, 1)

    def plan(self, rounds: range) -> federated.Plan:
        """Who takes part in these rounds, with what."""
        return federated.plan(
            rounds,
            self.partition,
            count=self.federation.participants,
            steps=self.steps,
            batch_size=self.clients.batch_size // self.steps,
            seed=self.run.seed,
        )


def prepare(
    data: Data,
    victim: Victim,
    clients: Clients,
    run: Run,
    federation: Federation,
    *,
    rule: str | None = None,
    check: Callable[[Target, Params], None] = lambda target, params: None,
    load: Callable[[Data, str], Dataset] = inputs.load,
    cache: Cache,
) -> Training:
    """Reads the data, shares it out, and initialises the network.

    Args:
      data, victim, clients, run: settings, from `federation.of_clients`.
      federation: settings.
      rule: of the clients' derivatives, where an attack asks for one.
      check: told the target and the shapes of its params; it may raise a ValueError.
      load: reads the split that a flag names.
      cache: of networks and losses: trainings that share it share their programs.

    Raises:
      ValueError: naming the flag of what is not there or does not fit.
    """
    examples, test = _apart(data, load, cache)
    rows = partition(federation, examples.labels, run.seed)
    able = sum(len(held) > 0 for held in rows)
    if federation.participants > able:
        raise ValueError(
            f"--participants={federation.participants}: expected at most {able}, the "
            f"clients that --partition={federation.partition} gives any of the "
            f"{len(examples.labels)} examples."
        )
    epsilon.check(clients, rows)
    built = victims.build(
        data,
        victim,
        clients,
        run,
        examples.images.shape[1:],
        examples.num_classes,
        train_data=lambda: examples,
        check=check,
        cache=cache,
    )
    if is_own(victim.model):  # whose accuracy is measured, whatever its loss is
        own_model.check(
            str(victim.model),
            built.network.net,
            examples.images.shape[1:],
            examples.num_classes,
        )
    return Training(
        data, victim, clients, run, federation, built, examples, test, rows, rule
    )


def _apart(
    data: Data, load: Callable[[Data, str], Dataset], cache: Cache
) -> tuple[Dataset, Dataset]:
    """Returns the clients' examples, and held-out ones that are not among them."""
    examples = load(data, "train_split")
    places = data.dataset, data.data_dir, data.image_size, data.train_split, data.split
    test = cache(
        ("held_out", *places),
        lambda: inputs.held_out(data, load(data, "split"), examples),
        most=1,
    )
    return examples, test


def partition(federation: Federation, labels: Any, seed: int) -> list[np.ndarray]:
    """Returns the examples of each client, as row numbers."""
    shares, clients = federation.partition, federation.clients
    if shares.value is None:
        return federated.iid(labels, clients, seed)
    make = {"dirichlet": federated.dirichlet, "by_class": federated.by_class}
    try:
        return make[shares.name](labels, clients, shares.value, seed)
    except ValueError as error:
        raise ValueError(f"--partition={shares}: {error}") from None


def server(federation: Federation, local_steps: int) -> optax.GradientTransformation:
    """Returns the server's optimiser: McMahan et al. (2017), Hsu et al. (2019) with
    momentum 0.9, Reddi et al. (2021) with their tau of 1e-3."""
    rate = federation.server_lr
    if federation.server == "fedadam":
        rate = 0.01 if rate is None else rate
        return optax.adam(rate, b1=0.9, b2=0.99, eps=1e-3)
    if rate is None:
        rate = 1.0 if local_steps else 0.05
    return optax.sgd(rate, momentum=0.9 if federation.server == "fedavgm" else None)


def numbers(training: Training) -> dict[str, Any]:
    """Returns what of a training is an array in its compiled programs."""
    seed = np.uint32(training.run.seed % 2**32)
    return {"seed": seed, "target": situations.numbers(training.target)}


def static(training: Training) -> tuple:
    """Returns what is equal for trainings that share their compiled rounds, but for
    the shapes of their arrays."""
    target = situations.without_numbers(training.target)
    return target, training.rule, training.federation, training.clients.local_steps


def make_round(training: Training, found: Any) -> federated.Round:
    """Returns the round, at `numbers` that may be traced."""
    target = situations.with_numbers(training.target, found["target"])
    federation = training.federation
    honest = federated.honest(audited.actual(target, training.rule))
    secure = federation.sees == "mean"
    return federated.make(
        [(honest, federation.participants)],
        defense=protection.chained(target.protections),
        aggregate=federated.secure_mean() if secure else federated.mean,
        server=server(federation, training.clients.local_steps),
        # On CPUs one after the other takes 0.6 to 0.75 of the time of all at once.
        clients_map="map" if jax.default_backend() == "cpu" else "vmap",
    )


def key(found: Any) -> Key:
    """Returns the key of all rounds; the network and the attacks have others."""
    return jax.random.fold_in(jax.random.key(found["seed"]), 0xFED)


def start(
    training: Training, found: Any = None, params: Params | None = None
) -> federated.State:
    """Returns the state before the first round; of other numbers or params than the
    training's own, which may be traced."""
    found = numbers(training) if found is None else found
    params = training.params if params is None else params
    own = jax.random.fold_in(key(found), 1)
    return make_round(training, found).init(own, params, training.federation.clients)


def step(
    training: Training, found: Any, state: Any, dataset: Batch, plan: Any
) -> tuple[federated.State, federated.Seen, federated.Log]:
    """Takes one round, to be compiled.

    Args:
      found: `numbers`.
      state: before it.
      dataset: from `dataset`.
      plan: the round's row of a `federated.Plan`.
    """
    ids, rows, weights = plan
    data = jax.tree.map(lambda leaf: leaf[rows], dataset)
    return make_round(training, found).step(key(found), state, data, ids, weights)


def dataset(training: Training) -> Batch:
    """Returns the clients' examples as arrays on the device."""
    examples = training.examples
    images = jnp.asarray(examples.images, training.run.dtype)
    return {"image": images, "label": jnp.asarray(examples.labels, jnp.int32)}


def tester(training: Training) -> Callable[[Params], jax.Array]:
    """Returns `params -> []`, the share of held-out images classified correctly."""
    test = training.test
    count = len(test.labels)
    size = min(TEST_BATCH, count)
    whole = -(-count // size) * size
    # What fills up the last batch has a label that no image has.
    images = np.resize(test.images, (whole, *test.images.shape[1:]))
    labels = np.where(np.arange(whole) < count, np.resize(test.labels, whole), -1)
    images = images.reshape(-1, size, *images.shape[1:]).astype(training.run.dtype)
    labels = labels.reshape(-1, size)
    net, buffers = training.built.network.net, training.built.buffers

    def accuracy(params: Params) -> jax.Array:
        def hits(batch: tuple[jax.Array, jax.Array]) -> jax.Array:
            images, labels = batch
            logits = net.apply(params, buffers, images, False)[0]
            return jnp.sum(jnp.argmax(logits, -1) == labels)

        return jnp.sum(jax.lax.map(hits, (images, labels))) / count

    return accuracy
