"""What does an update give away? The honest answer, as a library call.

`audit` is the whole; `run` has its parts. A row of `attackers` says all that an audit
needs to know of an attack, a row of `defenses.protections` all of a defense.
"""

from invertjax.auditing import attackers as attackers
from invertjax.auditing import run as run
from invertjax.auditing.attacker import Attacker as Attacker
from invertjax.auditing.audit import audit as audit
from invertjax.auditing.keys import Keys as Keys
from invertjax.auditing.report import Metric as Metric
from invertjax.auditing.report import Report as Report
from invertjax.auditing.situations import Local as Local
from invertjax.auditing.situations import Situation as Situation
from invertjax.auditing.situations import Target as Target
from invertjax.auditing.situations import Threat as Threat
from invertjax.auditing.watch import Watch as Watch
