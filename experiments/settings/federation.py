"""What a federation is: its settings, their defaults, and their checks.

As in `config`, errors are one line that names the flag, its value and what is right,
before anything is read or traced.
"""

import dataclasses
import hashlib
import json
import pathlib
import tomllib
from typing import Any

import optax

import models
from experiments.settings import checks, config, defense_flags
from invertjax import federated
from invertjax.cli.near import near

PARTITIONS = ("iid", "dirichlet", "by_class")
SERVERS = ("fedavg", "fedavgm", "fedadam")
SEES = ("client", "mean")
ON_NAN = ("drop", "stop")
STEPS = 400  # of an iterative attack, at every audit


@dataclasses.dataclass(frozen=True)
class Federation:
    """clients: in all. participants: drawn every round. rounds: R.

    partition: who has which examples, iid, dirichlet:CONCENTRATION or by_class:CLASSES.
    server: its optimiser. server_lr: of that; None: 1, with gradients (no local steps)
      0.05, with fedadam 0.01.
    sees: what the server sees of a round, every client's update or their mean.
    on_nan: what happens to a round with updates that are not finite.
    evaluate_every: rounds between two tests. audit_rounds: whose shared updates are
      attacked, from 0, the untrained network's; R: those that would come next. None: 0
      and R.
    """

    clients: int = 30
    participants: int = 5
    rounds: int = 60
    partition: str = "iid"
    server: str = "fedavg"
    server_lr: float | None = None
    sees: str = "client"
    on_nan: str = "drop"
    evaluate_every: int = 5
    audit_rounds: tuple[int, ...] | None = None


def resolve(federation: Federation) -> Federation:
    """Checks the settings, and fills in the rounds that are audited.

    Raises:
      ValueError: on the first setting that cannot be.
    """
    for flag in ("clients", "participants", "rounds", "evaluate_every"):
        if getattr(federation, flag) < 1:
            raise _wrong(flag, getattr(federation, flag), "1 or more")
    if federation.participants > federation.clients:
        raise ValueError(
            f"--participants={federation.participants}: expected at most "
            f"--clients={federation.clients}."
        )
    for flag, names in (("server", SERVERS), ("sees", SEES), ("on_nan", ON_NAN)):
        value = getattr(federation, flag)
        if value not in names:
            raise ValueError(
                f"--{flag}={value}: expected one of {', '.join(names)}"
                f"{near(value, names)}"
            )
    if federation.server_lr is not None and not 0 < federation.server_lr < 1e6:
        raise _wrong("server_lr", federation.server_lr, "a positive number")
    audits = federation.audit_rounds
    audits = (0, federation.rounds) if audits is None else audits
    for at in audits:
        if not 0 <= at <= federation.rounds:
            raise _wrong("audit_rounds", at, f"0 to --rounds={federation.rounds}")
    _partition(federation.partition)
    return dataclasses.replace(federation, audit_rounds=tuple(sorted({*audits})))


def partition(federation: Federation, labels, seed: int) -> list:
    """The examples of each client, as index arrays."""
    name, value = _partition(federation.partition)
    if name == "iid":
        return federated.iid(labels, federation.clients, seed)
    make = federated.dirichlet if name == "dirichlet" else federated.by_class
    try:
        return make(labels, federation.clients, value, seed)
    except ValueError as error:
        raise ValueError(f"--partition={federation.partition}: {error}") from None


def _partition(text: str) -> tuple[str, Any]:
    name, _, value = text.partition(":")
    if name == "iid" and not value:
        return name, None
    try:
        number = {"dirichlet": float, "by_class": int}[name](value)
    except (KeyError, ValueError):
        number = 0
    if not 0 < number < float("inf"):
        expected = "iid, dirichlet:CONCENTRATION or by_class:CLASSES, numbers above 0"
        raise _wrong("partition", text, expected)
    return name, number


def server(
    federation: Federation, local_steps: int | None = None
) -> optax.GradientTransformation:
    """The server's optimiser: McMahan et al. (2017), Hsu et al. (2019) with momentum
    0.9, Reddi et al. (2021) with their tau of 1e-3."""
    rate = federation.server_lr
    if federation.server == "fedadam":
        rate = 0.01 if rate is None else rate
        return optax.adam(rate, b1=0.9, b2=0.99, eps=1e-3)
    if rate is None:
        rate = 1.0 if local_steps else 0.05
    return optax.sgd(rate, momentum=0.9 if federation.server == "fedavgm" else None)


def client(settings: config.Config, federation: Federation) -> config.Config:
    """A resolved config whose batch is what one client uses in a round.

    Batch norm would need statistics that clients do not share: where a network has one,
    group norm takes its place unless asked for. Its targets are the clients of a round
    that are attacked.

    Args:
      settings: as given.
      federation: resolved.

    Raises:
      ValueError: as `config.resolve`, and on settings that a federation has not.
    """
    checks.choices(settings)
    checks.ranges(settings)
    _check_applies(settings)
    _check_known(settings, federation)
    local = settings.local_batch or settings.batch_size or 2
    steps = settings.local_steps or 0
    if settings.batch_size not in (None, local * max(steps, 1)):
        raise _wrong(
            "batch_size",
            settings.batch_size,
            f"{local * max(steps, 1)}, --local_batch times --local_steps, or none",
        )
    model = settings.model or config.ATTACK_DEFAULTS[settings.attack]["model"]
    norm = settings.norm
    if model in models.DEFAULTS and models.DEFAULTS[model].norm == "batch":
        norm = norm or "group"
    iterative = config.ATTACK_DEFAULTS[settings.attack]["steps"] is not None
    found = config.resolve(
        dataclasses.replace(
            settings,
            dataset=settings.dataset or "faces",
            batch_size=local * max(steps, 1),
            local_batch=local if steps else settings.local_batch,
            networks="shared",
            norm=norm,
            targets=_targets(settings, federation),
            steps=settings.steps or (STEPS if iterative else None),
        )
    )
    attacked(found, federation, federation.participants)
    return found


def attacked(
    settings: config.Config, federation: Federation, members: int
) -> config.Config:
    """The config of an attack on what the server sees of a round.

    Args:
      settings: from `client`.
      federation: resolved.
      members: clients of the round that count.

    Raises:
      ValueError: if the attack cannot take a batch as large as the mean's.
    """
    if federation.sees == "client":
        targets = min(settings.targets, members)
        return dataclasses.replace(settings, targets=targets)
    size = members * settings.batch_size
    try:
        return config.resolve(dataclasses.replace(settings, batch_size=size))
    except ValueError as error:
        raise ValueError(f"--sees=mean: {error}") from None


def from_file(path: str) -> Federation:
    """The table [federation] of a TOML file: names and values of `Federation`.

    Raises:
      ValueError: on a file, a name or a value that cannot be.
    """
    try:
        text = pathlib.Path(path).read_text("utf-8-sig")
        table = tomllib.loads(text).get("federation", {})
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(f"{path}: {reason}; expected a TOML file in UTF-8.") from None
    fields = {field.name: field.type for field in dataclasses.fields(Federation)}
    for name, value in table.items():
        if name not in fields:
            close = near(name, fields)
            raise ValueError(f"{path}: [federation] {name}: no such setting{close}.")
        kind = type(getattr(Federation(), name))
        if isinstance(value, bool) or not isinstance(value, kind | int | float):
            raise ValueError(f"{path}: [federation] {name} = {value!r}: wrong type.")
    try:
        return resolve(Federation(**table))
    except ValueError as error:
        raise ValueError(f"{path}: [federation] {error}") from None


def digest(kept: dict) -> str:
    """Eight characters that differ where any setting does."""
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _targets(settings, federation):
    if federation.sees == "mean":
        if settings.targets not in (None, 1):
            raise _wrong("targets", settings.targets, "1 with --sees=mean: the mean")
        return 1
    most = federation.participants
    if (settings.targets or 1) > most:
        raise _wrong("targets", settings.targets, f"at most --participants={most}")
    return settings.targets or min(4, most)


def _check_applies(settings):
    """Refuses what a federation has not."""
    if settings.train_steps or settings.checkpoint:
        flag = "train_steps" if settings.train_steps else "checkpoint"
        raise _wrong(flag, getattr(settings, flag), "none: the federation trains")
    if settings.update is not None:
        raise _wrong("update", settings.update, "none: clients compute their own")
    if settings.networks == "per_target":
        raise _wrong("networks", "per_target", "shared: clients train one network")
    if settings.norm == "batch":
        raise _wrong("norm", "batch", "group, layer or none: clients share no buffers")


def _check_known(settings, federation):
    """Refuses attackers who would take what they know for more than it is here."""
    specs = defense_flags.specs(settings.defense)
    mean = federation.sees == "mean"
    if mean and settings.attack == "posterior":
        raise ValueError(
            "--attack=posterior does not go with --sees=mean: expected another attack, "
            "as it takes the noise for that of one client."
        )
    if not settings.defense_known:
        return
    for spec in specs:
        if spec.kind.told:
            raise ValueError(
                f"--defense_known does not go with --defense={spec.name} here: its "
                "attacker is told what a client drew, as in experiments.reconstruct."
            )
        if mean and (spec.kind.update or spec.kind.adapt):
            raise ValueError(
                f"--defense_known does not go with --defense={spec.name} and "
                "--sees=mean: the attack adapts to one client's update, not to a mean."
            )


def _wrong(flag, value, expected):
    return ValueError(f"--{flag}={value}: expected {expected}.")
