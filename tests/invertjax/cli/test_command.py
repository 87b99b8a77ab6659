"""How command lines end."""

import dataclasses
import os

import pytest

from invertjax.cli import command
from invertjax.cli.setting import setting as line


def raises(error: BaseException):
    """A function that does."""

    def body():
        raise error

    return body


def of_another_project():
    raise ValueError("raised in a module that is not ours, such as this one")


@pytest.mark.parametrize(
    "error, code",
    [
        (OSError(28, "No space left on device"), command.FAILED),
        (MemoryError("too\nlarge"), command.FAILED),
        (KeyboardInterrupt(), command.INTERRUPTED),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(error, code, capsys):
    assert command.guarded(raises(error)) == code
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1


def test_names_of_others_command_no_terminal(capsys):
    """As a file's name may, in the message about it."""
    error = ValueError("part-\x1b]0;title\x07\x1b[2J.parquet, \u202egnp cannot be read")
    command.said(error, 2)
    line = capsys.readouterr().err
    assert line == (
        "error: part-\\x1b]0;title\\x07\\x1b[2J.parquet, \\u202egnp cannot be read\n"
    )


def test_bad_input_is_one_line(capsys):
    assert command.guarded(lambda: command.check_arguments(["me", "extra"])) == 2
    assert capsys.readouterr().err == (
        "error: Unexpected argument 'extra': flags start with --.\n"
    )


@pytest.mark.parametrize("body", [of_another_project, raises(ZeroDivisionError())])
def test_faults_are_shown_where_they_are(body):
    with pytest.raises((ValueError, ZeroDivisionError)):
        command.guarded(body)


def test_a_command_that_ends_well_says_nothing(capsys):
    assert command.guarded(lambda: 0) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("content", [b"\xff\xfe--seed=1\n", None])
def test_a_flag_file_that_is_no_text(content, tmp_path, capsys):
    file = tmp_path / "my.flags"
    if content is not None:
        file.write_bytes(content)
    argv = ["me", f"--flagfile={file}"]
    assert command.run(argv, "", (), lambda values: 0) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and str(file) in line and line.count("\n") == 1


@dataclasses.dataclass(frozen=True)
class Topic:
    count: int | None = line("How many.")


@pytest.mark.parametrize(
    "content, says",
    [
        ("--count=3\n--cuont=4\n", "cuont"),
        ("--count=three\n", "three"),
        ("three\n", "Unexpected argument 'three'"),
        ("--count\n", "count"),
        ("--\x1b[2J\n", "x1b"),
        (None, "not a regular file"),
    ],
)
def test_what_is_wrong_in_a_flag_file_names_it(content, says, tmp_path, capsys):
    file = tmp_path / "my.flags"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_text(content)
    for argv in (["me", f"--flagfile={file}"], ["me", "--count=1", "-flagfile", file]):
        assert command.run(list(map(str, argv)), "", (Topic,), lambda values: 0) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --flagfile=") and said.count("\n") == 1
        assert str(file) in said and says in said


def test_flag_files_may_name_others(tmp_path):
    (tmp_path / "one.flags").write_text(f"--flagfile={tmp_path / 'two.flags'}\n")
    (tmp_path / "two.flags").write_text("# a comment\n--count=4\n")
    argv = ["me", f"--flagfile={tmp_path / 'one.flags'}"]
    found = []
    command.run(argv, "", (Topic,), lambda values: found.append(values.count) or 0)
    assert found == [4]
