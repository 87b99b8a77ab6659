"""A run about to start: all is read, checked and compiled, but for the attack."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from experiments.audit import attacking, label_inference, scene
from experiments.settings.config import Config
from experiments.victims import network as victim
from experiments.victims.inputs import PUBLIC, Sources
from invertjax import driver, labels


class Prepared(NamedTuple):
    """A run about to start: everything is read, checked and built."""

    config: Config
    scene: scene.Scene
    attack: str
    public: Any
    notes: dict
    num_classes: int
    victim: victim.Victim | None


class Bars(NamedTuple):
    """How progress is shown. over: `(iterable, name) -> iterable`; steps: told a
    `driver.Progress`; check: called between chunks, to raise a KeyboardInterrupt."""

    over: Callable[[Any, str], Iterator] = lambda items, name: iter(items)
    steps: Callable[[driver.Progress], None] = lambda progress: None
    check: Callable[[], None] = lambda: None


SILENT = Bars()


def prepare(
    config: Config,
    sources: Sources,
    bars: Bars = SILENT,
    like: Prepared | None = None,
    near: Prepared | None = None,
) -> Prepared:
    """Builds the victim, lets the clients share their updates, gathers the labels.

    Args:
      config: resolved.
      sources: from `read`.
      bars: progress.
      like: of a run that differs in numbers only; what is compiled there is used.
      near: of a run of the same architecture; likewise, and its victim if it is ours.

    Raises:
      ValueError: where the attack, or the inference of labels, does not fit the model.
    """
    classes = sources.num_classes
    if sources.given is not None:
        stage = scene.given(config, sources.given, classes)
        public, notes, built = None, {"given": config.params}, None
        size, *shape = stage.shape
        number = max(1, PUBLIC // size)
        key = jax.random.key(config.seed)
        probes = labels.noise_batches(key, number, size, tuple(shape), classes)
    else:
        built = (
            near.victim
            if near and victim.key(config) == victim.key(near.config)
            else None
        )
        built = built or victim.build(
            config,
            sources.truth["image"].shape[2:],
            classes,
            lambda: sources.public,
            bars.over,
            near.victim if near else None,
        )
        scene_like = like.scene if like else None
        stage = scene.simulated(config, built, sources.truth, classes, scene_like)
        public, notes = sources.public.images[:256], built.notes
        probes = _probes(config, sources.public)
    stage = label_inference.with_labels(config, stage, probes)
    if config.attack == "posterior":
        stage = scene.with_smoothness(stage, public)
    name = attacking.chosen(config, stage)
    return Prepared(config, stage, name, public, notes, classes, built)


def _probes(config, public):
    """Public batches of the client's size (batch norm sees it), for label counts."""
    size = min(config.batch_size, PUBLIC, len(public.images))
    count = min(PUBLIC, len(public.images)) // size
    return {
        "image": public.images[: count * size].reshape(
            count, size, *public.images.shape[1:]
        ),
        "label": public.labels[: count * size].reshape(count, size),
    }
