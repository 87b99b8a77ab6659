"""What the attacker draws where he has no public images."""

import jax
import pytest
from support import toy

from invertjax.auditing import Target, observed
from invertjax.auditing.situations import Local
from invertjax.defenses.protection import Parts


@pytest.mark.parametrize("size", (1, 3, 2 * observed.PROBES))
def test_as_many_noise_images_as_probes_at_most(size):
    target = Target(toy.loss_fn, (size, 4, 4, 1), Parts(5))
    images = observed.noise_probes(jax.random.key(0), target)["image"]
    count = max(1, observed.PROBES // size)
    assert images.shape == (count, size, 4, 4, 1)
    assert size > observed.PROBES or images.size // 16 <= observed.PROBES


@pytest.mark.parametrize(
    "shape, local, brief",
    [
        ((16, 32, 32, 3), None, True),
        ((17, 32, 32, 3), None, False),
        ((1, 4, 4, 1), Local(steps=2, batch_size=1), False),
    ],
)
def test_only_small_clients_without_training_are_compiled_briefly(shape, local, brief):
    target = Target(toy.loss_fn, shape, Parts(5), local=local)
    assert observed._is_brief(target) is brief
