"""Defenses: what a client does to its update before it shares it.

A defense is `key -> optax.GradientTransformation`. Chain those below, or any of
optax's, in a function of the key:

    def defense(key):
        return optax.chain(defenses.clip(1.0), defenses.gaussian_noise(key, 1e-2))

    client = defenses.defend(clients.gradient(loss_fn), defense)

Every strength may be a traced array, so that a sweep over strengths is one `vmap`.
"""

from invertjax.defenses import accounting as accounting
from invertjax.defenses import protection as protection
from invertjax.defenses import protections as protections
from invertjax.defenses.ats import ats as ats
from invertjax.defenses.censor import censor as censor
from invertjax.defenses.clipping import clip as clip
from invertjax.defenses.clipping import clip_layers as clip_layers
from invertjax.defenses.defended import Defense as Defense
from invertjax.defenses.defended import defend as defend
from invertjax.defenses.dp_sgd import dp_sgd as dp_sgd
from invertjax.defenses.drawing import NoiseState as NoiseState
from invertjax.defenses.dropout import Dropout as Dropout
from invertjax.defenses.dropout import dropout as dropout
from invertjax.defenses.dropping import drop as drop
from invertjax.defenses.feedback import FeedbackState as FeedbackState
from invertjax.defenses.feedback import error_feedback as error_feedback
from invertjax.defenses.instahide import instahide as instahide
from invertjax.defenses.mixup import mixup as mixup
from invertjax.defenses.noise import gaussian_noise as gaussian_noise
from invertjax.defenses.noise import laplace_noise as laplace_noise
from invertjax.defenses.orthogonal import orthogonal_noise as orthogonal_noise
from invertjax.defenses.outpost import OutpostState as OutpostState
from invertjax.defenses.outpost import outpost as outpost
from invertjax.defenses.precode import Bottleneck as Bottleneck
from invertjax.defenses.precode import precode as precode
from invertjax.defenses.protection import Protection as Protection
from invertjax.defenses.pruning import prune as prune
from invertjax.defenses.quantisation import quantise as quantise
from invertjax.defenses.quantisation import stochastic_quantise as stochastic_quantise
from invertjax.defenses.signs import sign as sign
from invertjax.defenses.soteria import soteria as soteria
from invertjax.defenses.sparsification import sparsify as sparsify
from invertjax.defenses.transformed import transformed as transformed
