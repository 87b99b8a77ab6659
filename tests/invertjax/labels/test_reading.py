"""One function reads the labels of any batch, by what its size allows."""

import jax
import numpy as np
import pytest
from support import toy

from invertjax import clients, labels

CLIENT = clients.gradient(toy.loss_fn)


def read(size, **options):
    """The labels of a toy batch of that size, and the true ones in order."""
    params, batch = toy.init(0), toy.batch(1, size=size)
    update = CLIENT(params, batch, jax.random.key(0))
    found = labels.read(
        jax.random.key(1),
        CLIENT,
        params,
        update,
        batch_size=size,
        num_classes=toy.CLASSES,
        **options,
    )
    return np.asarray(found), np.sort(batch["label"])


def test_a_single_label_is_exact_and_needs_no_probes():
    found, true = read(1)
    np.testing.assert_array_equal(found, true)


def test_a_batch_probed_with_itself_is_exact():
    """Then the mean probabilities are the true ones, and counts are exact."""
    probes = jax.tree.map(lambda leaf: leaf[None], toy.batch(1, size=5))
    found, true = read(5, probe_batches=probes)
    np.testing.assert_array_equal(found, true)


def test_a_model_without_such_a_layer_is_refused():
    with pytest.raises(ValueError, match="num_classes=3"):
        labels.read(
            jax.random.key(1),
            CLIENT,
            {},
            {"kernel": np.ones((4, 7), np.float32)},
            batch_size=1,
            num_classes=toy.CLASSES,
        )
