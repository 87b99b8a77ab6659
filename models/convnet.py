"""The ConvNet of Geiping et al. (2020), "Inverting Gradients".

Eight 3x3 convolutions of 1, 2, 2, 4, 4, 4, 4 and 4 times `width` (64) channels, each
followed by batch norm and relu, 3x3 max pooling without overlap after the sixth and the
last, and one dense layer (2304 inputs for 32x32 images). 2,904,970 parameters.

This is the network that the published code builds, not the one that it lists: of the
nine convolutions listed two share a name, so that one is lost, and all of its names
(ConvNet8, ConvNet16, ConvNet32) get width 64. Here `width` is what it says.

Deviation: weights start as N(0, 1 / fan_in) and biases at zero; theirs start uniform in
+-fan_in^-1/2 (PyTorch's default), both of them.
"""

from models import layers
from models.chain import Chain, Step
from models.spec import Architecture, Defaults, Spec


def _make(spec: Spec, rngs) -> Chain:
    shape = [(1, 1), (2, 1), (2, 1), (4, 1), (4, 1), (4, 3), (4, 1), (4, 3)]
    steps = [Step(times * spec.width, window=window) for times, window in shape]
    return Chain(spec, rngs, steps=steps, reduce=layers.maximum)


CONVNET = Architecture(_make, Defaults("relu", "batch", "default", width=64))
