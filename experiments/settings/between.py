"""What forbids a setting because of another topic.

Every error is a one-line `ValueError` that names the flag, its value and what is right.
"""

from collections.abc import Mapping
from typing import Any

from experiments.settings.attack import NUMBERS, Attack
from experiments.settings.clients import Clients
from experiments.settings.data import Data
from experiments.settings.run import Run
from experiments.settings.saved_update import SavedUpdate
from experiments.settings.victim import OURS, Victim, has_batch_norm, is_own
from invertjax.auditing.attacker import Attacker
from invertjax.auditing.attackers import ATTACKERS, with_number
from invertjax.cli import setting
from invertjax.defenses import protection
from invertjax.defenses.protections import PROTECTIONS

_ITERATIVE = ("restarts", "steps", "stop", "warm_start")
_UNTRAINED = "an untrained network: a trained one serves all targets"

Given = Mapping[str, Any]


def check(given: Given, row: Attacker) -> None:
    """Refuses settings that do not go together, and those that would do nothing.

    Args:
      given: settings by name, each of which is right by itself.
      row: of the attack.

    Raises:
      ValueError: naming the first that is wrong.
    """
    for topic in (Attack, Clients, Victim, SavedUpdate, Data, Run):
        for name, rule in setting.rules(topic).items():
            if name in given:
                setting.check_applies(name, rule, given, _lacks(name, row, given))
    _loss(given)
    _noise(given, row)
    _networks(given)
    _norm_mode(given, row)
    _labels(given, row)
    _one_gradient(given, row)
    _local_batch(given)
    if given.get("update") is not None:
        _update(given)


def _lacks(name: str, row: Attacker, given: Given) -> str | None:
    """Returns what a setting needs and this attack, or this model, has not; None where
    it has all."""
    if name in OURS and is_own(given.get("model")):
        return f"a model of invertjax, and --model={given['model']} is your own"
    if name in OURS and is_whole(given):
        return "--model, not --loss alone"
    if name in _ITERATIVE and row.closed_form:
        return "an iterative attack"
    if name in NUMBERS and NUMBERS[name] not in row.numbers:
        return f"--attack={' or '.join(with_number(NUMBERS[name]))}"
    return None


def is_whole(given: Given) -> bool:
    """Returns whether a loss of the reader's own takes the place of a model."""
    return given.get("loss") is not None and given.get("model") is None


def _loss(given: Given) -> None:
    if is_whole(given) and given.get("update") is None:
        raise ValueError(
            f"--loss={given['loss']} needs --model as well, where it is (logits, "
            "labels) -> scalar, or --update, where it is (params, batch) -> scalar."
        )


def _noise(given: Given, row: Attacker) -> None:
    if not row.noise:
        return
    defenses, update = given.get("defense", ()), given.get("update")
    known = given.get("defense_known", True)
    if update is None and known and protection.noise(defenses):
        return
    wrong = " ".join(f"--defense={one}" for one in defenses) or "no --defense"
    if not known:
        wrong = "--nodefense_known"
    if update is not None:
        wrong = f"--update={update}, which comes without public images"
    *some, last = [p.protection.name for p in PROTECTIONS.values() if p.protection.law]
    raise ValueError(
        f"--attack={row.name} does not fit {wrong}: expected one --defense whose noise "
        f"is known to the attacker, {', '.join(some)} or {last}."
    )


def _networks(given: Given) -> None:
    trained = given.get("train_steps") or given.get("checkpoint") is not None
    if given.get("networks") == "per_target" and trained:
        raise ValueError(
            f"--networks=per_target does not apply here: it needs {_UNTRAINED}."
        )


def _norm_mode(given: Given, row: Attacker) -> None:
    if "norm_mode" not in given or is_own(given.get("model")):
        return
    if given.get("update") is not None:
        raise ValueError(
            f"--norm_mode={given['norm_mode']} does not apply here: it needs data, and "
            "--update comes without, or a --model of your own."
        )
    model = given.get("model", row.network)
    if not has_batch_norm(model, given.get("norm")):
        raise ValueError(
            f"--norm_mode={given['norm_mode']} does not apply here: --model={model} "
            "has no batch norm; expected --norm=batch with it."
        )


def _labels(given: Given, row: Attacker) -> None:
    size, labels = given.get("batch_size", 1), given.get("labels")
    if row.images is not None and size > row.images:
        raise ValueError(
            f"--batch_size={size} does not fit --attack={row.name}: it reads a single "
            f"image; expected {row.images}."
        )
    if labels == "inferred":
        _ordered(given)
    if labels is not None and labels not in row.labels and not row.one_gradient:
        raise ValueError(
            f"--labels={labels} does not apply to --attack={row.name}: expected "
            f"{' or '.join(row.labels)}."
        )


def _ordered(given: Given) -> None:
    """Refuses labels without an order where the attacker simulates one."""
    size, local = given.get("batch_size", 1), given.get("local_batch")
    simulated = given.get("local_steps") and given.get("local_known") is not False
    if simulated and local is not None and local < size:
        raise ValueError(
            f"--local_batch={local} does not go with --labels=inferred: counts do not "
            f"say which mini-batch has which label; expected --local_batch={size}, "
            "--nolocal_known, or other labels."
        )
    told = [one for one in given.get("defense", ()) if one.told]
    if told and given.get("defense_known") and size > 1:
        raise ValueError(
            f"--defense_known does not go with --defense={told[0]} and "
            "--labels=inferred: counts do not say on which image it did what the "
            "attacker is told; expected other labels."
        )


def layer_by_layer(given: Given, row: Attacker) -> str | None:
    """Returns the flag that asks for one gradient, block by block, or None."""
    if row.one_gradient:
        return f"--attack={row.name}"
    warm = given.get("warm_start")
    if warm is not None and ATTACKERS[warm].one_gradient:
        return f"--warm_start={warm}"
    return None


def _one_gradient(given: Given, row: Attacker) -> None:
    flag = layer_by_layer(given, row)
    if flag is None:
        return
    steps = given.get("local_steps")
    needing = row if row.one_gradient else ATTACKERS[given["warm_start"]]
    joint = given.get("labels", row.labels[0]) == "joint"
    joint = joint and "joint" not in needing.labels
    # (whether it is wrong, what is, what would be right)
    rules = [
        (bool(steps), f"--local_steps={steps}", "0"),
        (given.get("norm_mode") == "eval", "--norm_mode=eval", "train"),
        (joint, "--labels=joint", "known or inferred"),
    ]
    for wrong, found, right in rules:
        if wrong:
            raise ValueError(
                f"{found} does not fit {flag}, which solves the gradient of every "
                f"layer in turn: expected {right}."
            )


def _local_batch(given: Given) -> None:
    size, local = given.get("batch_size", 1), given.get("local_batch")
    if local is not None and local > size:
        raise ValueError(
            f"--local_batch={local} is larger than --batch_size={size}: expected at "
            "most that."
        )


def _update(given: Given) -> None:
    file = f"--update={given['update']}"
    for flag in ("params", "batch_size", "image_shape"):
        if flag not in given:
            raise ValueError(f"{file} needs --{flag} as well.")
    shape = given["image_shape"]
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"--image_shape={','.join(map(str, shape))}: expected H,W,C, e.g. 32,32,3."
        )
    if "model" not in given and "loss" not in given:
        raise ValueError(f"{file} needs --model=NAME or --loss=module:function.")
    if is_whole(given) and "num_classes" not in given:
        raise ValueError(f"{file} needs --num_classes as well, with --loss.")
    if given.get("labels") == "known":
        raise ValueError(
            f"--labels=known does not apply to {file}, which comes without labels: "
            "expected inferred or joint."
        )
    if given.get("defense") and not given.get("defense_known"):
        raise ValueError(
            f"--defense={given['defense'][0]} does not apply here: {file} is attacked "
            "as it is; with --defense_known the attacker knows what was done to it."
        )
