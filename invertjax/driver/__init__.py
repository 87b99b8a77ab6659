"""Runs attacks: many targets and restarts, on all devices, in compiled chunks.

The only package of the library that compiles.
"""

from invertjax.driver import layout as layout
from invertjax.driver import quick as quick
from invertjax.driver import stopping as stopping
from invertjax.driver.cache import Cache as Cache
from invertjax.driver.programs import Program as Program
from invertjax.driver.programs import Progress as Progress
from invertjax.driver.programs import Run as Run
from invertjax.driver.programs import build as build
from invertjax.driver.programs import invert as invert
from invertjax.driver.programs import run as run
from invertjax.driver.results import best as best
from invertjax.driver.results import failed as failed
