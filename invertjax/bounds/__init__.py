"""What an update can say of its batch at all, and how exactly."""

from invertjax.bounds.identifiability import Identified as Identified
from invertjax.bounds.identifiability import Spectrum as Spectrum
from invertjax.bounds.identifiability import identified as identified
from invertjax.bounds.identifiability import jacobian as jacobian
from invertjax.bounds.identifiability import refuses as refuses
from invertjax.bounds.identifiability import spectrum as spectrum
