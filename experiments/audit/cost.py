"""What settings will cost, before anything is read, compiled or written. Rough.

Images are taken to be RGB, of 32 x 32 pixels where no setting says otherwise, and of
ten classes; a model of the reader's own, which may take no others, is counted on one of
its images.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax

import models
from experiments.settings.attack import Attack
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.federation import Federation
from experiments.settings.settings import Settings
from experiments.settings.victim import Victim, is_own
from experiments.victims import inputs, network, own_loss
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import cost
from invertjax.cli.cost import Count, Estimate

Shape = tuple[int, ...]
SIDE, CHANNELS, CLASSES = 32, 3, 10
SMALL = 5e5  # pixels times iterations that take seconds, whatever the network
COUNTED = ("activation", "norm", "width", "hidden")  # what a network's cost depends on
BLOCK = 64  # updates that a sweep holds at a time
TRAINED = 64  # images in a step of training the victim
OVERHEAD = 0.05  # seconds a target: its client, its scores


def of(kinds: Iterable[Sequence[Settings]], *, alone: bool = False) -> Estimate:
    """Returns the estimate of attacks on this machine; those of a kind are one program
    and share its compilation.

    Args:
      kinds: settings of attacks.
      alone: whether each is a run of its own, which may attack a shuffled update, too.
    """
    speed = cost.speed()
    parts = [[one(cell, speed, alone=alone) for cell in kind] for kind in kinds]
    every = [part for kind in parts for part in kind]
    return Estimate(
        sum(part.running for part in every),
        sum(kind[0].compiling for kind in parts),
        max(part.memory for part in every),
    )


def before(topics: Settings, plan: Federation | None = None) -> Estimate | None:
    """Returns the estimate of a run of an attack, or of a federation; None where it is
    over before it is worth a line."""
    data, victim, attack, clients, *_ = topics
    steps = _iterations(attack) * (data.targets or 1) * seen(clients)
    if plan is not None:
        steps *= len(plan.audit_rounds)
        steps += plan.rounds * plan.participants * seen(clients)
    steps += victim.train_steps * TRAINED
    if steps * (data.image_size or SIDE) ** 2 < SMALL:
        return None
    return whole(topics, plan)


def whole(topics: Settings, plan: Federation | None = None) -> Estimate | None:
    """Returns the estimate of a run of an attack, or of a federation; None of a network
    that cannot be built, as the run will say."""
    if of_model(topics.data, topics.victim) == cost.NOTHING:
        return None
    if plan is None:
        return of([[topics]], alone=True)
    return of_federation(topics, plan, cost.speed())


def say(estimate: Estimate | None, attack: Attack | None = None) -> None:
    """Prints an estimate, if there is one; see `cost.say`."""
    cost.say(estimate, None if attack is None else ATTACKERS[attack.attack])


def one(cell: Settings, speed: float, *, alone: bool = False) -> Estimate:
    """Returns the estimate of an attack, its client and the training of its victim.

    Args:
      cell: all its settings.
      speed: operations a second.
      alone: see `of`.
    """
    data, victim, attack, clients, *_ = cell
    counted = of_model(data, victim)
    targets = data.targets or 1
    updates = targets + bool(alone and attack.null_control)
    each = _iterations(attack) * counted.attack(seen(clients))
    training = victim.train_steps * TRAINED * cost.TRAINING * counted.image
    return Estimate(
        (updates * each + training) / speed + OVERHEAD * targets,
        counted.compiling,
        (targets if alone else max(BLOCK, targets)) * cost.MEMORY * counted.params,
    )


def of_federation(topics: Settings, plan: Federation, speed: float) -> Estimate:
    """Returns the estimate of a federation's training, and of its audits.

    Args:
      topics: all settings of its clients and of the attack.
      plan: the federation.
      speed: operations a second.
    """
    audits, audit = len(plan.audit_rounds), one(topics, speed, alone=True)
    found = of_training(topics.data, topics.victim, topics.clients, plan, speed)
    if not audits:
        return found
    return found.plus(audit._replace(running=audits * audit.running))


def of_training(
    data: Data, victim: Victim, clients: Clients, plan: Federation, speed: float
) -> Estimate:
    """Returns the estimate of a federation's rounds, without tests of its model."""
    counted = of_model(data, victim)
    images = plan.rounds * plan.participants * seen(clients)
    return Estimate(
        images * cost.TRAINING * counted.image / speed,
        cost.COMPILE + cost.TRAINING * (counted.compiling - cost.COMPILE),
        plan.participants * cost.MEMORY * counted.params,
    )


def seen(clients: Clients) -> int:
    """Returns how many images a client sees in a round, each as often as it does."""
    if not clients.local_steps:
        return clients.batch_size
    return clients.local_steps * clients.local_batch


def of_model(data: Data, victim: Victim) -> Count:
    """Counts an iteration on a victim, for one image of its data."""
    options: dict[str, Any] = {"norm_mode": victim.norm_mode, "loss": victim.loss}
    size: int | Shape = data.image_size or SIDE
    if is_own(victim.model):
        size, options["classes"] = _example(data) or (size, CLASSES)
    else:
        options = {n: getattr(victim, n) for n in COUNTED}
    return count(str(victim.model), size, **options)


def _iterations(attack: Attack) -> int:
    """Returns how many iterations of gradient matching an attack's work comes to."""
    warm = ATTACKERS[attack.warm_start] if attack.warm_start else None
    row = ATTACKERS[attack.attack]
    return cost.iterations(row, attack.steps, attack.restarts, warm)


@functools.cache
def _example(data: Data) -> tuple[Shape, int] | None:
    """Returns (H, W, C) of an image, and K; None where there is none, which is said
    once images are read."""
    try:
        return inputs.example(data)
    except (ValueError, OSError):
        return None


@functools.cache
def count(
    name: str, size: int | Shape, classes: int = CLASSES, **options: Any
) -> Count:
    """Counts an iteration of a model, without compiling it.

    A network that cannot be built for such images cannot be attacked either, which
    costs nothing.

    Args:
      name: of the model.
      size: of the images: their side in pixels, or (H, W, C).
      classes: K.
      options: other settings of the victim.
    """
    shape = (size, size, CHANNELS) if isinstance(size, int) else size
    victim = Victim(model=name, **options)
    try:
        return _counted(network.architecture(victim, shape, classes).net, victim, shape)
    except Exception:  # its cells will say what it is
        return cost.NOTHING


def _counted(net: models.Network, victim: Victim, shape: Shape) -> Count:
    """Counts an iteration on one image of a shape."""
    params, buffers = jax.eval_shape(net.init, jax.random.key(0))
    compared, train = own_loss.compared(victim), victim.norm_mode != "eval"

    def loss_fn(params: Any, batch: Any, buffers: Any) -> jax.Array:
        logits = net.apply(params, buffers, batch["image"], train)[0]
        return compared(logits, batch["label"])

    return cost.count(loss_fn, params, cost.one_image(shape), buffers)
