"""All that a person has set for one run, topic by topic: checked, and completed.

What was given is a mapping of names to values. `resolve` checks it, before anything is
traced and before any file is written, and fills in the defaults; what is None
afterwards is the model's or the data set's own, or does not apply.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from absl import flags

from experiments.settings import between, sizes
from experiments.settings.attack import NUMBERS, Attack
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import Victim, has_batch_norm, is_own
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.attackers import ATTACKERS
from invertjax.cli import local_epochs, setting


class Settings(NamedTuple):
    """One run's, by topic. What they say is for commands; all others take topics."""

    data: Data
    victim: Victim
    attack: Attack
    clients: Clients
    saved: SavedUpdate
    run: Run


TOPICS: dict[str, type] = {
    "data": Data,
    "victim": Victim,
    "attack": Attack,
    "clients": Clients,
    "saved": SavedUpdate,
    "run": Run,
}
RULES = {
    name: rule
    for topic in TOPICS.values()
    for name, rule in setting.rules(topic).items()
}
COLUMNS = {name: rule.column or name for name, rule in RULES.items()}
# Settings that no sweep has, and why.
FIXED = {name: rule.fixed for name, rule in RULES.items() if rule.fixed}
_LATER = {name for name, rule in RULES.items() if rule.later}
RECORDS = tuple(TOPICS.values())
TOPIC_OF = {
    name: topic for topic, record in TOPICS.items() for name in setting.rules(record)
}


def given(values: flags.FlagValues) -> dict[str, Any]:
    """Returns the settings that a command line gives.

    Raises:
      ValueError: naming a flag whose text is none of its values.
    """
    found: dict[str, Any] = {}
    for record in RECORDS:
        found |= setting.given(record, values)
    return found


def resolve(given: Mapping[str, Any]) -> Settings:
    """Checks what was given, and completes it; what is complete stays as it is.

    Args:
      given: names of settings and their values; one that is None was not given.

    Raises:
      ValueError: naming the first setting that is wrong, its value and what is right.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        setting.check(name, RULES[name], value)
    given = local_epochs.with_local_steps(given)
    row = ATTACKERS[given.get("attack", "auto")]
    between.check(given, row)
    own = _own_defaults(given, row)
    found = Settings(
        **{
            topic: setting.complete(record, given, own)
            for topic, record in TOPICS.items()
        }
    )
    sizes.check(found.data, found.attack, found.clients, found.saved, found.run)
    return found


def flat(topics: Iterable[Any]) -> dict[str, Any]:
    """Returns all settings by name, as JSON has them: texts, numbers and tuples.

    Args:
      topics: records, such as those of one run's `Settings`.
    """
    return {
        name: setting.plain(rule, getattr(record, name))
        for record in topics
        for name, rule in setting.rules(type(record)).items()
    }


def values(settings: Settings) -> dict[str, Any]:
    """Returns all settings by name, as `resolve` takes them."""
    return {name: getattr(getattr(settings, TOPIC_OF[name]), name) for name in RULES}


def replaced(settings: Settings, **changes: Any) -> Settings:
    """Returns the settings with some of them changed, and nothing checked again."""
    by_topic: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        by_topic.setdefault(TOPIC_OF[name], {})[name] = value
    return settings._replace(
        **{
            topic: dataclasses.replace(getattr(settings, topic), **some)
            for topic, some in by_topic.items()
        }
    )


def digest(kept: Mapping[str, Any], length: int = 8) -> str:
    """Returns characters that differ where any of the settings does.

    Args:
      kept: by name, as `flat` returns them.
      length: how many characters.
    """
    # A setting that came later, and is not used, leaves a run's folder where it was.
    kept = {k: v for k, v in kept.items() if v is not None or k not in _LATER}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _own_defaults(given: Mapping[str, Any], row: Attacker) -> dict[str, Any]:
    """Returns the defaults that follow from other settings."""
    with_data = given.get("update") is None
    batch_size = given.get("batch_size", 1)
    model = model_of(given, row)
    labels = row.labels[0]
    own: dict[str, Any] = {
        "model": model,
        "batch_size": batch_size,
        "local_batch": batch_size,
        "defense_known": row.noise,
        # Without data there is nobody who could tell the labels.
        "labels": labels if with_data or labels != "known" else "inferred",
    }
    if with_data:
        trained = given.get("train_steps") or given.get("checkpoint") is not None
        # Only once it is made is it known whether one's own has fresh weights.
        untrained = None if is_own(model) else "per_target"
        own["networks"] = "shared" if trained else untrained
        if has_batch_norm(model, given.get("norm")):
            own["norm_mode"] = "train"
    if not row.closed_form:
        own |= {"restarts": 1, "steps": row.steps, "stop": "never"}
    return own | {
        name: row.numbers[number]
        for name, number in NUMBERS.items()
        if number in row.numbers
    }


def model_of(given: Mapping[str, Any], row: Attacker) -> str | None:
    """Returns the model that will be used; None where a loss is given instead."""
    return None if between.is_whole(given) else given.get("model", row.network)
