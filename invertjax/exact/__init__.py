"""Attacks that prove what they find: equations, certificates, and what they need."""

from invertjax.exact.dense_relu import DenseRelu as DenseRelu
from invertjax.exact.dense_relu import layers as layers
from invertjax.exact.dense_relu import lowest as lowest
from invertjax.exact.peel import Peeled as Peeled
from invertjax.exact.peel import peel as peel
