"""The file of a trained network: read if it exists, else written after training."""

import pathlib
from typing import Any

import jax

from experiments.settings.victim import Victim
from invertjax.cli import arrays, run_folder


def check(victim: Victim) -> None:
    """Refuses a file that can neither be read nor, after training, be written.

    Raises:
      ValueError: naming --checkpoint and what is right.
    """
    if victim.checkpoint is None:
        return
    file, named = pathlib.Path(victim.checkpoint), f"--checkpoint={victim.checkpoint}"
    if file.exists():
        arrays.load(victim.checkpoint, named)
        return
    if not victim.train_steps:
        raise ValueError(f"{named}: no such file; give --train_steps to make one.")
    if file.suffix != ".safetensors":
        raise ValueError(f"{named}: expected a file named *.safetensors.")
    run_folder.check_writable(file.parent, named)


def load(
    victim: Victim, dtype: str, params: Any, buffers: Any
) -> tuple[Any, Any, dict[str, Any]] | None:
    """Returns params, buffers and notes of an existing file, else None.

    Args:
      victim: settings.
      dtype: of the arrays.
      params, buffers: of the network, or their shapes.

    Raises:
      ValueError: where the file is of another network, or of another training.
    """
    file, named = victim.checkpoint, f"--checkpoint={victim.checkpoint}"
    if file is None or not pathlib.Path(file).exists():
        return None
    found = arrays.as_floats(arrays.load(file, named), dtype, named)
    like = {"params": params, "buffers": buffers}
    try:
        tree = arrays.as_tree(found, like, named)
    except ValueError as error:
        raise ValueError(
            f"{error} That is what --model={victim.model} takes."
        ) from None
    steps = arrays.notes(file).get("train_steps")
    if victim.train_steps and steps not in (None, str(victim.train_steps)):
        raise ValueError(
            f"--train_steps={victim.train_steps}: {named} was trained for {steps}; "
            "expected the same, or another file."
        )
    return tree["params"], tree["buffers"], {"checkpoint": file}


def save(victim: Victim, tree: Any) -> None:
    """Writes the file, in the first process, if there is to be one."""
    if victim.checkpoint is not None and jax.process_index() == 0:
        pathlib.Path(victim.checkpoint).parent.mkdir(parents=True, exist_ok=True)
        arrays.save(victim.checkpoint, tree, {"train_steps": str(victim.train_steps)})
