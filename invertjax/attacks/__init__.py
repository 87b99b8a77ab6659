"""Attacks by their published names; most are recipes over `matching.attack`."""

from invertjax.attacks.analytic import admits as admits
from invertjax.attacks.analytic import analytic as analytic
from invertjax.attacks.analytic import refuses_closed_form as refuses_closed_form
from invertjax.attacks.auto import auto as auto
from invertjax.attacks.deep_leakage import deep_leakage as deep_leakage
from invertjax.attacks.gauss_newton import gauss_newton as gauss_newton
from invertjax.attacks.idlg import idlg as idlg
from invertjax.attacks.inverting_gradients import (
    inverting_gradients as inverting_gradients,
)
from invertjax.attacks.peeling import peeling as peeling
from invertjax.attacks.peeling import refuses_peeling as refuses_peeling
from invertjax.attacks.posterior import fit_smoothness as fit_smoothness
from invertjax.attacks.posterior import posterior as posterior
from invertjax.attacks.posterior import smoothness as smoothness
from invertjax.attacks.recursive import recursive as recursive
