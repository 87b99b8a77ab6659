"""How command lines end: one line and an exit code for all that goes wrong."""

import pathlib
import sys
from collections.abc import Callable, Container, Iterable, Mapping

from absl import flags

from invertjax.cli import fields, interrupts, processes, setting
from invertjax.driver import layout
from invertjax.reports import text

_HELP = ("help", "helpshort")
FAILED, BAD_INPUT, INTERRUPTED = processes.FAILED, processes.BAD_INPUT, 130


def guarded(body: Callable[[], int]) -> int:
    """Returns the exit code of `body()`; bad input is one line on standard error.

    Ctrl-C and SIGTERM are held back until somebody looks, see `interrupts`.
    """
    with interrupts.deferred():
        return processes.ended(lambda: _guarded(body))


def _guarded(body: Callable[[], int]) -> int:
    try:
        code = body()
        return interrupts.code() if code == INTERRUPTED else code
    except ValueError as error:
        if not _is_ours(error):  # not bad input but a fault: show where
            raise
        return said(error, BAD_INPUT)
    except layout.Lost:  # `processes` has the last word
        raise
    except (OSError, MemoryError) as error:  # a full disk; a trial that does not fit
        return said(error, FAILED)
    except KeyboardInterrupt:
        return said("interrupted.", interrupts.code())


def run(
    argv: list[str],
    doc: str,
    records: Iterable[type],
    body: Callable[[flags.FlagValues], int],
    without: Mapping[str, str] | None = None,
) -> int:
    """Runs a command, and returns its exit code.

    Flags are the command's own: several commands may live in one process. Flag files
    (`--flagfile=FILE`) are read; `--help` and `-h` print the text and all flags.

    Args:
      argv: the name of the program, and its arguments.
      doc: what the command is for.
      records: whose settings are its flags, see `setting`.
      body: the command, told the flags.
      without: settings of the records that the command has not, and why.
    """
    records, without = tuple(records), without or {}
    argv = ["--help" if argument == "-h" else argument for argument in argv]
    try:
        for path in _flag_files(argv):
            _check_flag_file(path, argv[0], records, without)
        values = _defined(records, without)
        arguments = values(argv)
    except flags.UnrecognizedFlagError as error:
        return said(_why_not(error, without), BAD_INPUT)
    except (flags.Error, ValueError) as error:
        return said(error, BAD_INPUT)

    def checked() -> int:
        if any(values.get_flag_value(name, False) for name in _HELP):
            print(f"{doc}\nflags:\n{values.get_help()}", flush=True)
            return 0
        check_arguments(arguments)
        return body(values)

    return guarded(checked)


def _why_not(error: flags.UnrecognizedFlagError, without: Mapping[str, str]) -> str:
    """Returns why there is no such flag: whether it is another command's."""
    name = error.flagname
    name = name if name in without else name.removeprefix("no")
    if name not in without:
        return str(error)
    given = error.flagvalue or f"--{error.flagname}"
    return f"{given} does not apply here: {without[name]}."


def _defined(records: Iterable[type], without: Container[str]) -> flags.FlagValues:
    """Returns the flags of a command, none of which is given yet."""
    values = flags.FlagValues()
    for name in _HELP:
        flags.DEFINE_bool(name, False, "Show this text.", flag_values=values)
    for record in records:
        setting.define(record, values, without)
    return values


def _flag_files(argv: list[str]) -> list[str]:
    """Returns the paths of all `--flagfile=FILE` and `--flagfile FILE`."""
    found: list[str] = []
    for i, argument in enumerate(argv):
        name, equals, path = argument.lstrip("-").partition("=")
        if argument == "--":
            break
        if argument.startswith("-") and name == "flagfile":
            found += [path] if equals else argv[i + 1 : i + 2]
    return found


def _check_flag_file(
    path: str, program: str, records: Iterable[type], without: Container[str]
) -> None:
    """Refuses a file that is no text, or in which a line is no flag of the command.

    Raises:
      ValueError: naming the file, and what is wrong with it.
    """
    named = f"--flagfile={path}"
    try:
        fields.content(pathlib.Path(path).expanduser()).decode()
        check_arguments(_defined(records, without)([program, named]))
    except (flags.Error, ValueError, RuntimeError) as error:
        raise ValueError(f"{named} cannot be read: {error}") from None


def said(error: object, code: int) -> int:
    """Returns the code, and says what went wrong in one line on standard error."""
    line = text.printable(" ".join(str(error).split()))
    print(f"error: {line}", file=sys.stderr)
    return code


def check_arguments(argv: list[str]) -> None:
    """Raises `ValueError` on arguments that are no flags."""
    if len(argv) > 1:
        raise ValueError(f"Unexpected argument {argv[1]!r}: flags start with --.")


def _is_ours(error: Exception) -> bool:
    """Returns whether this project raised the error itself, about its input."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.partition(".")[0] in (
        "__main__",
        "experiments",
        "invertjax",
        "models",
    )
