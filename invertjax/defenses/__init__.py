"""Defenses: what a client does to its update before it shares it.

A defense is `key -> optax.GradientTransformation`. Chain those below, or any of
optax's, in a function of the key:

    def defense(key):
        return optax.chain(defenses.clip(1.0), defenses.gaussian_noise(key, 1e-2))

    client = defenses.defend(clients.gradient(loss_fn), defense)

Every strength may be a traced array, so that a sweep over strengths is one `vmap`.
"""

from invertjax.defenses.clipping import clip as clip
from invertjax.defenses.defended import Defense as Defense
from invertjax.defenses.defended import defend as defend
from invertjax.defenses.noise import NoiseState as NoiseState
from invertjax.defenses.noise import gaussian_noise as gaussian_noise
from invertjax.defenses.noise import laplace_noise as laplace_noise
from invertjax.defenses.pruning import prune as prune
from invertjax.defenses.quantisation import quantise as quantise
from invertjax.defenses.signs import sign as sign
