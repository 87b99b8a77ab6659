"""Attacks an update that your own code has saved, and reports what it gives away.

    invertjax audit --update=u.npz --params=p.npz --loss=my_module:loss_fn \\
        --image_shape=32,32,3 --batch_size=1 --num_classes=10

Files are .npz or .safetensors, their keys are paths such as layers/0/kernel. The loss
is `(params, batch) -> scalar` in JAX, in a module that can be imported from here; batch
has "image" [B, H, W, C] in [0, 1] and "label" [B]. In its place, --model names a module
class of Flax, Equinox or PyTorch, or what `invertjax.adapters` make of a module.

Writes config.json, metrics.jsonl, summary.json, reconstructions.npz and, with pillow,
grid.png into --workdir. Exit codes: 0 done, 1 no finite result, 2 bad input,
130 interrupted, 143 by SIGTERM.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

import invertjax
from invertjax import losses
from invertjax.adapters import Adapted
from invertjax.auditing import Local, Watch
from invertjax.auditing.attackers import ATTACKERS
from invertjax.auditing.report import Report
from invertjax.cli import (
    arrays,
    command,
    cost,
    interrupts,
    local_epochs,
    own_code,
    own_model,
    progress,
    run_folder,
    setting,
    startup,
)
from invertjax.cli.setting import setting as line

_jax: Any = jax  # its annotations leave out some of what it takes

Files = dict[str, dict[str, np.ndarray]]  # arrays by flag and path

LABELS = ("inferred", "joint")
NORM_MODES = ("train", "eval")
_NEEDED = ("update", "params", "image_shape", "num_classes")


def _whole(name: str) -> Callable[[str], tuple[int, ...]]:
    def read(text: str) -> tuple[int, ...]:
        try:
            return tuple(int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(
                f"--{name}={text}: expected whole numbers with commas between them."
            ) from None

    return read


@dataclasses.dataclass(frozen=True)
class Audit:
    """What is attacked, and how."""

    update: str | None = line(
        "File of the update: a gradient, or params before minus after training."
    )
    params: str | None = line("File of the params at which it was computed.")
    loss: str | None = line(
        "module:function, the client's (params, batch) -> scalar; beside --model its "
        "(outputs, labels) -> scalar, cross-entropy where it is not given."
    )
    model: str | None = line(
        "module:name of a module class of any framework, or of a function that "
        f"returns {own_model.RETURNED}. Of image_shape, num_classes, rngs and key it "
        "is given what its signature names."
    )
    norm_mode: str | None = line(
        f"Statistics of its batch norms when the client trained, one of "
        f"{', '.join(NORM_MODES)}.",
        one_of=NORM_MODES,
        needs="model",
    )
    image_shape: tuple[int, ...] = line(
        "H,W,C of its images.", read=_whole("image_shape"), listed=True
    )
    batch_size: int = line("Images behind the update.", default=1, at_least=1)
    num_classes: int | None = line("Number of classes.", at_least=1)
    attack: str = line(
        f"One of {', '.join(ATTACKERS)}.", default="auto", one_of=tuple(ATTACKERS)
    )
    labels: str = line(
        f"How the attacker has the labels, {' or '.join(LABELS)}. Default: as --attack "
        "has it.",
        one_of=LABELS,
    )
    known_labels: tuple[int, ...] = line(
        "The labels, where they are known: one for each image, with commas.",
        read=_whole("known_labels"),
        listed=True,
    )
    local_steps: int = line(
        "Local steps behind the update. Default: 0, it is a gradient.",
        default=0,
        at_least=0,
    )
    local_epochs: int | None = line(
        "Local epochs behind it, in place of --local_steps.", at_least=1
    )
    local_batch: int | None = line(
        "Images of a local step. Default: all.", at_least=1, needs="local_steps"
    )
    local_lr: float = line(
        "Learning rate of local steps.", default=0.05, above=0, needs="local_steps"
    )
    restarts: int = line("Random starts.", default=1, at_least=1)
    steps: int | None = line("Iterations. Default: as --attack has it.", at_least=1)
    x64: bool = line("Compute in float64.", default=False)
    seed: int = line("Of the attack.", default=0, at_least=0, at_most=2**32 - 1)
    workdir: str = line("Folder of the results.", default="invertjax-audit")
    overwrite: bool = line("Replace what --workdir holds.", default=False)


def main(argv: list[str]) -> int:
    """Runs the command, and returns its exit code."""
    startup.quiet_and_cached()
    return command.run(argv, __doc__ or "", (Audit,), _run)


def flag_names() -> list[str]:
    """Returns the names of its flags, without dashes."""
    return [*setting.rules(Audit), "help", "flagfile"]


def _run(values: flags.FlagValues) -> int:
    given = setting.given(Audit, values)
    for name, value in given.items():
        setting.check(name, setting.rules(Audit)[name], value)
    given = local_epochs.with_local_steps(given)
    asked: Audit = setting.complete(Audit, given, {})
    for name, rule in setting.rules(Audit).items():
        if name in given:
            setting.check_applies(name, rule, given)
        elif name in _NEEDED:
            raise ValueError(f"--{name} is missing. {rule.says}")
    _jax.config.update("jax_enable_x64", asked.x64)
    if asked.loss is None and asked.model is None:
        raise ValueError(f"--loss is missing. {setting.rules(Audit)['loss'].says}")
    loss = asked.loss and own_code.imported("loss", asked.loss, "function")
    adapted = None if asked.model is None else _adapted(asked)
    saved, adapted = _read(asked, adapted)
    settings = {
        name: setting.plain(rule, getattr(asked, name))
        for name, rule in setting.rules(Audit).items()
    }
    run_folder.check(asked.workdir, settings, overwrite=asked.overwrite, resume=None)
    report = _report(asked, loss, adapted, saved)
    draws = importlib.util.find_spec("PIL") is not None
    # Only now: what an earlier run left stays where this one is refused.
    opened = run_folder.open_(asked.workdir, overwrite=asked.overwrite, resume=None)
    with opened as folder:
        config = {"settings": settings, "version": invertjax.__version__}
        folder.write_json("config.json", config)
        report.save(folder.path, picture=draws)
    print(report)
    if not draws:
        print('No grid.png: pip install "invertjax[report]" brings what draws it.')
    print(f"Files: {asked.workdir}")
    if report.summary.get("interrupted"):
        return command.INTERRUPTED
    return command.FAILED if report.summary.get("failed") else 0


def _adapted(asked: Audit) -> Adapted:
    """Returns the model that `--model` names."""
    text = str(asked.model)
    found = own_model.adapted(text, asked.image_shape, int(asked.num_classes or 0))
    if found.batch_norm and asked.norm_mode is None:
        raise ValueError(
            f"--model={text} has batch norms: expected --norm_mode=train, if the "
            "client trained on the statistics of its batch, or eval, if on running "
            "ones."
        )
    return found


def _read(asked: Audit, adapted: Adapted | None) -> tuple[Files, Adapted | None]:
    """Returns the arrays of both files, and the model with the buffers that are beside
    its params, if there are any."""
    saved: Files = {}
    for name in ("update", "params"):  # the latter's buffers count
        path = getattr(asked, name)
        named = f"--{name}={path}"
        held = arrays.load(path, named)
        if adapted is not None:
            held, buffers = own_model.apart(held, adapted.buffers, named)
            adapted = adapted._replace(buffers=buffers)
        dtype = "float64" if asked.x64 else "float32"
        saved[name] = arrays.as_floats(held, dtype, named)
    return saved, adapted


def _report(asked: Audit, loss: Any, adapted: Adapted | None, saved: Files) -> Report:
    """Returns the report, of the structure of params that the loss takes."""
    if adapted is not None:
        train = None if asked.norm_mode is None else asked.norm_mode == "train"
        loss, like = adapted.loss(loss or losses.cross_entropy, train=train)
        params = arrays.as_tree(saved["params"], like, f"--params={asked.params}")
        return _attacked(asked, loss, params, saved)
    first: ValueError | None = None
    for params in arrays.forms(saved["params"]):
        try:
            return _attacked(asked, loss, params, saved)
        except ValueError as error:  # before anything is compiled
            first = first or error
    assert first is not None
    raise first


def _attacked(asked: Audit, loss_fn: Any, params: Any, saved: Files) -> Report:
    update = arrays.as_tree(saved["update"], params, f"--update={asked.update}")
    local = None
    if asked.local_steps:
        size = asked.local_batch or asked.batch_size
        local = Local(asked.local_steps, size, asked.local_lr)
    labels = np.asarray(asked.known_labels) if asked.known_labels else asked.labels
    row = ATTACKERS[asked.attack]
    steps = cost.iterations(row, asked.steps, asked.restarts)
    shape = (asked.batch_size, *asked.image_shape)
    cost.say(cost.of_update(loss_fn, params, shape, steps, local), row)
    with progress.Bar("attacking") as bar:

        def on_chunk(now: Any) -> None:
            bar.reach(now.done, now.total, f"objective {float(np.min(now.losses)):.2e}")

        return invertjax.audit(
            jax.random.key(asked.seed),
            loss_fn,
            params,
            update=update,
            shape=shape,
            num_classes=asked.num_classes,
            attack=asked.attack,
            labels=labels,
            local=local,
            restarts=asked.restarts,
            steps=asked.steps,
            watch=Watch(on_chunk, interrupts.check, doing=bar.doing),
        )
