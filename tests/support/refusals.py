"""What a call must say where it refuses its input."""

import re
from collections.abc import Callable

import pytest


def says(*parts: str, call: Callable) -> str:
    """Runs `call`, expects a one-line ValueError with all parts; returns it."""
    every_part = "".join(f"(?=.*{re.escape(part)})" for part in parts)
    with pytest.raises(ValueError, match=rf"^{every_part}.+$") as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message
