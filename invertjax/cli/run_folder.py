"""Files that are written whole or not at all, and the folder of one run."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Generator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np

from invertjax.base import Row
from invertjax.cli import earlier, fields, locks

ROWS = "metrics.jsonl"
FILES = (
    "config.json",
    ROWS,
    "summary.json",
    "reconstructions.npz",
    "grid.png",
)


_PARTIAL = "_partial-"  # how the names of files begin that are being written


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Generator[BinaryIO, None, None]:
    """Yields a binary file that takes the place of `path` at the end of the `with`.

    Until then it lies beside the path, under a name of its own that starts with "_", as
    readers of tables leave such files out. After an error it is removed, and `path` is
    as it was. Several processes may write one path at once: the last one wins.
    """
    beside = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a crash may keep the name without the bytes
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def write_all(folder: str | os.PathLike[str], files: dict[str, bytes]) -> None:
    """Writes files into a folder, which is made if it is not there.

    Args:
      folder: its path.
      files: contents by name.
    """
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(path / name, content)


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what processes that were killed have left of files they were writing."""
    for file in folder.glob(f"{_PARTIAL}*"):
        file.unlink(missing_ok=True)


def read_rows(
    path: pathlib.Path, check: Callable[[Row], None] = fields.any_row
) -> list[Row]:
    """Reads the JSON objects of a file that has one on every line; [] without a file.

    A last line that has no newline yet was cut off while it was written: it is left
    out, and `append_rows` removes it.

    Args:
      path: of the file.
      check: raises `ValueError` on a row whose fields are not as expected.

    Raises:
      ValueError: naming the file, and the first line that is no such row.
    """
    if not os.path.lexists(path):
        return []
    try:
        content = fields.content(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None
    lines = content[: _whole(content)].split(b"\n")[:-1]
    return [_row(path, number, line, check) for number, line in enumerate(lines, 1)]


def append_rows(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Adds JSON objects to a file, one on every line, after its last whole line.

    Who is killed here leaves a line without its end, which costs no other row.
    """
    with path.open("a+b") as file:  # always writes at the end, also beside others
        file.seek(0)
        content = file.read()
        if len(content) > _whole(content):
            file.truncate(_whole(content))
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def _whole(content: bytes) -> int:
    """Returns where the last whole line ends, in bytes."""
    return content.rfind(b"\n") + 1


def _row(
    path: pathlib.Path, number: int, line: bytes, check: Callable[[Row], None]
) -> Row:
    try:
        row = fields.parsed(line)
    except ValueError:
        row = None
    try:
        if not isinstance(row, dict):
            raise ValueError("expected a JSON object on every line")
        found = cast(Row, row)
        check(found)
        return found
    except ValueError as error:
        raise ValueError(f"{path}: line {number} is damaged: {error}.") from None


class RunDir:
    """The files of a run, each of which is replaced whole."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes JSON; raises `ValueError` on numbers that are not finite."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write(self.path / name, text.encode())

    def write_arrays(self, name: str, arrays: dict[str, Any]) -> None:
        """Writes arrays as .npz, by key."""
        with replacing(self.path / name) as file:
            np.savez(file, **arrays)

    def write_rows(self, rows: list[Row]) -> None:
        """Writes metrics.jsonl; raises `ValueError` on numbers that are not finite."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write(self.path / ROWS, text.encode())

    def rows(self, check: Callable[[Row], None] = fields.any_row) -> list[Row]:
        """Reads what `write_rows` has written; [] where there is nothing."""
        return read_rows(self.path / ROWS, check)

    def write_image(self, name: str, image: Any) -> None:
        """Writes a `PIL.Image.Image` as PNG."""
        with replacing(self.path / name) as file:
            image.save(file, format="PNG")

    def json(
        self, name: str, optional: fields.Fields = fields.NO_FIELDS
    ) -> dict[str, Any]:
        """Returns the content of a file; {} where there is none.

        Args:
          name: of the file.
          optional: what its fields are, where they are there.

        Raises:
          ValueError: naming the file, if it holds no such JSON object.
        """
        file = self.path / name
        try:
            return fields.read(file, {}, optional) if os.path.lexists(file) else {}
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged: {error}; start again with --overwrite."
            ) from None


def check(
    path: str,
    settings: dict[str, Any],
    *,
    overwrite: bool,
    resume: bool | None,
    files: Sequence[str] = FILES,
) -> None:
    """Refuses a folder that cannot take this run; changes nothing.

    Args:
      settings: those of the run.
      files: what runs write, as patterns of names.

    Raises:
      ValueError: if it cannot be written, if another process has it, if it holds a run
        and neither flag is given, or is to be resumed with other settings.
    """
    folder = pathlib.Path(path)
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other: give one.")
    check_writable(folder, f"--workdir={path}")
    if folder.is_dir():
        with alone(path):  # now, and not after an hour of preparing; see `open_`
            pass
    if not overwrite and not resume:
        _refuse_run(folder, files, resume)
    elif resume and any(_there(folder, files)):
        earlier.check_same(path, folder / "config.json", settings)


def check_writable(folder: pathlib.Path, named: str) -> None:
    """Refuses a folder that is none, or that could not be made or written.

    Raises:
      ValueError: naming the flag and the path that is in the way.
    """
    try:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError as error:
        raise ValueError(f"{named} cannot be a folder: {error.strerror}.") from None
    if not there.is_dir():
        raise ValueError(f"{named}: {there} is a file; expected a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{named} cannot be written: no permission in {there}.")


@contextlib.contextmanager
def open_(
    path: str, *, overwrite: bool, resume: bool | None, files: Sequence[str] = FILES
) -> Generator[RunDir, None, None]:
    """Makes the folder, or empties it of a former run's files, or keeps them; until the
    end of the `with` no other process may open it.

    Args:
      path: of the folder.
      overwrite, resume: whether a run in it is removed, or gone on with (None: never).
      files: what runs write, as patterns of names.

    Raises:
      ValueError: if the folder cannot be made or written, if another process has it, or
        if a run has come into it since `check`.
    """
    with alone(path) as folder:
        if not overwrite and not resume:
            _refuse_run(folder, files, resume)
        with _written(path):
            remove_partial(folder)
            if not resume:
                for file in _there(folder, files):
                    file.unlink(missing_ok=True)
        yield RunDir(folder)


@contextlib.contextmanager
def alone(path: str) -> Generator[pathlib.Path, None, None]:
    """Makes a folder, and has it for this process alone until the end of the `with`.

    Raises:
      ValueError: if it cannot be made or written, or if another process has it.
    """
    folder = pathlib.Path(path)
    with contextlib.ExitStack() as stack:
        with _written(path):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locks.alone(folder))
            except locks.Taken:
                raise ValueError(
                    f"--workdir={path}: another process is at work in it; expected to "
                    "wait for its end, or another folder."
                ) from None
        yield folder


@contextlib.contextmanager
def _written(path: str) -> Generator[None, None, None]:
    """Names the flag whose folder cannot be written."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise ValueError(f"--workdir={path} cannot be written: {reason}.") from None


def _refuse_run(folder: pathlib.Path, files: Sequence[str], on: bool | None) -> None:
    if any(_there(folder, files)):
        words = "--overwrite" if on is None else "--resume, --overwrite"
        held = f"--workdir={folder} already holds a run"
        raise ValueError(f"{held}: give {words} or another folder.")


def _there(folder: pathlib.Path, files: Sequence[str]) -> list[pathlib.Path]:
    return [file for pattern in files for file in folder.glob(pattern)]
