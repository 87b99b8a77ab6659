"""Your own model, of any framework, as the functions that an attack needs.

| framework | adapter | needs |
|---|---|---|
| Flax NNX | `from_nnx(module)` | flax |
| Flax Linen | `from_linen(module, variables)` | flax |
| Equinox | `from_equinox(module, state)` | equinox |
| Haiku | `from_haiku(transformed, params, state)` | dm-haiku |
| PyTorch | `from_torch(module)` | `invertjax[torch]` |

Each gives an `Adapted`, whose `loss` is the client's:

    loss_fn, params = adapters.from_nnx(model).loss(train=True)
    report = invertjax.audit(key, loss_fn, params, update=update, shape=images.shape)

No framework is imported before its adapter is called.
"""

from invertjax.adapters.adapted import Adapted as Adapted
from invertjax.adapters.adapted import Mode as Mode
from invertjax.adapters.adapted import ModelLoss as ModelLoss
from invertjax.adapters.equinox_module import from_equinox as from_equinox
from invertjax.adapters.flax_linen import from_linen as from_linen
from invertjax.adapters.flax_nnx import from_nnx as from_nnx
from invertjax.adapters.haiku_function import from_haiku as from_haiku
from invertjax.adapters.torch_module import from_torch as from_torch
