"""Attacks an update that your own code has saved, and reports what it gives away.

    invertjax audit --update=u.npz --params=p.npz --loss=my_module:loss_fn \\
        --image_shape=32,32,3 --batch_size=1 --num_classes=10

Files are .npz or .safetensors, their keys are paths such as layers/0/kernel. The loss
is `(params, batch) -> scalar` in JAX, in a module that can be imported from here; batch
has "image" [B, H, W, C] in [0, 1] and "label" [B].

Writes config.json, metrics.jsonl, summary.json, reconstructions.npz and, with pillow,
grid.png into --workdir. Exit codes: 0 done, 1 no finite result, 2 bad input,
130 interrupted, 143 by SIGTERM.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags

import invertjax
from invertjax.auditing import Local, Watch
from invertjax.auditing.attackers import ATTACKERS
from invertjax.auditing.report import Report
from invertjax.cli import (
    arrays,
    command,
    interrupts,
    own_code,
    progress,
    run_folder,
    setting,
    startup,
)
from invertjax.cli.setting import setting as line

_jax: Any = jax  # its annotations leave out some of what it takes

LABELS = ("inferred", "joint")
_NEEDED = ("update", "params", "loss", "image_shape", "num_classes")


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
    loss: str | None = line("module:function, the client's (params, batch) -> scalar.")
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
    asked: Audit = setting.from_flags(Audit, values)
    given = setting.given(Audit, values)
    for name, rule in setting.rules(Audit).items():
        if name in given:
            setting.check_applies(name, rule, given)
        elif name in _NEEDED:
            raise ValueError(f"--{name} is missing. {rule.says}")
    _jax.config.update("jax_enable_x64", asked.x64)
    loss_fn = own_code.imported("loss", str(asked.loss), "function")
    saved = {name: _floats(asked, name) for name in ("params", "update")}
    settings = {name: setting.plain(rule, getattr(asked, name))
                for name, rule in setting.rules(Audit).items()}  # fmt: skip
    opened = run_folder.open_(asked.workdir, overwrite=asked.overwrite, resume=False)
    with opened as folder:
        report = _report(asked, loss_fn, saved)
        config = {"settings": settings, "version": invertjax.__version__}
        folder.write_json("config.json", config)
        report.save(folder.path)
    print(report)
    print(f"Files: {asked.workdir}")
    if report.summary.get("interrupted"):
        return command.INTERRUPTED
    return command.FAILED if report.summary.get("failed") else 0


def _report(asked: Audit, loss_fn: Any, saved: dict[str, Any]) -> Report:
    """Returns the report, of the structure of params that the loss takes."""
    first: ValueError | None = None
    for params in arrays.forms(saved["params"]):
        try:
            update = arrays.as_tree(saved["update"], params, f"--update={asked.update}")
            return _attacked(asked, loss_fn, params, update)
        except ValueError as error:  # before anything is compiled
            first = first or error
    assert first is not None
    raise first


def _floats(asked: Audit, name: str) -> dict[str, np.ndarray]:
    path = getattr(asked, name)
    named = f"--{name}={path}"
    dtype = "float64" if asked.x64 else "float32"
    return arrays.as_floats(arrays.load(path, named), dtype, named)


def _attacked(asked: Audit, loss_fn: Any, params: Any, update: Any) -> Report:
    local = None
    if asked.local_steps:
        size = asked.local_batch or asked.batch_size
        local = Local(asked.local_steps, size, asked.local_lr)
    labels = np.asarray(asked.known_labels) if asked.known_labels else asked.labels
    with progress.Bar("attacking") as bar:

        def on_chunk(now: Any) -> None:
            bar.reach(now.done, now.total, f"objective {float(np.min(now.losses)):.2e}")

        return invertjax.audit(
            jax.random.key(asked.seed),
            loss_fn,
            params,
            update=update,
            shape=(asked.batch_size, *asked.image_shape),
            num_classes=asked.num_classes,
            attack=asked.attack,
            labels=labels,
            local=local,
            restarts=asked.restarts,
            steps=asked.steps,
            watch=Watch(on_chunk, interrupts.check),
        )
