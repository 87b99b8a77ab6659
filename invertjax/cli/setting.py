"""A setting is one line: its flag, its check, its type in files and its column follow.

    @dataclasses.dataclass(frozen=True)
    class Victim:
        width: int | None = setting("Width of its first layer.", at_least=1)
        train_steps: int = setting("SGD steps that train it.", default=0, at_least=0)

A record of such lines is a topic. What was given, by name, is checked and completed
here; what forbids a setting because of a fact of another topic is the caller's to say.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple, cast

from absl import flags

from invertjax.cli.near import near


class Besides(NamedTuple):
    """What a text may be beside one of a few: in words, and whether it is that."""

    words: str
    holds: Callable[[str], bool]


class Rule(NamedTuple):
    """All facts about one setting: its help, default, bounds and needs.

    says: for the flag's help. kind: str, int, float or bool.
    default: where it applies and is not given; None where the record's owner knows it.
    one_of: the words that it may be. besides: what it may be in their place.
    at_least, above, at_most: bounds of a number.
    because: what is wrong with a number beyond at_most, in words.
    read: from one text of a flag to a value, where that is more than its kind; raises
      ValueError. write: from that value back to the text. many: whether a flag may be
      repeated, so that the value is a tuple. listed: whether a flag's one text has
      several parts, separated by commas.
    needs: a setting without which this one does nothing. without: a setting that takes
      this one's place, and what is said then. number: whether it is an array in a
      compiled program. fixed: why a sweep cannot vary it. column: of a table, where
    it is not the setting's name, which a result has. later: whether there are results
    from before it was a setting; where it is None, they are of the same run.
    """

    says: str
    kind: type = str
    default: Any = None
    one_of: tuple[str, ...] = ()
    besides: Besides | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    because: Callable[[float], str] | None = None
    read: Callable[[str], Any] | None = None
    write: Callable[[Any], str] = str
    many: bool = False
    listed: bool = False
    needs: str | None = None
    without: tuple[str, str] | None = None
    number: bool = False
    fixed: str | None = None
    column: str | None = None
    later: bool = False


def setting(says: str, *, default: Any = None, **facts: Any) -> Any:
    """Returns the field of a record that holds a setting; facts are those of `Rule`."""
    rule = Rule(says, default=default, **facts)
    return dataclasses.field(default=None, metadata={"rule": rule})


@functools.cache  # a sweep asks for every one of its cells
def rules(record: type) -> Mapping[str, Rule]:
    """Returns the rules of a record's settings by name, each with its kind."""
    hints = typing.get_type_hints(record)
    return {
        field.name: field.metadata["rule"]._replace(kind=_kind(hints[field.name]))
        for field in dataclasses.fields(record)
    }


def _kind(hint: Any) -> type:
    """Returns `int` of `int | None`, and of `tuple[int, ...]`."""
    first = (*typing.get_args(hint), hint)[0]
    return _kind(first) if typing.get_args(first) else first


def define(
    record: type, values: flags.FlagValues, without: Container[str] = ()
) -> None:
    """Defines a flag for every setting of a record, but for those named."""
    makers = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for name, rule in rules(record).items():
        if name in without:
            continue
        says = rule.says
        if rule.besides:
            says += f" Or {rule.besides.words}."
        if rule.default not in (None, ()) and rule.kind is not bool:
            says += f" Default: {rule.default}."
        if rule.many:
            flags.DEFINE_multi_string(name, [], says, flag_values=values)
        elif rule.listed:
            flags.DEFINE_list(name, None, says, flag_values=values)
        else:
            make = makers.get(rule.kind, flags.DEFINE_string)
            make(name, None, says, flag_values=values)


def given(record: type, values: flags.FlagValues) -> dict[str, Any]:
    """Returns the settings of a record that the command line gives, as values.

    Raises:
      ValueError: naming a flag whose text is none of its values.
    """
    found: dict[str, Any] = {}
    for name, rule in rules(record).items():
        if name not in values or not values[name].present:
            continue
        value = values.get_flag_value(name, None)
        if value is not None:
            found[name] = _read(rule, value)
    return found


def _read(rule: Rule, value: Any) -> Any:
    if rule.listed:
        return rule.read(",".join(value)) if rule.read else tuple(value)
    if rule.many:
        return tuple(map(rule.read, value)) if rule.read else tuple(value)
    return rule.read(value) if rule.read else value


def check(name: str, rule: Rule, value: Any) -> None:
    """Raises ValueError where a value is none that the setting may have."""
    other = rule.besides
    if rule.one_of and value not in rule.one_of and not (other and other.holds(value)):
        words = f", or {other.words}" if other else ""
        raise ValueError(
            f"--{name}={value} is unknown: expected one of {', '.join(rule.one_of)}"
            f"{words}{near(str(value), rule.one_of)}"
        )
    if rule.at_least is not None and not rule.at_least <= value < math.inf:
        raise ValueError(f"--{name}={value}: expected {rule.at_least:g} or more.")
    if rule.above is not None and not rule.above < value < math.inf:
        what = "a positive number" if rule.above == 0 else f"more than {rule.above:g}"
        raise ValueError(f"--{name}={value}: expected {what}.")
    if rule.at_most is not None and value > rule.at_most:
        why = f" ({rule.because(value)})" if rule.because else ""
        most = f"{rule.at_most:.12g}"
        raise ValueError(f"--{name}={value}: expected at most {most}{why}.")


def check_applies(
    name: str, rule: Rule, given: Mapping[str, Any], needs: str | None = None
) -> None:
    """Raises ValueError where a given setting would silently do nothing.

    Args:
      name, rule: of the setting.
      given: all settings that were given.
      needs: what it lacks, where the caller knows that it lacks something.
    """
    if needs is None and not applies(rule, given):
        if rule.without and given.get(rule.without[0]) is not None:
            needs = rule.without[1]
        else:
            needs = f"--{rule.needs}"
    if needs is not None:
        text = shown(rule, given[name])
        raise ValueError(f"--{name}={text} does not apply here: it needs {needs}.")


def applies(rule: Rule, given: Mapping[str, Any]) -> bool:
    """Returns whether a setting does something beside the others that were given."""
    if rule.without and given.get(rule.without[0]) is not None:
        return False
    return rule.needs is None or bool(given.get(rule.needs))


def shown(rule: Rule, value: Any) -> str:
    """Returns a value as a flag has it."""
    if isinstance(value, tuple):
        return ",".join(map(rule.write, cast("tuple[Any, ...]", value)))
    return rule.write(value)


def plain(rule: Rule, value: Any) -> Any:
    """Returns a value as JSON has it: what was read from texts is texts again."""
    if value is None or rule.read is None or rule.listed:
        return value
    return tuple(map(rule.write, value)) if rule.many else rule.write(value)


def complete(record: type, given: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
    """Returns the record of what was given, and of defaults for what applies besides.

    Args:
      record: a topic.
      given: settings of all topics, checked.
      own: defaults that follow from other settings, in place of the rules'.
    """
    values, known = {}, {**own, **given}
    for name, rule in rules(record).items():
        if name in given:
            values[name] = given[name]
        elif applies(rule, known):
            values[name] = own[name] if name in own else rule.default
    return record(**values)


def unknown(names: Iterable[str], known: Iterable[str]) -> str | None:
    """Returns the first name that is not known, with the nearest that is, or None."""
    for name in names:
        if name not in known:
            return f"{name}: no such setting{near(name, known) or '.'}"
    return None


def from_flags(record: type, values: flags.FlagValues) -> Any:
    """Returns the record that a command line gives, checked and completed."""
    found = given(record, values)
    for name, value in found.items():
        check(name, rules(record)[name], value)
    return complete(record, found, {})
