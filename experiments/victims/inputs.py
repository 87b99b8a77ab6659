"""The images that an audit reads, checked before anything is built or written."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from experiments import data
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.victim import Victim
from invertjax.cli import processes

PUBLIC = 512  # images outside the targets, for label counts and guesses


class Inputs(NamedTuple):
    """The images of a simulated run.

    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`.
    public: a `data.Dataset` without the targets' images.
    num_classes: K.
    """

    truth: Any
    public: data.Dataset
    num_classes: int


def key(of: Data, clients: Clients, victim: Victim) -> tuple:
    """Returns what is equal for runs that read the same data."""
    return of, clients.batch_size, bool(victim.train_steps)


def check(of: Data, clients: Clients, victim: Victim) -> None:
    """Raises what `read` would where data is missing; reads no images."""
    wanted = limits(of, clients, victim)
    count = of.targets * clients.batch_size
    there = _read(of, "split", data.check, None)
    if there < count:
        raise ValueError(
            f"--batch_size={clients.batch_size} times --targets={of.targets} needs "
            f"{count} images: --dataset={of.dataset} --split={of.split} has {there}."
        )
    _read(of, "train_split", data.check, wanted["train_split"])


def read(of: Data, clients: Clients, victim: Victim, dtype: str) -> Inputs:
    """Reads the images of the targets, and the public ones.

    Args:
      of: which images. clients: how many behind an update. victim: whether it is
        trained on the public ones, all of them.
      dtype: of the targets' images.

    Raises:
      ValueError: naming the flag that asks for what is not there or does not fit.
    """
    check(of, clients, victim)
    held, public = (
        _read(of, flag, data.load, limit)
        for flag, limit in limits(of, clients, victim).items()
    )
    public = _without(of, "train_split", public, "split", held)
    for part in (held, public):
        _check_labels(part)
    shape = (of.targets, clients.batch_size)
    images = held.images.astype(dtype)
    truth = {
        "image": images.reshape(*shape, *images.shape[1:]),
        "label": held.labels.reshape(shape),
    }
    return Inputs(truth, public, held.num_classes)


def example(of: Data) -> tuple[tuple[int, ...], int]:
    """Returns (H, W, C) of an image of `--split`, and K.

    Raises:
      ValueError: as `read`.
    """
    found = _read(of, "split", data.load, 1)
    return found.images.shape[1:], found.num_classes


def load(of: Data, flag: str) -> data.Dataset:
    """Returns all images of the split that a flag names, with labels that fit.

    Raises:
      ValueError: as `read`.
    """
    found = _read(of, flag, data.load, None)
    _check_labels(found)
    return found


def limits(of: Data, clients: Clients, victim: Victim) -> dict[str, int | None]:
    """Returns how many images are read at most, by the flag of the split: the targets,
    and images outside of them; None: all."""
    count = of.targets * clients.batch_size
    public = None if victim.train_steps else count + PUBLIC
    return {"split": count, "train_split": public}


def _read(of: Data, flag: str, read: Callable, limit: int | None) -> Any:
    """Returns what `data.load` or `data.check` does; errors then name the flags."""
    split = getattr(of, flag)
    try:
        return read(
            of.dataset, split, of.data_dir, image_size=of.image_size, limit=limit
        )
    except ValueError as error:
        named = f"--dataset={of.dataset} --{flag}={split}"
        raise ValueError(f"{named}: {error}") from None


def held_out(of: Data, found: data.Dataset, examples: data.Dataset) -> data.Dataset:
    """Returns the images of `--split` that no client has, and says how many do.

    They tell how accurate a model is, and are what an attacker can guess from.

    Args:
      of: which images.
      found: those of `--split`, all of them.
      examples: those of `--train_split`, which are the clients'.

    Raises:
      ValueError: naming --split, if nothing is left.
    """
    return _without(of, "split", found, "train_split", examples)


def _without(
    of: Data, flag: str, found: data.Dataset, other: str, seen: data.Dataset
) -> data.Dataset:
    """Returns the images that a flag names without those that another one names too,
    by their pixels: the same file may be in two splits, or there under two names."""
    shared = data.shared(found.images, seen.images)
    if not shared.any():
        return found
    named, others = (f"--{name}={getattr(of, name)}" for name in (flag, other))
    if shared.all():
        raise ValueError(
            f"{named} holds only images that are in {others} too: expected others."
        )
    _say(
        f"--dataset={of.dataset} {named}: left out {np.sum(shared)} of {len(shared)} "
        f"images, which are in {others} too."
    )
    return found._replace(images=found.images[~shared], labels=found.labels[~shared])


@functools.cache  # a sweep reads the same images many times
def _say(line: str) -> None:
    if processes.is_first():
        tqdm.write(line, file=sys.stderr)  # above a bar, where there is one


def _check_labels(held: data.Dataset) -> None:
    low, high = int(held.labels.min()), int(held.labels.max())
    if low < 0 or high >= held.num_classes:
        raise ValueError(
            f"--dataset={held.name} --split={held.split} has labels from {low} to "
            f"{high}: expected 0 to {held.num_classes - 1}."
        )


def batch_of(held: data.Dataset) -> dict[str, np.ndarray]:
    """Returns public images and labels as a batch."""
    return {"image": held.images, "label": held.labels}
