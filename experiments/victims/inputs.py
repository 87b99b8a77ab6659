"""What a run reads, checked and in memory, before anything is built or written."""

from typing import Any, NamedTuple

from experiments import data
from experiments.settings.config import Config
from experiments.victims import network
from experiments.victims.saved_update import Given, num_classes
from experiments.victims.saved_update import read as read_given

PUBLIC = 512  # images outside the targets, for label counts and baselines


class Sources(NamedTuple):
    """The images of a simulated run, or the files of a given update.

    truth: `{"image": [N, B, H, W, C], "label": [N, B]}`, or None for a given update.
    public: a `data.Dataset` without the targets' images, or None.
    num_classes: K.
    given: update, params and loss, or None where there is a truth.
    """

    truth: Any
    public: Any
    num_classes: int
    given: Given | None = None


def key(config: Config) -> tuple:
    """Equal for runs that read the same data."""
    names = ("dataset", "data_dir", "split", "train_split", "image_size")
    sizes = (config.batch_size, config.targets, bool(config.train_steps))
    return (*[getattr(config, name) for name in names], *sizes)


def check(config: Config) -> None:
    """Raises what `read` would where data is missing; reads no images."""
    network.check_checkpoint(config)
    count = config.targets * config.batch_size
    there = _data(config, "split", data.check, None)
    if there < count:
        raise ValueError(
            f"--batch_size={config.batch_size} times --targets={config.targets} needs "
            f"{count} images: --dataset={config.dataset} --split={config.split} has "
            f"{there}."
        )
    _data(config, "train_split", data.check, _limit(config))


def read(config: Config) -> Sources:
    """Reads the data or the given files.

    Args:
      config: resolved.

    Raises:
      ValueError: naming the flag that asks for what is not there or does not fit.
    """
    if config.update is not None:
        return Sources(None, None, num_classes(config), read_given(config))
    check(config)
    held = _data(config, "split", data.load, config.targets * config.batch_size)
    public = _data(config, "train_split", data.load, _limit(config))
    public = _outside(config, public, held)
    for part in (held, public):
        _check_labels(part)
    shape = (config.targets, config.batch_size)
    images = held.images.astype(config.dtype)
    truth = {
        "image": images.reshape(*shape, *images.shape[1:]),
        "label": held.labels.reshape(shape),
    }
    return Sources(truth, public, held.num_classes)


def _limit(config):
    """How many images outside the targets are read; None: all."""
    if config.train_steps:
        return None
    return config.targets * config.batch_size + PUBLIC


def load(config: Config, flag: str) -> data.Dataset:
    """All images of the split that a flag names, with labels that fit.

    Raises:
      ValueError: as `read`.
    """
    found = _data(config, flag, data.load, None)
    _check_labels(found)
    return found


def _data(config, flag, read, limit):
    """`data.load` or `data.check`, whose errors then name the flags."""
    split = getattr(config, flag)
    try:
        return read(
            config.dataset,
            split,
            config.data_dir,
            image_size=config.image_size,
            limit=limit,
        )
    except ValueError as error:
        named = f"--dataset={config.dataset} --{flag}={split}"
        raise ValueError(f"{named}: {error}") from None


def _outside(config, public, held):
    """Public images that are no targets, where both come of one split."""
    if config.split.partition("[")[0] != config.train_split.partition("[")[0]:
        return public
    seen = {image.tobytes() for image in held.images}
    rows = [i for i, image in enumerate(public.images) if image.tobytes() not in seen]
    if not rows:
        raise ValueError(
            f"--train_split={config.train_split} holds only images that are targets: "
            f"expected others than --split={config.split}."
        )
    return public._replace(images=public.images[rows], labels=public.labels[rows])


def _check_labels(held):
    low, high = int(held.labels.min()), int(held.labels.max())
    if low < 0 or high >= held.num_classes:
        raise ValueError(
            f"--dataset={held.name} --split={held.split} has labels from {low} to "
            f"{high}: expected 0 to {held.num_classes - 1}."
        )
