"""Rewrites of a traced function: the same numbers faster, a smoother network, finite
derivatives, or a loss in blocks."""

from invertjax.rewrites import blocks as blocks
from invertjax.rewrites import convolutions as convolutions
from invertjax.rewrites import slopes as slopes
from invertjax.rewrites import smoothing as smoothing
