"""Zhao, Mopuri, Bilen (2020), "iDLG: Improved Deep Leakage from Gradients"."""

from invertjax import candidates, labels, layers
from invertjax.attacks.deep_leakage import deep_leakage
from invertjax.base import Attack, Candidate, Share, Update


def idlg(
    share: Share,
    observed: Update,
    candidate: Candidate,
    *,
    path: str | None = None,
    num_classes: int | None = None,
    steps: int = 300,
    history: int = 100,
) -> Attack:
    """Reads the label of a single image off the last layer, then `deep_leakage`.

    Args:
      share: `batch -> update`.
      observed: the shared update.
      candidate: of one image; whatever label it has, known or optimised, gives way to
        the one that is read.
      path: of the last dense layer; default: the one with K outputs.
      num_classes: K, outputs of that layer; default: those of the candidate's logits,
        else of the one dense layer whose outputs no other one takes.
      steps, history: see `deep_leakage`.

    Raises:
      ValueError: for a batch of more than one, or if the layer is not found.
    """
    start = candidates.shapes(candidate)
    if start["image"].shape[0] != 1:
        raise ValueError(
            f"Expected batch_size={start['image'].shape[0]} to be 1: iDLG reads a "
            "single label. For a batch, take labels.counts."
        )
    if num_classes is None and "logits" in start:
        num_classes = start["logits"].shape[1]
    last = layers.last(observed, num_classes, path=path)
    label = labels.idlg(last.weight, last.bias)[None]
    candidate = candidates.with_labels(candidate, label)
    return deep_leakage(share, observed, candidate, steps=steps, history=history)
