"""One line a setting: its flag, its check, its default and its text follow."""

import dataclasses

import pytest
from absl import flags

from invertjax.cli import setting
from invertjax.cli.setting import setting as line


@dataclasses.dataclass(frozen=True)
class Topic:
    """A topic with a setting of every sort."""

    colour: str = line("Its colour.", default="red", one_of=("red", "green"))
    count: int = line("How many.", default=3, at_least=1)
    rate: float = line("How fast.", default=0.5, above=0, needs="steps")
    steps: int = line(
        "How long.", default=0, at_least=0, at_most=9, because=lambda n: f"{n} hours"
    )
    quick: bool = line("Whether it is quick.", default=False)
    parts: tuple[int, ...] = line("Its parts.", read=int, many=True, default=())
    shape: tuple[int, ...] | None = line(
        "Its shape.",
        read=lambda text: tuple(map(int, text.split("x"))),
        listed=True,
        without=("colour", "no colour"),
    )


def parsed(*args):
    values = flags.FlagValues()
    setting.define(Topic, values)
    values(["program", *args])
    return values


def test_a_line_is_a_flag_with_its_kind_its_default_and_its_help():
    values = parsed()
    help_text = values.get_help()
    assert "Default: ()" not in help_text  # of a flag that may be repeated
    for part in ("--colour: Its colour. Default: red.", "--[no]quick", "(an integer)"):
        assert part in help_text
    assert setting.from_flags(Topic, values) == Topic(
        "red", 3, None, 0, False, (), None
    )


def test_a_text_may_be_of_a_form_beside_its_words():
    @dataclasses.dataclass(frozen=True)
    class Painted:
        colour: str = line(
            "Its colour.",
            one_of=("red", "green"),
            besides=setting.Besides("#RGB, in digits", lambda text: text[0] == "#"),
        )

    rule = setting.rules(Painted)["colour"]
    for right in ("red", "#123"):
        setting.check("colour", rule, right)
    with pytest.raises(ValueError, match="one of red, green, or #RGB, in digits; did"):
        setting.check("colour", rule, "gren")
    values = flags.FlagValues()
    setting.define(Painted, values)
    assert "Its colour. Or #RGB, in digits." in values.get_help()
    without = flags.FlagValues()
    setting.define(Painted, without, ("colour",))
    assert "colour" not in without and setting.given(Painted, without) == {}


def test_what_is_given_is_read_once():
    args = ("--colour=green", "--count=7", "--parts=1", "--parts=2", "--noquick")
    found = setting.given(Topic, parsed(*args))
    assert found == {"colour": "green", "count": 7, "parts": (1, 2), "quick": False}


def test_a_listed_setting_is_one_text():
    assert setting.given(Topic, parsed("--shape=4x5")) == {"shape": (4, 5)}


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("colour", "gren", "--colour=gren is unknown: .*red, green; did you mean 'gr"),
        ("count", 0, "--count=0: expected 1 or more"),
        ("count", float("nan"), "--count=nan: expected 1 or more"),
        ("rate", 0.0, "--rate=0.0: expected a positive number"),
        ("rate", float("inf"), "--rate=inf: expected a positive number"),
        ("steps", 10, r"--steps=10: expected at most 9 \(10 hours\)."),
        ("steps", 10**30, "--steps=10*: expected at most 9"),
    ],
)
def test_values_that_cannot_be_are_refused(name, value, says):
    rule = setting.rules(Topic)[name]
    with pytest.raises(ValueError, match=says):
        setting.check(name, rule, value)


def test_what_would_do_nothing_is_refused_whatever_its_value():
    rule = setting.rules(Topic)["rate"]
    for given in ({"rate": 0.5}, {"rate": 0.5, "steps": 0}):
        with pytest.raises(ValueError, match="--rate=0.5 does not apply.* --steps"):
            setting.check_applies("rate", rule, given)
    setting.check_applies("rate", rule, {"rate": 0.5, "steps": 1})
    with pytest.raises(ValueError, match="--shape=4,5 does not apply.* no colour"):
        given = {"shape": (4, 5), "colour": "red"}
        setting.check_applies("shape", setting.rules(Topic)["shape"], given)


def test_defaults_fill_in_what_applies():
    assert setting.complete(Topic, {"steps": 2}, {}).rate == 0.5
    assert setting.complete(Topic, {}, {}).rate is None
    own = {"steps": 4, "count": 9}  # that follow from other settings
    found = setting.complete(Topic, {"count": 5}, own)
    assert (found.steps, found.rate, found.count) == (4, 0.5, 5)


def test_flags_files_are_read(tmp_path):
    file = tmp_path / "some.flags"
    file.write_text("# a comment\n--count=4\n--colour=green\n")
    found = setting.given(Topic, parsed(f"--flagfile={file}", "--count=5"))
    assert found == {"count": 5, "colour": "green"}


def test_unknown_names_get_near_misses():
    assert setting.unknown(["colour"], ["colour"]) is None
    assert "did you mean 'colour'" in (setting.unknown(["color"], ["colour"]) or "")
