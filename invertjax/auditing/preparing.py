"""The first part of an audit: what an attacker does, and what he starts from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from invertjax.auditing import attackers, observed, programs
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.keys import Keys
from invertjax.auditing.situations import Situation, Target, Threat
from invertjax.auditing.watch import Watch
from invertjax.base import Batch
from invertjax.driver.cache import Cache

SHOWN_PUBLIC = 256  # public images that guesses and priors are made of


class Prepared(NamedTuple):
    """All that an attack needs: read, observed, and checked.

    situation: with labels and numbers. plan: what the attacker does.
    target: as the client has it, with its numbers.
    public: `[P, H, W, C]` images for guesses; None where there are none.
    forms: what else the update may be, where somebody has saved it.
    """

    situation: Situation
    plan: programs.Plan
    target: Target
    public: Any = None
    forms: tuple["Form", ...] = ()


class Form(NamedTuple):
    """One form that an update may have, in words, with the attack on it."""

    words: str
    prepared: Callable[[Watch], Prepared]


def prepare(
    keys: Keys,
    row: Attacker,
    target: Target,
    situation: Situation,
    *,
    public: Batch | None = None,
    shown: int = SHOWN_PUBLIC,
    steps: int | None = None,
    warm_start: Attacker | None = None,
    numbers: Mapping[str, Any] | None = None,
    cache: Cache,
) -> Prepared:
    """Gathers the labels, chooses the attack, and puts its numbers into the trials.

    Args:
      keys: of the audit.
      row: of the attack that was asked for.
      target: as the client has it, with its numbers.
      situation: from `observed`.
      public: `{"image": [P, H, W, C], "label": [P]}` without the targets.
      shown: how many of them guesses and priors are made of.
      steps: the budget; None: the row's.
      warm_start: of the attack that it starts from.
      numbers: in the place of the row's.
      cache: of compiled functions.

    Raises:
      ValueError: where labels are to be read off an update that does not show them.
    """
    if "label" not in situation.trials:
        probes = _probes(keys, target, situation.threat, public)
        situation = observed.with_labels(
            keys.labels, row, target, situation, probes, cache=cache
        )
    images = None if public is None else public["image"][:shown]
    if row.public:
        situation = observed.with_smoothness(situation, images)
    chosen = attackers.named(row.choose(situation, cache)) if row.choose else row
    given = {k: v for k, v in (numbers or {}).items() if k in chosen.numbers}
    fixed, arrays = chosen.split({**chosen.numbers, **given})
    situation = observed.with_numbers_of_attack(situation, arrays)
    budget = None if chosen.closed_form else steps or chosen.steps
    plan = programs.Plan(chosen, budget, tuple(sorted(fixed.items())), warm_start)
    return Prepared(situation, plan, target, images)


def _probes(
    keys: Keys, target: Target, threat: Threat, public: Batch | None
) -> Batch | None:
    if threat.labels != "inferred" or target.shape[0] == 1:
        return None
    if public is None:
        return observed.noise_probes(keys.noise, target)
    return observed.probes_of(public, target.shape[0])
