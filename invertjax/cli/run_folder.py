"""The folder of one run: written so that an interruption loses nothing."""

import json
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np

FILES = (
    "config.json",
    "metrics.jsonl",
    "summary.json",
    "reconstructions.npz",
    "grid.png",
)


class RunDir:
    """The files of a run. They are replaced whole: written beside, then renamed."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def write_json(self, name: str, content: dict) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        self._replace(name, lambda file: file.write(text.encode()))

    def write_arrays(self, name: str, arrays: dict[str, Any]) -> None:
        self._replace(name, lambda file: np.savez(file, **arrays))

    def write_rows(self, rows: list[dict]) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self._replace("metrics.jsonl", lambda file: file.write(text.encode()))

    def write_image(self, name: str, image) -> None:
        self._replace(name, lambda file: image.save(file, format="PNG"))

    def json(self, name: str) -> dict:
        """A file's content; {} where there is none."""
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else {}

    def finished(self) -> tuple[list[dict], list[dict]]:
        """Rows and arrays of the targets that were not interrupted, in order."""
        try:
            return self._finished()
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"--resume: the results in --workdir={self.path} cannot be read "
                f"({error}); start again with --overwrite."
            ) from None

    def _finished(self):
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if row["stopped"] != "interrupted"]
        if not rows:
            return [], []
        with np.load(self.path / "reconstructions.npz", allow_pickle=False) as archive:
            stacked = {key: archive[key] for key in archive.files}
        batches = [
            {name: leaf[i] for name, leaf in stacked.items()} for i in range(len(rows))
        ]
        return rows, batches

    def _replace(self, name, write):
        beside = self.path / f".{name}.partial"
        with beside.open("wb") as file:
            write(file)
        os.replace(beside, self.path / name)


def check(
    path: str,
    settings: dict,
    *,
    overwrite: bool,
    resume: bool,
    files: Sequence[str] = FILES,
) -> None:
    """Refuses a folder that cannot take this run; changes nothing.

    Args:
      settings: those of the run.
      files: what runs write, as patterns of names.

    Raises:
      ValueError: if it cannot be written, if it holds a run and neither flag is given,
        or is to be resumed with other settings.
    """
    folder = pathlib.Path(path)
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other: give one.")
    check_writable(folder, f"--workdir={path}")
    if not any(_there(folder, files)):
        return
    if not overwrite and not resume:
        raise ValueError(
            f"--workdir={path} already holds a run: give --resume, --overwrite or "
            "another folder."
        )
    if resume:
        _check_same(path, folder / "config.json", settings)


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


def open_(path: str, *, resume: bool, files: Sequence[str] = FILES) -> RunDir:
    """Makes the folder, or empties it of a former run's files, or keeps them.

    Raises:
      ValueError: if the folder cannot be made or written.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for file in _there(folder, files):
                file.unlink(missing_ok=True)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})"
        raise ValueError(f"--workdir={path} cannot be written: {reason}.") from None
    return RunDir(folder)


def _there(folder, files):
    return [file for pattern in files for file in folder.glob(pattern)]


def _check_same(path, file, now):
    try:
        before = json.loads(file.read_text())["settings"]
    except (OSError, ValueError, KeyError):
        raise ValueError(
            f"--resume: {file} cannot be read; start --workdir={path} again with "
            "--overwrite."
        ) from None
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--resume: the run in --workdir={path} has --{name}="
                f"{before.get(name)}, this one {now.get(name)}; expected the same."
            )
