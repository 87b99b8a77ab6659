"""Zhao, Mopuri, Bilen (2020), "iDLG: Improved Deep Leakage from Gradients"."""

from invertjax import candidates, labels, layers
from invertjax.attacks.deep_leakage import deep_leakage
from invertjax.base import Attack, Update


def idlg(
    client,
    observed: Update,
    shape: tuple[int, ...],
    *,
    num_classes: int,
    layer: str | None = None,
    steps: int = 300,
    history: int = 100,
) -> Attack:
    """Reads the label of a single image off the last layer, then `deep_leakage`.

    Args:
      client: `batch -> update`.
      observed: the shared update.
      shape: `(1, H, W, C)`.
      num_classes: K, outputs of the last dense layer.
      layer: its path; default: the one dense layer with K outputs.
      steps, history: see `deep_leakage`.

    Raises:
      ValueError: for a batch of more than one, or if the layer is not found.
    """
    if shape[0] != 1:
        raise ValueError(
            f"Expected batch_size={shape[0]} to be 1: iDLG reads a single label. "
            "For a batch, take labels.counts."
        )
    last = layers.last(observed, num_classes, path=layer)
    label = labels.idlg(last.weight, last.bias)[None]
    candidate = candidates.pixels(shape, label)
    return deep_leakage(client, observed, candidate, steps=steps, history=history)
