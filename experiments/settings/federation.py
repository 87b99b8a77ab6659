"""What a federation is: who takes part, how the server learns, and what it sees.

Every error is a one-line `ValueError` that names the flag, its value and what is right,
before anything is read or traced.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.settings import partition, settings
from experiments.settings.partition import Partition
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.settings import Settings
from experiments.settings.victim import has_batch_norm, is_own
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import amounts, fields
from invertjax.cli import setting as kit
from invertjax.cli.setting import setting
from invertjax.defenses.protections import PROTECTIONS

SERVERS = ("fedavg", "fedavgm", "fedadam")
SEES = ("client", "mean")
ON_NAN = ("drop", "stop")
STEPS = 400  # of an iterative attack, at every audit
MOST_TARGETS = 4  # that are attacked by default
# Settings of a run that no federation has, and why.
WITHOUT = {
    **dict.fromkeys(("train_steps", "train_lr", "checkpoint"), "the federation trains"),
    **dict.fromkeys(kit.rules(SavedUpdate), "clients compute their own"),
}


def _rounds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise _wrong("audit_rounds", text, "whole numbers, e.g. 0,10") from None


@dataclasses.dataclass(frozen=True)
class Federation:
    """The clients, their server, and when it is audited."""

    clients: int = setting(
        "Clients in all.",
        default=30,
        at_least=1,
        at_most=10**6,
        because=amounts.memory(lambda clients: 100.0 * clients),
    )
    participants: int = setting("Of them in every round.", default=5, at_least=1)
    rounds: int = setting(
        "Rounds of training.",
        default=60,
        at_least=1,
        at_most=10**6,
        because=amounts.seconds(1e-2),
    )
    partition: Partition = setting(
        "Who holds which examples: iid; dirichlet:A, the shares of every class drawn "
        "from a Dirichlet of concentration A; by_class:K, K shards sorted by label a "
        "client.",
        default=Partition("iid"),
        read=partition.parse,
    )
    server: str = setting(
        f"Its optimiser, one of {', '.join(SERVERS)}.",
        default="fedavg",
        one_of=SERVERS,
    )
    server_lr: float | None = setting(
        "Its learning rate. Default: 1; 0.05 where clients share gradients; fedadam "
        "0.01.",
        above=0,
    )
    sees: str = setting(
        "What the server sees of a round: every client's update, or by secure "
        f"aggregation their mean alone ({', '.join(SEES)}).",
        default="client",
        one_of=SEES,
    )
    on_nan: str = setting(
        "Where updates are not finite: drop them and go on, or stop "
        f"({', '.join(ON_NAN)}).",
        default="drop",
        one_of=ON_NAN,
    )
    dp_delta: float | None = setting(
        "Delta at which epsilon is given, with --defense=dp_sgd: below 1 in the "
        "number of all examples. Default: 1e-5.",
        above=0,
    )
    evaluate_every: int = setting("Rounds between two tests.", default=5, at_least=1)
    audit_rounds: tuple[int, ...] = setting(
        "Rounds whose updates are attacked, e.g. 0,10,50; 0: the untrained network's. "
        "Default: 0 and --rounds, what would be shared next. --audit_rounds=: none.",
        read=_rounds,
        listed=True,
    )


RULES = kit.rules(Federation)


def resolve(given: Mapping[str, Any]) -> Federation:
    """Checks what was given, and completes it.

    Args:
      given: names of settings and their values; one that is None was not given.

    Raises:
      ValueError: naming the first setting that is wrong, and what is right.
    """
    given = _present(given)
    for name, value in given.items():
        kit.check(name, RULES[name], value)
    found = kit.complete(Federation, given, {})
    if found.participants > found.clients:
        most = f"at most --clients={found.clients}"
        raise _wrong("participants", found.participants, most)
    partition.check(found.partition, found.clients)
    if found.dp_delta is not None and found.dp_delta >= 1:
        raise _wrong("dp_delta", found.dp_delta, "less than 1")
    audits = found.audit_rounds
    audits = (0, found.rounds) if audits is None else audits
    for at in audits:
        if not 0 <= at <= found.rounds:
            raise _wrong("audit_rounds", at, f"0 to --rounds={found.rounds}")
    return dataclasses.replace(found, audit_rounds=tuple(sorted({*audits})))


def flat(federation: Federation) -> dict[str, Any]:
    """Returns the settings by name, as JSON has them: texts, numbers and tuples."""
    return {
        name: kit.plain(rule, getattr(federation, name)) for name, rule in RULES.items()
    }


def from_file(path: str) -> Federation:
    """Reads the table [federation] of a TOML file: settings and their values.

    Raises:
      ValueError: on a file, a name or a value that cannot be.
    """
    table = fields.toml(path)[1].get("federation", {})
    if not isinstance(table, dict):
        said = fields.shown(table)
        raise ValueError(f"{path}: federation = {said}: expected a table [federation].")
    wrong = kit.unknown(table, RULES)
    if wrong is not None:
        raise ValueError(f"{path}: [federation] {wrong}")
    try:
        return resolve({name: _value(name, value) for name, value in table.items()})
    except ValueError as error:
        raise ValueError(f"{path}: [federation] {error}") from None


def _value(name: str, value: Any) -> Any:
    """Returns the value of a setting that a TOML file has."""
    rule = RULES[name]
    if rule.listed:
        kinds: tuple[type, ...] = ()  # a federation of such a file is not attacked
    elif rule.read is not None:
        kinds = (str,)
    else:
        kinds = (int, float) if rule.kind is float else (rule.kind,)
    large = isinstance(value, int | float) and not fields.NUMBER.holds(value)
    if isinstance(value, bool) or not isinstance(value, kinds) or large:
        said = fields.shown(value, repr)
        raise ValueError(f"{name} = {said}: wrong type, or too large.")
    value = float(value) if rule.kind is float else value
    return rule.read(value) if rule.read is not None else value


def of_clients(given: Mapping[str, Any], federation: Federation) -> Settings:
    """Completes settings for a federation: the batch is one client's in a round.

    Batch norm would need statistics that clients do not share: where a network has one,
    group norm takes its place unless asked for. Its targets are the clients of a round
    that are attacked.

    Args:
      given: as `settings.resolve` takes them.
      federation: from `resolve`.

    Raises:
      ValueError: as `settings.resolve`, and on settings that a federation has not.
    """
    given = _present(given)
    for name, value in given.items():
        kit.check(name, settings.RULES[name], value)
    row = ATTACKERS[given.get("attack", "auto")]
    _check_applies(given)
    _check_known(given, row, federation)
    own = {"dataset": "faces", "networks": "shared"}
    if has_batch_norm(settings.model_of(given, row), given.get("norm")):
        own["norm"] = "group"
    batch, targets = _batch(given), _targets(given, federation)
    steps = {} if row.closed_form else {"steps": STEPS}
    found = settings.resolve({**own, **steps, **given, **batch, "targets": targets})
    if federation.sees == "mean":
        _check_mean(found, federation)
    accounted = any(one.multiplier for one in found.clients.defense)
    if federation.dp_delta is not None and not accounted:
        private = [
            name for name, row in PROTECTIONS.items() if row.protection.multiplier
        ]
        needs = f"--defense={' or '.join(private)}, whose epsilon it belongs to"
        raise _wrong("dp_delta", federation.dp_delta, f"none without {needs}")
    return found


def _batch(given: Mapping[str, Any]) -> dict[str, int]:
    """Returns what one client takes in a round, and in a step of it."""
    if given.get("local_epochs"):  # over a batch of any size
        size = given.get("batch_size", given.get("local_batch", 2))
        return {"batch_size": size, "local_batch": given.get("local_batch", size)}
    steps = given.get("local_steps", 0)
    local = given.get("local_batch", given.get("batch_size", 2))
    size = local * max(steps, 1)
    if given.get("batch_size", size) != size:
        expected = f"{size}, --local_batch times --local_steps, or none"
        raise _wrong("batch_size", given["batch_size"], expected)
    return {"batch_size": size} | ({"local_batch": local} if steps else {})


def _targets(given: Mapping[str, Any], federation: Federation) -> int:
    """Returns how many updates of a round are attacked."""
    targets = given.get("targets")
    if federation.sees == "mean":
        if targets not in (None, 1):
            raise _wrong("targets", targets, "1 with --sees=mean: the mean")
        return 1
    most = federation.participants
    if targets is not None and targets > most:
        raise _wrong("targets", targets, f"at most --participants={most}")
    return targets or min(MOST_TARGETS, most)


def _check_applies(given: Mapping[str, Any]) -> None:
    """Refuses what a federation has not."""
    for flag, why in WITHOUT.items():
        if given.get(flag):
            raise _wrong(flag, given[flag], f"none: {why}")
    # (flag, what is wrong, what would be right)
    rules = [
        ("networks", "per_target", "shared: clients train one network"),
        ("norm", "batch", "group, layer or none: clients share no buffers"),
    ]
    if is_own(given.get("model")):
        right = "eval: clients share no running statistics"
        rules.append(("norm_mode", "train", right))
    for flag, wrong, expected in rules:
        if given.get(flag) == wrong:
            raise _wrong(flag, wrong, expected)


def _check_known(
    given: Mapping[str, Any], row: Attacker, federation: Federation
) -> None:
    """Refuses attackers who would take what they know for more than it is here."""
    mean = federation.sees == "mean"
    if mean and row.noise:
        raise ValueError(
            f"--attack={row.name} does not go with --sees=mean: expected another "
            "attack, as it takes the noise for that of one client."
        )
    if not given.get("defense_known"):
        return
    for one in given.get("defense", ()):
        if one.told:
            raise ValueError(
                f"--defense_known does not go with --defense={one.name} here: its "
                "attacker is told what a client drew, as in experiments.reconstruct."
            )
        if mean and (one.update or one.adapt):
            raise ValueError(
                f"--defense_known does not go with --defense={one.name} and "
                "--sees=mean: the attack adapts to one client's update, not to a mean."
            )


def _check_mean(found: Settings, federation: Federation) -> None:
    """Refuses attacks that cannot take a batch as large as that of the mean."""
    size = federation.participants * found.clients.batch_size
    try:
        fresh = {"local_steps": None} if found.clients.local_epochs else {}
        settings.resolve({**settings.values(found), "batch_size": size, **fresh})
    except ValueError as error:
        raise ValueError(f"--sees=mean: {error}") from None


def _present(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _wrong(flag: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"--{flag}={value}: expected {expected}.")
