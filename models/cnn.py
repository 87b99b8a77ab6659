"""A small network of two convolutions and two dense layers.

The convolutions are 3x3 with `width` and `2 * width` channels (32 and 64), each
followed by 2x2 average pooling; the hidden dense layer has `hidden` (100) units.
"""

from models.chain import Chain, Step
from models.spec import Architecture, Defaults, Spec


def _make(spec: Spec, rngs) -> Chain:
    steps = [Step(spec.width, window=2), Step(2 * spec.width, window=2)]
    return Chain(spec, rngs, steps=steps, hidden=[spec.hidden or 100])


CNN = Architecture(_make, Defaults("relu", "none", "default", width=32, hidden=100))
