"""A model or a loss of the reader's own, named on a command line as `module:name`."""

import importlib
import importlib.util
import os
import re
import sys
from typing import Any

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_named(text: str) -> bool:
    """Returns whether a text has the form `package.module:name`."""
    return bool(_FORM.fullmatch(str(text)))


def imported(flag: str, text: str, expected: str) -> Any:
    """Imports what a flag names; modules in the current folder are found, too.

    Args:
      flag: its name.
      text: its value.
      expected: what the name should be of, in a word.

    Raises:
      ValueError: naming the flag, if there is no such thing, or its module fails.
    """
    module, _, name = text.partition(":")
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it, in any way of starting
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the reader's own module may raise anything
        raise ValueError(
            f"--{flag}={text}: expected module:{expected} that can be imported "
            f"({type(error).__name__}: {error})."
        ) from None


def source(text: str | None) -> str | None:
    """Returns the file of the module that `module:name` is from, if it has one."""
    if text is None or not is_named(text):
        return None
    found = importlib.util.find_spec(text.partition(":")[0])
    return found.origin if found else None
