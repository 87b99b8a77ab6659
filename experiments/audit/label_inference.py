"""The labels that the attacker has, or reads off an update's last layer."""

from typing import Any

import jax
import numpy as np

from experiments.audit.scene import Scene, key, row
from experiments.settings import traced
from experiments.settings.config import Config
from invertjax import labels, layers


def with_labels(config: Config, scene: Scene, probes: Any) -> Scene:
    """The scene with the labels that the attacker has, or has inferred, in its trials.

    Args:
      probes: `{"image": [P, b, H, W, C], "label": [P, b]}`, public or noise images.

    Raises:
      ValueError: if labels are to be inferred from a model that does not admit it.
    """
    if config.labels == "joint":
        return scene
    if config.labels == "known":
        found = scene.truth["label"]
    else:
        if scene.infer is None:
            scene = scene._replace(infer=jax.jit(_reader(config, scene)))
        try:
            found = _inferred(config, scene, probes)
        except ValueError as error:
            raise ValueError(f"--labels=inferred does not fit here: {error}") from None
    return scene._replace(trials={**scene.trials, "label": found})


def _inferred(config, scene, probes):
    given, found = traced.of(config), []
    for i in range(len(scene.trials["rms"])):
        trial = row(scene.trials, i)
        params = trial.get("params", scene.shared.get("params"))
        found.append(np.asarray(scene.infer(given, params, trial["update"], probes, i)))
    return np.stack(found)


def _reader(config, scene):
    """`(numbers, params, update, probes, i) -> [B]`: the labels that the update of
    client i says it had."""

    def infer(given, params, update, probes, i):
        if config.batch_size == 1:  # exact, and needs no probes
            last = layers.last(update, scene.num_classes)
            return labels.idlg(last.weight, last.bias)[None]
        now = traced.put(config, given)
        mine = jax.random.fold_in(key(now), 2)
        # The update of plain SGD is about learning_rate * steps times a gradient.
        counts = labels.recover(
            jax.random.fold_in(mine, i),
            scene.share,
            params,
            update,
            batch_size=config.batch_size,
            num_classes=scene.num_classes,
            probe_batches=probes,
            learning_rate=now.local_lr if config.local_steps else 1.0,
            steps=config.local_steps or 1,
        )
        return labels.from_counts(counts, config.batch_size)

    return infer
