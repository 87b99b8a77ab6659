"""Solvers of least-squares problems, as optax optimisers and plain functions."""

from invertjax.solvers import conjugate_gradients as conjugate_gradients
from invertjax.solvers import robust as robust
from invertjax.solvers.levenberg_marquardt import (
    levenberg_marquardt as levenberg_marquardt,
)
