"""What a client does before it shares an update."""

import dataclasses

from experiments.settings.attack import IMAGE
from invertjax.cli import amounts, defense_text
from invertjax.cli.setting import setting
from invertjax.defenses import Protection


@dataclasses.dataclass(frozen=True)
class Clients:
    """How a client computes what it shares, and how it protects its data."""

    batch_size: int = setting(
        "B, images behind one update. Default: 1.",
        at_least=1,
        at_most=10**6,
        because=amounts.memory(lambda images: IMAGE * images),
    )
    local_steps: int = setting(
        "FedAvg: local SGD steps in all. Step i takes mini-batch i of the batch, in "
        "order and round again; 0 is the gradient itself (FedSGD).",
        default=0,
        at_least=0,
        at_most=10**6,
        because=amounts.seconds(1e-2),
    )
    local_epochs: int | None = setting(
        "FedAvg by epochs, in place of --local_steps: passes over the B images, of "
        "ceil(B / --local_batch) local steps each.",
        later=True,
        at_least=1,
        at_most=10**6,
        because=amounts.seconds(1e-2),
    )
    local_batch: int = setting(
        "Images in a mini-batch. Default: B.", at_least=1, needs="local_steps"
    )
    local_lr: float = setting(
        "Learning rate of local steps.",
        default=0.05,
        above=0,
        needs="local_steps",
        number=True,
    )
    local_shuffle: bool = setting(
        "Draw a new order every epoch, unknown to the attacker.",
        default=False,
        needs="local_steps",
    )
    defense: tuple[Protection, ...] = setting(
        "What the client does to protect its data, as NAME:VALUE. Repeatable, applied "
        "in order. To the update that it shares: "
        f"{defense_text.described('update')}. To how it computes its gradient: "
        f"{defense_text.described('client')}. To the network: "
        f"{defense_text.described('network')}.",
        default=(),
        read=defense_text.parse,
        many=True,
    )
