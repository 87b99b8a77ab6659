"""JSON and TOML of others: read field by field, or refused in one line."""

import os

import pytest

from invertjax.cli import fields
from invertjax.cli.fields import COUNT, DECIBELS, FLAG, LINE, NUMBER, SHARE, TEXT


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        (NUMBER, [0, -1.5, 1e149], [True, "1", None, 10**400, 1e200, [1]]),
        (SHARE, [0, 1, 0.5], [-0.1, 1.1, "0", 10**400]),
        (DECIBELS, [160.0, -3], [1001, "9", None]),
        (COUNT, [0, 2**62], [-1, 2**63, 1.0, True, "1", None]),
        (TEXT, ["", "a\nb"], [1, None, ["a"]]),
        (LINE, ["", "a line."], ["a\nb", "\x1b[2J", "\u202e", None, 3]),
        (FLAG, [True, False], [0, 1, "true", None]),
        (fields.one_of("a", "b"), ["a", "b"], ["c", "", None, ["a"], {}, 1]),
        (fields.nullable(COUNT), [None, 3], [-1, "3"]),
        (fields.listed(COUNT), [[], [1, 2]], [1, None, [1, "2"], [[1]], {"a": 1}]),
        (fields.listed(COUNT, 2), [[1, 2]], [[], [1], [1, 2, 3]]),
        (fields.table(TEXT), [{}, {"a": "b"}], [[], {"a": 1}, "a", None]),
    ],
)
def test_kinds(kind, right, wrong):
    assert all(map(kind.holds, right)) and not any(map(kind.holds, wrong))


def test_the_first_field_that_is_wrong_is_named():
    needed, optional = {"target": COUNT, "loss": NUMBER}, {"psnr": NUMBER}
    fields.check({"target": 1, "loss": 2.0, "else": "anything"}, needed, optional)
    for found, says in [
        ({"target": 1}, "no 'loss', expected a number"),
        ({"target": 1, "loss": "x\ny"}, r"'loss' is 'x\\ny', expected a number"),
        ({"target": 1, "loss": 1, "psnr": None}, "'psnr' is None, expected a number"),
    ]:
        with pytest.raises(ValueError, match=f"^{says}$".replace("\\\\", "\\\\")):
            fields.check(found, needed, optional)


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "Expecting value"),
        (b"[1]", "expected a JSON object"),
        (b"\xff\xfe{\0}\0", "utf-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digit"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": 1.5}', "'a' is 1.5, expected a whole number, 0 or more"),
        (None, "not a regular file"),
    ],
)
def test_what_is_no_such_object_is_refused(content, says, tmp_path):
    file = tmp_path / "file.json"
    if content is None:
        os.mkfifo(file)  # whoever opens it waits for ever
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        fields.read(file, {"a": COUNT})
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        fields.read(tmp_path / "gone.json")


@pytest.mark.parametrize("content", [b"a = ", b"\xff", b"a = " + b"[" * 9999, None])
def test_a_toml_file_that_is_none_is_named(content, tmp_path):
    file = tmp_path / "plan.toml"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"plan\.toml: .*; expected a TOML file"):
        fields.toml(str(file))
