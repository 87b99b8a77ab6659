"""What a guess reaches that never saw the update: the floor of every score."""

import numpy as np

from invertjax import metrics


def guesses(truth, public, seed: int) -> dict[str, dict[str, float]]:
    """Mean PSNR over targets of the mean public image and of random public images.

    Args:
      truth: `{"image": [N, B, H, W, C], ...}`.
      public: `[P, H, W, C]`, images that are not targets.
      seed: of the choice.
    """
    count, size = truth["image"].shape[:2]
    random = np.random.default_rng(seed)
    mean = np.broadcast_to(public.mean(0), (size, *public.shape[1:]))
    found = {"mean_image": [], "random_image": []}
    for i in range(count):
        chosen = public[random.integers(len(public), size=size)]
        for name, guess in (("mean_image", mean), ("random_image", chosen)):
            score = metrics.score({"image": guess}, {"image": truth["image"][i]})
            found[name].append(np.mean(score["psnr"]))
    return {
        name: {"psnr_mean": float(np.mean(values)), "psnr_std": float(np.std(values))}
        for name, values in found.items()
    }
