"""Five 3x3 convolutions, strides 1-2-1-2-1, a mean over pixels and a dense layer.

Channels are 1, 2, 2, 4 and 4 times `width` (32).
"""

from models.chain import Chain, Step
from models.spec import Architecture, Defaults, Spec


def _make(spec: Spec, rngs) -> Chain:
    shape = [(1, 1), (2, 2), (2, 1), (4, 2), (4, 1)]
    steps = [Step(times * spec.width, stride=stride) for times, stride in shape]
    return Chain(spec, rngs, steps=steps, flatten=False)


CONVNET5 = Architecture(_make, Defaults("relu", "none", "default", width=32))
