"""A network of two dense layers, the smallest from which images can be read off."""

from models.chain import Chain
from models.spec import Architecture, Defaults

MLP = Architecture(
    make=lambda spec, rngs: Chain(spec, rngs, hidden=[spec.width]),
    defaults=Defaults(activation="relu", norm="none", init="default", width=128),
)
