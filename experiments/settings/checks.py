"""Settings that cannot be: unknown names, values out of range, flags of no effect.

Every error is a one-line `ValueError` that names the flag, its value and what is right.
"""

import models
from experiments.settings import defense_flags
from invertjax.cli.near import near

ATTACKS = (
    "auto",
    "inverting_gradients",
    "posterior",
    "gauss_newton",
    "deep_leakage",
    "idlg",
    "analytic",
    "recursive",
)
CLOSED_FORMS = ("analytic", "recursive")  # finished once they have started
WARM_STARTS = ("recursive", "inverting_gradients")
LABELS = ("known", "inferred", "joint")
NETWORKS = ("per_target", "shared")
NORM_MODES = ("train", "eval")
STOPS = ("never", "halving", "plateau")
MATCHES_COSINE = ("auto", "inverting_gradients")  # have a learning rate and a prior

_COSINE = "--attack=inverting_gradients"
_SIGNED = f"{_COSINE} or posterior"
_PRIOR = f"{_COSINE} or gauss_newton"
_ITERATIVE = "an iterative attack"
_UNTRAINED = "an untrained network: a trained one serves all targets"
_DATA = "data, and --update comes without"


def choices(config) -> None:
    """Refuses unknown names, and names the nearest known one."""
    allowed = {
        "attack": ATTACKS,
        "model": models.NAMES,
        "activation": models.ACTIVATIONS,
        "norm": models.NORMS,
        "init": models.INITS,
        "norm_mode": NORM_MODES,
        "labels": LABELS,
        "warm_start": WARM_STARTS,
        "networks": NETWORKS,
        "stop": STOPS,
    }
    for flag, names in allowed.items():
        value = getattr(config, flag)
        if value is not None and value not in names:
            raise ValueError(
                f"--{flag}={value} is unknown: expected one of {', '.join(names)}"
                f"{near(str(value), names)}"
            )
    for text in config.defense:
        defense_flags.parse(text)


def ranges(config) -> None:
    """Refuses numbers out of range."""
    positive = "batch_size", "targets", "restarts", "steps", "local_batch", "width"
    for flag in (*positive, "num_classes"):
        _at_least(config, flag, 1)
    for flag in ("train_steps", "local_steps", "seed", "total_variation"):
        _at_least(config, flag, 0)
    _at_least(config, "image_size", 8)
    for flag in ("attack_lr", "local_lr", "train_lr"):
        value = getattr(config, flag)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"--{flag}={value}: expected a positive number.")


def _at_least(config, flag, least):
    value = getattr(config, flag)
    if value is not None and not least <= value < float("inf"):
        raise ValueError(f"--{flag}={value}: expected {least} or more.")


def applies(config, model: str | None) -> None:
    """Refuses flags that would silently do nothing, whatever value they are given.

    Args:
      config: as the user has given it, None for what was not.
      model: the one that will be used, None with --loss.
    """
    given = config.update is not None
    iterative = config.attack not in CLOSED_FORMS
    cosine = config.attack in MATCHES_COSINE
    local = (config.local_steps or 0) > 0
    # (flags, whether they apply, what they need)
    rules = [
        (("restarts", "steps", "stop", "warm_start"), iterative, _ITERATIVE),
        (("attack_lr",), cosine or config.attack == "posterior", _SIGNED),
        (("total_variation",), cosine or config.attack == "gauss_newton", _PRIOR),
        (
            ("local_batch", "local_lr", "local_shuffle", "local_known"),
            local,
            "--local_steps",
        ),
        (("train_lr",), (config.train_steps or 0) > 0, "--train_steps"),
        (("defense_known",), bool(config.defense), "--defense"),
        (("params", "loss", "image_shape", "num_classes"), given, "--update"),
        (_OF_DATA, not given, _DATA),
        (("checkpoint",), not given, "no --update, which has --params"),
        (_OF_MODELS, not config.loss, "--model, not --loss"),
    ]
    for flags, apply, needs in rules:
        for flag in flags:
            if getattr(config, flag) is not None and not apply:
                raise ValueError(
                    f"--{flag}={_shown(getattr(config, flag))} does not apply here: "
                    f"it needs {needs}."
                )
    _posterior(config)
    _networks(config)
    _norm_mode(config, model)
    _labels(config)
    _recursive(config)
    _local_batch(config)
    if given:
        _update(config)


_OF_DATA = ("dataset", "data_dir", "split", "image_size", "targets", "networks")
_OF_DATA += ("train_steps", "train_split", "norm_mode", "null_control")
_OF_MODELS = ("model", "activation", "norm", "init", "width")


def _shown(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _posterior(config):
    if config.attack != "posterior":
        return
    specs = defense_flags.specs(config.defense)
    known = config.defense_known is not False
    if config.update is None and known and defense_flags.noise_kind(specs):
        return
    wrong = (f"--defense={text}" for text in config.defense)
    wrong = "--nodefense_known" if not known else " ".join(wrong) or "no --defense"
    if config.update is not None:
        wrong = f"--update={config.update}, which comes without public images"
    raise ValueError(
        f"--attack=posterior does not fit {wrong}: expected one --defense whose noise "
        "is known to the attacker, gaussian, laplace or dp_sgd."
    )


def _networks(config):
    trained = config.train_steps or config.checkpoint is not None
    if config.networks == "per_target" and trained:
        raise ValueError(
            f"--networks=per_target does not apply here: it needs {_UNTRAINED}."
        )


def has_batch_norm(config, model: str | None) -> bool:
    """Whether the victim has a batch norm; False where the reader's loss decides."""
    return model is not None and "batch" == (config.norm or models.DEFAULTS[model].norm)


def _norm_mode(config, model):
    if config.norm_mode is not None and not has_batch_norm(config, model):
        raise ValueError(
            f"--norm_mode={config.norm_mode} does not apply here: --model={model} has "
            "no batch norm; expected --norm=batch with it."
        )


def _labels(config):
    if config.attack in ("analytic", "idlg") and (config.batch_size or 1) > 1:
        raise ValueError(
            f"--batch_size={config.batch_size} does not fit --attack={config.attack}: "
            "it reads a single image; expected 1."
        )
    if config.attack == "idlg" and config.labels not in (None, "inferred"):
        raise ValueError(
            f"--labels={config.labels} does not apply to --attack=idlg: expected "
            "inferred."
        )
    if config.attack == "analytic" and config.labels == "joint":
        raise ValueError(
            "--labels=joint does not apply to --attack=analytic: expected known or "
            "inferred."
        )


def recursive(config) -> str | None:
    """The flag that asks for the recursion, None if none does."""
    flags = ("attack", "warm_start")
    found = [flag for flag in flags if getattr(config, flag) == "recursive"]
    return f"--{found[0]}=recursive" if found else None


def _recursive(config):
    flag = recursive(config)
    if flag is None:
        return
    joint = config.labels == "joint"
    joint |= config.labels is None and config.attack == "deep_leakage"
    # (whether it is wrong, what is, what would be right)
    rules = [
        (bool(config.local_steps), f"--local_steps={config.local_steps}", "0"),
        (config.norm_mode == "eval", "--norm_mode=eval", "train"),
        (joint, "--labels=joint", "known or inferred"),
    ]
    for wrong, found, right in rules:
        if wrong:
            raise ValueError(
                f"{found} does not fit {flag}, which solves the gradient of every "
                f"layer in turn: expected {right}."
            )


def _local_batch(config):
    size = config.batch_size or 1
    if config.local_batch is not None and config.local_batch > size:
        raise ValueError(
            f"--local_batch={config.local_batch} is larger than --batch_size={size}: "
            "expected at most that."
        )


def _update(config):
    file = f"--update={config.update}"
    for flag in ("params", "batch_size", "image_shape"):
        if getattr(config, flag) is None:
            raise ValueError(f"{file} needs --{flag} as well.")
    if len(config.image_shape) != 3 or min(config.image_shape) < 1:
        raise ValueError(
            f"--image_shape={_shown(config.image_shape)}: expected H,W,C, e.g. 32,32,3."
        )
    if config.model is None and config.loss is None:
        raise ValueError(f"{file} needs --model=NAME or --loss=module:function.")
    if config.loss is not None and config.num_classes is None:
        raise ValueError(f"{file} needs --num_classes as well, with --loss.")
    if config.labels == "known":
        raise ValueError(
            f"--labels=known does not apply to {file}, which comes without labels: "
            "expected inferred or joint."
        )
    if config.defense and not config.defense_known:
        raise ValueError(
            f"--defense={config.defense[0]} does not apply here: {file} is attacked as "
            "it is; with --defense_known the attacker knows what was done to it."
        )
