"""What of a run is only a number: an array in the compiled program, not part of it.

Runs that differ in nothing else share one program; see `experiments.sweep`.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.settings import defense_flags
from experiments.settings.config import Config

FLOATS = ("attack_lr", "total_variation", "local_lr")


def of(config: Config) -> dict[str, Any]:
    """The numbers of a resolved config, as arrays `[]`; what is None is left out."""
    found: dict[str, Any] = {"seed": np.uint32(config.seed % 2**32)}
    for name in FLOATS:
        value = getattr(config, name)
        if value is not None and not _switches(config, name):
            found[name] = np.asarray(value, config.dtype)
    found["defense"] = tuple(
        None if _is_fixed(spec) else np.asarray(spec.value, config.dtype)
        for spec in defense_flags.specs(config.defense)
    )
    return found


def as_attacked(config: Config) -> Config:
    """What of a config the attack depends on: the client as the attacker takes it."""
    same: dict[str, Any] = dict(seed=0)
    if config.labels == "inferred":  # to the attack they are known
        same |= dict(labels="known")
    if config.defense and not config.defense_known:
        same |= dict(defense=defense_flags.of_network(config.defense))
        same |= dict(defense_known=None)
    if config.local_steps and not config.local_known:
        same |= dict(local_steps=0, local_batch=None, local_lr=None)
        same |= dict(local_shuffle=None, local_known=None)
    return dataclasses.replace(config, **same)


def put(config: Config, numbers: dict[str, Any]) -> Config:
    """The config with its numbers replaced, e.g. by tracers."""
    specs = tuple(
        spec if value is None else spec._replace(value=value)
        for spec, value in zip(
            defense_flags.specs(config.defense), numbers["defense"], strict=True
        )
    )
    return dataclasses.replace(config, **{**numbers, "defense": specs})


def without(config: Config) -> Config:
    """The config with its numbers set to one value: equal for runs of one program."""
    found = of(config)
    specs = defense_flags.specs(config.defense)
    texts = [
        text if _is_fixed(spec) else spec.name
        for text, spec in zip(config.defense, specs, strict=True)
    ]
    same = {name: 0 for name in found if name != "defense"}
    return dataclasses.replace(config, **same, defense=tuple(texts))


def _is_fixed(spec):
    """Whether a defense's value is part of the program."""
    return spec.value is None or spec.kind.fixed


def _switches(config, name):
    """Whether a value chooses between programs: least squares without a prior."""
    zero = getattr(config, name) == 0
    return config.attack == "gauss_newton" and name == "total_variation" and zero
