"""What an attacker would take for what it is not is refused, in a line."""

import jax
import jax.numpy as jnp
import pytest

import invertjax
from invertjax.auditing import Local, Target, Threat, checks
from invertjax.defenses import protections
from invertjax.defenses.protection import Parts

INFERRED = Threat("inferred", protection_known=True)
MIXUP = (protections.of("mixup", 2),)


def target(**facts) -> Target:
    return Target(lambda params, batch: 0.0, (4, 8, 8, 3), Parts(10), **facts)


@pytest.mark.parametrize(
    "facts, says",
    [
        (dict(local=Local(2, 2)), "local_batch"),
        (dict(members=(1.0, 9.0)), "equal weights"),
        (dict(members=(1.0, 1.0), local=Local(2, 2)), "local_steps"),
        (dict(protections=MIXUP), "mixup"),
    ],
)
def test_counts_have_no_order(facts, says):
    assert says in checks.needs_order(target(**facts), INFERRED)
    for labels in ("known", "joint"):
        assert checks.needs_order(target(**facts), Threat(labels, True)) is None


@pytest.mark.parametrize(
    "facts, threat",
    [
        (dict(local=Local(2, 4)), INFERRED),  # every batch is all of it
        (dict(local=Local(2, 2)), INFERRED._replace(local_known=False)),
        (dict(members=(1.0, 1.0)), INFERRED),  # one gradient on the union
        (dict(protections=MIXUP), INFERRED._replace(protection_known=False)),
        (dict(protections=(protections.of("prune", 0.5),)), INFERRED),
    ],
)
def test_where_no_order_is_needed_counts_do(facts, threat):
    assert checks.needs_order(target(**facts), threat) is None


def test_an_audit_says_so():
    def loss_fn(params, batch):
        flat = batch["image"].reshape(4, -1)
        head = params["head"]
        return jnp.mean(flat @ head["kernel"] + head["bias"][None])

    batches = {"image": jnp.zeros((1, 4, 8, 8, 3)), "label": jnp.zeros((1, 4), int)}
    with pytest.raises(ValueError, match="labels='inferred'.*local_batch.*'joint'"):
        invertjax.audit(
            jax.random.key(0),
            loss_fn,
            {"head": {"kernel": jnp.zeros((192, 10)), "bias": jnp.zeros(10)}},
            batches=batches,
            labels="inferred",
            local=Local(2, 2),
            attack="inverting_gradients",
        )
