"""The LeNet of Zhu et al. (2019), "Deep Leakage from Gradients", section 4.

Three 5x5 convolutions of `width` (12) channels, strides 2, 2 and 1, padding 2, with
sigmoids, and one dense layer (768 inputs for 32x32 images). Weights and biases start
uniform in (-0.5, 0.5).

Deviation: the original sees images in [0, 1] unnormalised; for that, build it with a
`mean` of zeros and a `std` of ones.
"""

from models.chain import Chain, Step
from models.spec import Architecture, Defaults, Spec


def _make(spec: Spec, rngs) -> Chain:
    steps = [Step(spec.width, kernel=5, stride=stride) for stride in (2, 2, 1)]
    return Chain(spec, rngs, steps=steps)


LENET = Architecture(_make, Defaults("sigmoid", "none", "wide", width=12))
