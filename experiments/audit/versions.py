"""What a repetition needs to know of a machine."""

import platform
from typing import Any

import flax
import jax
import numpy as np
import optax

import invertjax


def versions() -> dict[str, Any]:
    """Returns the versions of what computes, and the devices."""
    device = jax.devices()[0]
    modules = {"invertjax": invertjax, "jax": jax, "flax": flax, "optax": optax}
    found = {name: module.__version__ for name, module in modules.items()}
    return {
        "versions": {
            **found,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": f"{len(jax.devices())} x {device.platform} ({device.device_kind})",
        "platform": platform.platform(),
    }
