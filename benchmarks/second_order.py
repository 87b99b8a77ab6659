"""Where the second-order attack is exact, where it breaks, and what predicts it.

    python -m benchmarks.second_order [--dataset cifar10] [--studies batches ...]

Float64, 16x16 pixels, known labels, one start (grey). Beside the PSNR of every target
stands what the Jacobian of its update at the true batch says (of batches for the first
two): its rank, its condition, and under noise the Cramer-Rao value. Studies: batches (1
to 8 images, layer by layer; up to four of LeNet are finished by all layers at once),
noise, training. Writes STUDY.json and STUDY.png into --out.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.flatten_util import ravel_pytree  # noqa: E402

from benchmarks.worker import ROOT  # noqa: E402
from experiments.audit import run as audit  # noqa: E402
from experiments.audit.prepare import Ready  # noqa: E402
from experiments.settings import settings  # noqa: E402
from invertjax.auditing import Watch, programs, run  # noqa: E402
from invertjax.auditing.preparing import Prepared  # noqa: E402
from invertjax.cli import defense_text  # noqa: E402
from invertjax.driver import Cache  # noqa: E402

SIDE = 16
WIDE = dict(model="cnn", width=32, activation="gelu")
FINISHED = dict(attack="gauss_newton", warm_start="recursive", steps=8)
NETWORKS = {
    "GELU network": WIDE,
    "narrow GELU network": WIDE | dict(width=8),
    "LeNet": dict(model="lenet"),
}
TOLERANCE = 1e-7  # singular values below this share of the largest are rounding


class Point(NamedTuple):
    """One setting. psnr: dB, of every target; rank, condition, crb: means over them,
    of batches over the first two."""

    curve: str
    x: float
    psnr: list[float]
    unknowns: int
    coordinates: int
    rank: float
    condition: float
    crb: float | None
    seconds: float


def batches(base: dict) -> list[Point]:
    points = []
    for name, model in NETWORKS.items():
        for size in (1, 2, 4, 8):
            # LeNet is ill-conditioned; with J^T J of 6,144 unknowns it takes too long.
            finish = model["model"] == "lenet" and size < 8
            attack = FINISHED if finish else dict(attack="recursive")
            flags = base | model | attack | dict(batch_size=size)
            points.append(_measure(name, size, flags, spectra=2))
    return points


def noise(base: dict) -> list[Point]:
    """Noise as a share of the root mean square of the update's coordinates."""
    base = {**base, **WIDE}
    rms = float(np.mean(_ready(base).prepared.situation.trials["rms"]))
    points = []
    for share in (1e-4, 1e-3, 1e-2, 1e-1, 0.3, 1.0):
        law = defense_text.parse(f"gaussian:{share * rms!r}")
        defense = {"defense": (law,), "defense_known": True}
        points.append(_measure("noise", share, {**base, **defense}, share * rms))
    return points


def training(base: dict) -> list[Point]:
    base = {**base, **WIDE, **FINISHED}
    return [
        _measure("training", steps, {**base, "train_steps": steps})
        for steps in (0, 100, 1_000, 10_000)
    ]


STUDIES = {"batches": batches, "noise": noise, "training": training}
AXES = {
    "batches": "images in the batch",
    "noise": "standard deviation of the noise / rms of the update",
    "training": "training steps",
}


def spectrum(prepared: Prepared, index: int) -> tuple[np.ndarray, int]:
    """The singular values of a target's Jacobian at its true batch, largest first, and
    the number of coordinates of its update."""
    stage = prepared.situation
    trial = jax.tree.map(lambda leaf: leaf[index], stage.trials)
    client = programs.share_of(stage, prepared.plan.row, trial)
    truth = jax.tree.map(lambda leaf: jnp.asarray(leaf[index]), stage.truth)
    flat, unravel = ravel_pytree(truth["image"])

    @jax.jit
    def gram(flat):
        def share(flat):
            return client({**truth, "image": unravel(flat)})

        _, push = jax.linearize(share, flat)
        pull = jax.linear_transpose(push, flat)
        unit = jnp.eye(flat.size, dtype=flat.dtype)
        return jax.lax.map(lambda v: pull(push(v))[0], unit, batch_size=64)

    found = np.asarray(gram(flat))
    values = np.linalg.eigvalsh(0.5 * (found + found.T))[::-1]
    coordinates = sum(leaf[0].size for leaf in jax.tree.leaves(stage.trials["update"]))
    return np.sqrt(np.maximum(values, 0)), coordinates


def _measure(
    curve: str, x: float, flags: dict, noise: float = 0.0, spectra: int | None = None
) -> Point:
    """spectra: targets whose Jacobian is decomposed, by default all."""
    ready, psnr = _ready(flags), []
    watch = Watch(update=lambda row, arrays: psnr.append(float(np.mean(row["psnr"]))))
    done = run.attack(ready.keys, ready.prepared, watch=watch, cache=Cache())
    values, coordinates = zip(
        *(spectrum(ready.prepared, i) for i in range(len(psnr))[:spectra]), strict=True
    )
    ranks = [int(np.sum(s > TOLERANCE * s[0])) for s in values]
    with np.errstate(divide="ignore"):
        condition = [
            float(s[0] / s[min(r, len(s)) - 1])
            for s, r in zip(values, ranks, strict=True)
        ]
        errors = [float(np.mean((noise / s) ** 2)) for s in values] if noise else []
    point = Point(
        curve,
        x,
        psnr,
        unknowns=len(values[0]),
        coordinates=coordinates[0],
        rank=float(np.mean(ranks)),
        condition=float(np.exp(np.mean(np.log(condition)))),
        crb=float(np.mean(-10 * np.log10(errors))) if errors else None,
        seconds=done.seconds_run,
    )
    print(_line(point), file=sys.stderr, flush=True)
    return point


def _line(point):
    bound = "" if point.crb is None else f", Cramer-Rao {point.crb:.1f}"
    return (
        f"{point.curve} {point.x:g}: {np.mean(point.psnr):.1f} dB "
        f"({' '.join(f'{value:.1f}' for value in point.psnr)}){bound}; rank "
        f"{point.rank:.0f} of {point.unknowns} unknowns, {point.coordinates} "
        f"coordinates, condition {point.condition:.1e}; {point.seconds:.0f} s"
    )


def _ready(flags: dict[str, Any]) -> Ready:
    return audit.ready(settings.resolve(flags), cache=Cache())


def draw(study: str, points: list[Point], path: pathlib.Path) -> None:
    """PSNR of every target, and below what the Jacobian says."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, sharex=True, figsize=(7, 7))
    above, middle, below = panels
    for number, name in enumerate(dict.fromkeys(point.curve for point in points)):
        mine, color = [p for p in points if p.curve == name], f"C{number}"
        places = [point.x for point in mine]
        means = [np.mean(point.psnr) for point in mine]
        above.plot(places, means, "-", color=color, label=name)
        for point in mine:
            above.plot([point.x] * len(point.psnr), point.psnr, ".", color=color)
        if mine[0].crb is not None:
            bounds = [point.crb for point in mine]
            above.plot(places, bounds, "k--", label="Cramer-Rao")
        middle.plot(places, [p.rank / p.unknowns for p in mine], "-o", color=color)
        below.plot(places, [point.condition for point in mine], "-s", color=color)
    names = ("PSNR (dB)", "rank / unknowns", "condition")
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    above.legend(fontsize="small")
    middle.set_ylim(0, 1.05)
    below.set_yscale("log")
    below.set_xlabel(AXES[study])
    below.set_xscale("symlog" if study == "training" else "log")
    if study == "batches":
        sizes = sorted({point.x for point in points})
        below.set_xticks(sizes, [f"{size:g}" for size in sizes])
        below.minorticks_off()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.second_order")
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--studies", nargs="+", default=[*STUDIES], choices=STUDIES)
    parser.add_argument(
        "--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    base = dict(
        attack="gauss_newton",
        x64=True,
        dataset=given.dataset,
        image_size=SIDE,
        targets=given.targets,
        null_control=False,
    )
    for study in given.studies:
        points = STUDIES[study](base)
        content = json.dumps([point._asdict() for point in points], indent=1)
        (given.out / f"{study}.json").write_text(content, "utf-8")
        draw(study, points, given.out / f"{study}.png")


if __name__ == "__main__":
    main()
