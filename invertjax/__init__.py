"""invertjax: a JAX-accelerated gradient inversion engine.

A client is a function from a batch to an update. A defense changes the update.
An attack runs the client backwards.
"""

from invertjax import adapters as adapters
from invertjax import attacks as attacks
from invertjax import auditing as auditing
from invertjax import base as base
from invertjax import bounds as bounds
from invertjax import candidates as candidates
from invertjax import clients as clients
from invertjax import defenses as defenses
from invertjax import demixing as demixing
from invertjax import distances as distances
from invertjax import driver as driver
from invertjax import exact as exact
from invertjax import federated as federated
from invertjax import keys as keys
from invertjax import labels as labels
from invertjax import layers as layers
from invertjax import losses as losses
from invertjax import matching as matching
from invertjax import metrics as metrics
from invertjax import priors as priors
from invertjax import rewrites as rewrites
from invertjax import solvers as solvers
from invertjax import sweep as sweep
from invertjax import trees as trees
from invertjax.auditing import Report as Report
from invertjax.auditing import audit as audit
from invertjax.base import Result as Result
from invertjax.driver import invert as invert
from invertjax.driver import stopping as stopping
from invertjax.rewrites import convolutions as convolutions
from invertjax.rewrites import smoothing as smoothing

__version__ = "0.1.0"
