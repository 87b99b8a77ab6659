"""The main job in a minute: four photographs, one gradient, several defenses.

    python -m experiments.demo

A client computes the gradient of an untrained network on a batch of four photographs
and shares it, plain or defended. The engine reconstructs the batch from what was
shared. Writes demo.png and demo.json into --workdir, after every setting.
"""

from experiments import starting

if __name__ == "__main__":
    starting.end_at_signals()

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import invertjax
import models
from experiments import data
from experiments.settings.run import MOST_SEED, why_seed
from invertjax import clients, driver, labels, losses, metrics
from invertjax.auditing import Keys, Report, Watch, controls, verdicts
from invertjax.base import Loss, Params
from invertjax.cli import (
    amounts,
    command,
    cost,
    defense_text,
    interrupts,
    run_folder,
    setting,
    startup,
)
from invertjax.cli.progress import Bar
from invertjax.cli.setting import setting as line
from invertjax.reports import pictures, text

# A smooth activation needs less of the prior than the default.
NUMBERS = {"total_variation": 1e-2}


@dataclasses.dataclass(frozen=True)
class Demo:
    """What can be set."""

    workdir: str = line("Folder of the results.", default="runs/demo")
    steps: int = line(
        "Iterations of the attack.",
        default=600,
        at_least=1,
        at_most=10**7,
        because=amounts.seconds(1e-3),
    )
    seed: int = line(
        "Of network and attack.",
        default=0,
        at_least=0,
        at_most=MOST_SEED,
        because=why_seed,
    )


class Setting(NamedTuple):
    """One row of the picture; `known`: the attacker knows of the defense."""

    title: str
    defense: tuple[str, ...] = ()
    known: bool = False


# From no defense to the strongest.
SETTINGS = (
    Setting("no defense"),
    Setting("noise 0.01", ("gaussian:0.01",)),
    Setting("prune 99%", ("prune:0.99",)),
    Setting("prune 99%, known", ("prune:0.99",), known=True),
    Setting("noise 0.1", ("gaussian:0.1",)),
)


class Result(NamedTuple):
    """What came of one setting; labels: the share that the update gives away itself."""

    report: Report
    labels: float


class Victim(NamedTuple):
    """The network, its batch `[1, B, ...]`, and public images."""

    loss_fn: Loss
    params: Params
    batches: dict[str, np.ndarray]
    public: dict[str, np.ndarray]
    num_classes: int


def run(
    victim: Victim,
    steps: int,
    seed: int,
    watch: Watch,
    on_result: Callable[[Setting, Result], None],
) -> None:
    """Audits every setting.

    Args:
      victim: of all of them.
      steps: iterations of the attack.
      seed: of network, noise and attack.
      watch: who follows.
      on_result: told a setting and what came of it, as it is there.

    Raises:
      KeyboardInterrupt: where a signal came; the settings before have been told.
    """
    key, cache = jax.random.key(seed), driver.Cache()
    for known in (False, True):
        some = [setting for setting in SETTINGS if setting.known == known]
        for i, one in enumerate(some):
            keys, probe_key = _keys(key, i, len(some), seed)
            report = invertjax.audit(
                keys,
                victim.loss_fn,
                victim.params,
                batches=victim.batches,
                attack="inverting_gradients",
                protection=[defense_text.parse(name) for name in one.defense],
                protection_known=one.known,
                num_classes=victim.num_classes,
                public=victim.public,
                steps=steps,
                numbers=NUMBERS,
                control=False,
                watch=watch,
                cache=cache,
            )
            interrupts.check()  # figures that were cut short are none
            recall = _label_recall(probe_key, victim, keys, one)
            on_result(one, Result(report, recall))
            interrupts.check()


def _victim(key: jax.Array) -> Victim:
    held, public = _photographs()
    net = models.build(
        "cnn",
        image_shape=held.images.shape[1:],
        num_classes=held.num_classes,
        activation="gelu",
    )
    params, buffers = driver.quick.jit(net.init)(key)
    loss_fn = losses.classification(
        lambda params, images: net.apply(params, buffers, images, True)[0]
    )
    batches = {"image": held.images[None], "label": held.labels[None]}
    known = {"image": public.images, "label": public.labels}
    return Victim(loss_fn, params, batches, known, held.num_classes)


def _say_what_it_costs(victim: Victim, steps: int) -> None:
    """Prints what all settings cost; there are two programs."""
    shape = victim.batches["image"].shape[1:]
    found = cost.of_update(victim.loss_fn, victim.params, shape, len(SETTINGS) * steps)
    cost.say(found and found._replace(compiling=2 * found.compiling))


def _photographs() -> tuple[data.Dataset, data.Dataset]:
    """Returns the batch, and other photographs."""
    return data.load("photos", "test", limit=4), data.load("photos", "train", limit=256)


def _keys(key: jax.Array, i: int, count: int, seed: int) -> tuple[Keys, jax.Array]:
    """Returns the keys of setting i of `count`, and one to probe labels with."""
    noise, attack, probe = jax.random.split(jax.random.fold_in(key, 1), 3)
    trial = jax.random.split(attack, (count, 1))[i : i + 1]
    own = jax.random.fold_in(noise, i)[None]
    unused = jax.random.clone(own)
    keys = Keys(own, unused, trial, jax.random.clone(trial), unused[0], seed)
    return keys, jax.random.fold_in(probe, i)


def _label_recall(key: jax.Array, victim: Victim, keys: Keys, one: Setting) -> float:
    """Returns the share of the labels that the update gives away by itself."""
    batch = {name: leaf[0] for name, leaf in victim.batches.items()}
    client = clients.gradient(victim.loss_fn)
    chain = invertjax.defenses.protection.chained(
        [defense_text.parse(name) for name in one.defense]
    )
    size = len(batch["label"])

    @jax.jit
    def recall(params: Params, own: jax.Array) -> jax.Array:
        update = invertjax.defenses.defend(client, chain)(params, batch, own)
        counts = labels.recover(
            key,
            client,
            params,
            update,
            batch_size=size,
            num_classes=victim.num_classes,
            probe_batches={name: leaf[None] for name, leaf in victim.public.items()},
        )
        guess = labels.from_counts(counts, size)
        return metrics.label_recall(batch["label"], guess, victim.num_classes)

    return float(recall(victim.params, keys.clients[0]))


class _Record:
    """What is there so far: written after every setting, printed at the end."""

    def __init__(self, out: pathlib.Path, held: data.Dataset, null: float):
        self.out, self.held, self.null = out, held, null
        self.results: dict[Setting, Result] = {}

    def add(self, one: Setting, result: Result) -> None:
        self.results[one] = result
        names = list(self.held.class_names[:4])
        rows: list[Any] = [("original", self.held.images, names)]
        content: dict[str, Any] = {}
        for done in filter(self.results.get, SETTINGS):
            found = self.results[done].report
            psnr = found.rows[0]["psnr"]
            captions = [f"{value:.1f} dB" for value in psnr]
            rows.append((done.title, found.arrays[0]["image"], captions))
            content[done.title] = {**done._asdict(), **_scores(self.results[done])}
        content["mean image"] = {"psnr": self.null}
        files = {
            "demo.png": pictures.png(pictures.grid(rows)),
            "demo.json": json.dumps(content, indent=2).encode(),
        }
        run_folder.write_all(self.out, files)

    def text(self) -> str:
        header = ("defense", "PSNR dB", "min", "max", "SSIM", "labels*", "s", "verdict")
        lines = []
        for one in filter(self.results.get, SETTINGS):
            score = _scores(self.results[one])
            psnr = score["psnr"]
            verdict = verdicts.verdict(float(np.mean(psnr)), self.null, "known")
            cells = [f"{x:.1f}" for x in (np.mean(psnr), min(psnr), max(psnr))]
            cells += [f"{np.mean(score['ssim']):.2f}", f"{score['labels']:.0%}"]
            cells += [f"{score['seconds']:.0f}", verdict.split(":")[0]]
            lines.append((one.title, *cells))
        lines.append(("(mean of other images)", f"{self.null:.1f}", *[""] * 6))
        return text.table(lines, header)


def _scores(result: Result) -> dict[str, Any]:
    kept = {name: result.report.rows[0][name] for name in ("mse", "psnr", "ssim")}
    seconds = result.report.facts["seconds_run"]
    return {**kept, "labels": result.labels, "seconds": seconds}


GIVEN = """The attacker was given one client's update, the model (untrained), the labels
and the batch size; not the images, and of the defense only where it says known. What
is not reconstructed here may still fall to a stronger attack.
* share of the labels that the update gives away by itself, with public images."""


def main(argv: list[str]) -> int:
    startup.quiet_and_cached()
    return command.run(argv, __doc__ or "", (Demo,), _run)


def _run(values: flags.FlagValues) -> int:
    asked = setting.from_flags(Demo, values)
    out = pathlib.Path(asked.workdir)
    run_folder.check_writable(out, f"--workdir={out}")
    held, public = _photographs()
    guesses = controls.guesses({"image": held.images[None]}, public.images, asked.seed)
    record = _Record(out, held, guesses["mean_image"]["psnr_mean"])
    victim = _victim(jax.random.key(asked.seed))
    _say_what_it_costs(victim, asked.steps)
    with Bar("inverting", total=len(SETTINGS) * asked.steps) as bar:

        def on_chunk(now: driver.Progress) -> None:
            bar.reach(len(record.results) * asked.steps + now.done)

        watch = Watch(on_chunk, interrupts.check, doing=bar.doing)
        run(victim, asked.steps, asked.seed, watch, record.add)
    print(record.text())
    print(GIVEN)
    print(f"Picture: {out / 'demo.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
