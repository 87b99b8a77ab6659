"""The folder of one run: written so that an interruption loses nothing."""

import json
import os
import pathlib

import numpy as np


class RunDir:
    """`config.json`, `metrics.jsonl`, `summary.json`, `reconstructions.npz`, `grid.png`.

    Files are replaced whole (written beside, then renamed), rows are appended.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path

    def write_json(self, name: str, content: dict) -> None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        self._replace(name, lambda file: file.write(text.encode()))

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        self._replace(name, lambda file: np.savez_compressed(file, **arrays))

    def write_rows(self, rows: list[dict]) -> None:
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        self._replace("metrics.jsonl", lambda file: file.write(text.encode()))

    def rows(self) -> list[dict]:
        """The rows of `metrics.jsonl`; a last line cut short is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        rows = []
        for line in file.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        file = self.path / name
        if not file.exists():
            return {}
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    def _replace(self, name, write):
        beside = self.path / f".{name}.partial"
        with beside.open("wb") as file:
            write(file)
        os.replace(beside, self.path / name)


def check(path: str, settings: dict, *, overwrite: bool, resume: bool) -> None:
    """Refuses a folder that cannot take this run; changes nothing.

    Raises:
      ValueError: if it is a file, holds a run and neither flag is given, or is to be
        resumed with other settings.
    """
    folder = pathlib.Path(path)
    if overwrite and resume:
        raise ValueError("--overwrite and --resume exclude each other: give one.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--workdir={path} is a file: expected a folder.")
    config = folder / "config.json"
    if not config.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"--workdir={path} holds files but no run: expected an empty or new folder."
            )
        return
    if not overwrite and not resume:
        raise ValueError(
            f"--workdir={path} already holds a run: give --resume, --overwrite or "
            "another folder."
        )
    if resume:
        _check_same(path, json.loads(config.read_text()).get("settings", {}), settings)


def open_(path: str, *, resume: bool) -> RunDir:
    """Makes the folder, or empties it of a former run's files, or keeps them."""
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (
            "config.json",
            "metrics.jsonl",
            "summary.json",
            "reconstructions.npz",
            "grid.png",
        ):
            (folder / name).unlink(missing_ok=True)
    return RunDir(folder)


def _check_same(path, before, now):
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--resume: the run in --workdir={path} has --{name}="
                f"{before.get(name)}, this one {now.get(name)}; expected the same."
            )
