"""Mixtures of images with the signs of their pixels flipped."""

import jax

from invertjax import clients
from invertjax.base import Batch, Client, Key
from invertjax.defenses.mixup import mixup
from invertjax.defenses.transformed import transformed


def instahide(
    client: Client,
    num_classes: int,
    *,
    count: int = 4,
    concentration: jax.typing.ArrayLike = 1.0,
    largest: jax.typing.ArrayLike = 0.65,
) -> Client:
    """Makes a client that trains on mixtures whose pixels are flipped at random.

    x' = 1/2 + s (M x - 1/2) with M as in `mixup`, and s of -1 or 1, drawn for every
    image, pixel and channel. Huang et al. (2020), "InstaHide: Instance-hiding Schemes
    for Private Distributed Learning", within one data set, here within one batch.

    Deviations: the flip is about mid-grey, theirs about the mean of normalised images;
    their weights are normalised absolute values of Gaussians, here Dirichlet.

    No guarantee. Carlini et al. (2021), "Is Private Learning Possible with Instance
    Encoding?", recover images from many encodings; see `demixing.demix_absolute`.

    M is the entry "mixing" of the batch and s the entry "signs", in the images' shape
    (`clients.randomised`).

    Args:
      client, num_classes, count, concentration, largest: see `mixup`. The authors take
        4 or 6 images and at most 0.65 of each.

    Raises:
      ValueError: as `mixup`.
    """

    def draw(key: Key, batch: Batch) -> dict:
        image = batch["image"]
        return {"signs": jax.random.rademacher(key, image.shape, image.dtype)}

    def flip(batch: Batch) -> Batch:
        rest = dict(batch)
        signs = rest.pop("signs")
        return {**rest, "image": 0.5 + signs * (batch["image"] - 0.5)}

    flipped = clients.randomised(transformed(client, flip), draw)
    return mixup(
        flipped,
        num_classes,
        count=count,
        concentration=concentration,
        largest=largest,
    )
