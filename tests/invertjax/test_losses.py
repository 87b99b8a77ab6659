"""Cross-entropy against NumPy, for both forms of labels."""

import jax.numpy as jnp
import numpy as np
import pytest

from invertjax import losses


def test_cross_entropy_takes_both_forms_of_labels():
    logits = np.random.default_rng(0).normal(size=(5, 3))
    integers = np.array([0, 2, 1, 1, 0])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(5), integers]))
    hard = losses.cross_entropy(logits, integers)
    soft = losses.cross_entropy(logits, np.eye(3)[integers])
    assert hard == pytest.approx(expected, rel=1e-5)
    assert soft == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [jnp.zeros(5), jnp.zeros((5, 4)), jnp.zeros(4, int)])
def test_cross_entropy_refuses_other_labels(bad):
    with pytest.raises(ValueError, match=r"integers \(5,\) or probabilities \(5, 3\)"):
        losses.cross_entropy(jnp.zeros((5, 3)), bad)
