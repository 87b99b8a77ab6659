"""Labels in closed form, from what the last dense layer of a classifier shares.

With softmax cross-entropy and p the probabilities of the network, the gradient of the
last bias is the mean of p_i - onehot(y_i). So a batch of one shows its label as the
only negative sign, and a batch of b shows how often each label occurs, as far as the
mean of p is known: counts = b (mean p - gradient).

All functions keep the sign of FedAvg updates `params_before - params_after`, which for
SGD is that of a gradient.
"""

from invertjax.labels.counts import counts as counts
from invertjax.labels.counts import from_counts as from_counts
from invertjax.labels.counts import mean_probabilities as mean_probabilities
from invertjax.labels.idlg import idlg as idlg
from invertjax.labels.probing import noise_batches as noise_batches
from invertjax.labels.probing import probe as probe
from invertjax.labels.probing import recover as recover
from invertjax.labels.reading import read as read
