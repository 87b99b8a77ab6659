"""Checks that a run that is resumed has the settings and inputs of its folder."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from invertjax.cli import fields

_SETTINGS = fields.table(fields.ANY)


def check_same(path: str, file: pathlib.Path, now: dict[str, Any]) -> None:
    """Refuses to go on with a run of other settings.

    Args:
      path: of its folder.
      file: its config.json.
      now: settings by name.

    Raises:
      ValueError: naming the first that differs.
    """
    before = _config(path, file)["settings"]
    now = json.loads(json.dumps(now))
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"--resume: {file.name} of the run in --workdir={path} has "
                f"--{fields.shown(name)}={fields.shown(before.get(name))}, this one "
                f"{now.get(name)}; expected the same."
            )


def check_inputs(path: str, now: dict[str, str]) -> None:
    """Refuses to go on with a run whose inputs have been replaced since.

    Args:
      path: of its folder.
      now: digests of what is read now, by flag.

    Raises:
      ValueError: naming the flag of what differs.
    """
    file = pathlib.Path(path) / "config.json"
    before = _config(path, file).get("inputs", now) if file.exists() else now
    name = first_replaced(before, now)
    if name is not None:
        raise ValueError(
            f"--resume: what --{fields.shown(name)} names is not what it was when "
            f"the run in --workdir={path} began, as its {file.name} says: expected the "
            "same content; start again with --overwrite."
        )


def first_replaced(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Returns the name of an input whose digest is another one; None if there is none.

    Args:
      before, now: digests of inputs, by name.
    """
    differ = (name for name in {*before, *now} if before.get(name) != now.get(name))
    return min(differ, default=None)


def _config(path: str, file: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a run's config.json."""
    try:
        return fields.read(file, {"settings": _SETTINGS}, {"inputs": _SETTINGS})
    except ValueError as error:
        raise ValueError(
            f"--resume: {file} cannot be read ({error}); start --workdir={path} again "
            "with --overwrite."
        ) from None
