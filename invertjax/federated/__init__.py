"""Federated learning as pure functions: clients make updates, a server takes a step.

    cast = [(federated.honest(clients.local_sgd(loss_fn, optax.sgd(0.1), steps=5)), 10)]
    fedavg = federated.make(cast, defense=defense)
    state = fedavg.init(init_key, params, population=100)
    plan = federated.plan(range(50), partition, count=10, steps=5, batch_size=8, seed=0)
    state, log = federated.scan(run_key, fedavg, state, dataset, plan)

Who holds which examples (`iid`, `by_class`, `dirichlet`) and who takes part when
(`plan`) is decided on the host, with NumPy; the rounds themselves are JAX.
"""

from invertjax.federated.aggregation import mean as mean
from invertjax.federated.as_one_client import averaged as averaged
from invertjax.federated.base import Aggregator as Aggregator
from invertjax.federated.base import Behaviour as Behaviour
from invertjax.federated.base import Detector as Detector
from invertjax.federated.base import Seen as Seen
from invertjax.federated.base import View as View
from invertjax.federated.behaviours import honest as honest
from invertjax.federated.partitions import by_class as by_class
from invertjax.federated.partitions import dirichlet as dirichlet
from invertjax.federated.partitions import iid as iid
from invertjax.federated.rounds import Log as Log
from invertjax.federated.rounds import Round as Round
from invertjax.federated.rounds import State as State
from invertjax.federated.rounds import make as make
from invertjax.federated.rounds import scan as scan
from invertjax.federated.sampling import Plan as Plan
from invertjax.federated.sampling import clients_of as clients_of
from invertjax.federated.sampling import plan as plan
from invertjax.federated.sampling import rows_of as rows_of
from invertjax.federated.secure_aggregation import secure_mean as secure_mean
