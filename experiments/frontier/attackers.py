"""Who attacks in a frontier: those who do not know of a defense, and those who do."""

from collections.abc import Iterable

from experiments.settings.attack import NUMBERS
from experiments.settings.settings import Settings, replaced, resolve, values
from experiments.settings.victim import has_batch_norm, is_own
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.attackers import ATTACKERS, for_noise
from invertjax.defenses import protection


def with_adaptive(path: str, cells: Iterable[Settings]) -> list[Settings]:
    """Returns the cells of a grid, each with the attackers who know of its defense.

    Args:
      path: of the grid file, for errors.
      cells: without such attackers.

    Raises:
      ValueError: on a setting that a frontier varies itself, or that its federations
        have not.
    """
    found: list[Settings] = []
    for cell in cells:
        try:
            _check(cell)
            found += [cell, *adaptive(cell)]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return list(dict.fromkeys(found))


def adaptive(cell: Settings) -> list[Settings]:
    """Returns the settings of attackers who know of the defense, as far as that helps
    them: attacks for noise where its law is known, else the same attack adapted."""
    defense = cell.clients.defense
    if protection.noise(defense):
        return [_by(cell, row) for row in for_noise()]
    if any(one.is_adaptable for one in defense):
        return [replaced(cell, defense_known=True)]
    return []


def _by(cell: Settings, row: Attacker) -> Settings:
    """Returns the settings of another attack on a known defense; what it cannot be told
    is left out, and what the cell has not is as the attack has it."""
    given = {**values(cell), "attack": row.name, "defense_known": True}
    for name, number in NUMBERS.items():
        if number not in row.numbers:
            given[name] = None
    return resolve(given)


def _check(cell: Settings) -> None:
    attack, victim = cell.attack, cell.victim
    row = ATTACKERS[attack.attack]
    if attack.defense_known or row.noise or row.choose is not None:
        wrong = ("attack", row.name)
        if attack.defense_known:
            wrong = ("defense_known", True)
        plain = next(r for r in ATTACKERS.values() if not (r.noise or r.choose))
        raise ValueError(
            f"{wrong[0]} = {wrong[1]}: expected none, and an attack such as "
            f"{plain.name}: adaptive ones are added."
        )
    if is_own(victim.model) and victim.norm_mode == "train":
        raise ValueError(
            f"norm_mode = train, of --model={victim.model}: expected eval, as the "
            "clients of a federation share no running statistics."
        )
    if not is_own(victim.model) and has_batch_norm(victim.model, victim.norm):
        raise ValueError(
            f"norm = {victim.norm or 'batch'}, of --model={victim.model}: expected "
            "group, layer or none, as the clients of a federation share no buffers."
        )
