"""A reconstruction as a person runs it: progress bars, files, a table, a verdict."""

import dataclasses
import sys

import jax
import numpy as np
from tqdm import tqdm

from experiments.audit import report
from experiments.audit import run as audit
from experiments.reconstruct import keeping
from experiments.settings import config
from invertjax.cli import interrupts, processes, run_folder
from invertjax.cli.ending import ENDING

COLUMNS = ("target", "PSNR dB", "SSIM", "labels", "steps", "stopped")
BLIND = ("target", "objective", "misfit", "steps", "stopped")
INTERRUPTED, FAILED = 130, 1


def reconstruct(
    raw: config.Config,
    workdir: str | None,
    *,
    overwrite: bool,
    resume: bool,
    place: processes.Place = processes.ALONE,
) -> int:
    """One run, from checked settings to files; returns the exit code.

    Raises:
      ValueError: on bad input, before anything is traced or written.
      layout.Lost: if another process of the run has stopped.
    """
    processes.check(place)
    settings = config.resolve(raw)
    jax.config.update("jax_enable_x64", settings.x64)
    processes.join(place)
    processes.check_same(settings.digest)
    name = settings.dataset or "update"
    workdir = workdir or (
        f"runs/{settings.attack}-{settings.model or 'loss'}-"
        f"{name.replace('/', '_').replace(':', '-')}-{settings.digest}"
    )
    kept = dataclasses.asdict(settings)
    bars = audit.Bars(over=_bar) if processes.is_first() else audit.SILENT

    def checked():
        if processes.is_first():
            run_folder.check(workdir, kept, overwrite=overwrite, resume=resume)

    def opened():
        if not processes.is_first():
            return keeping.Elsewhere()
        return keeping.Keeper(run_folder.open_(workdir, resume=resume))

    processes.together(checked)
    sources = processes.together(lambda: audit.read(settings))
    prepared = processes.together(lambda: audit.prepare(settings, sources, bars))
    keeper = processes.together(opened)
    ENDING.where = f": finished targets are in {workdir}, go on with --resume"
    if processes.of_first(keeper.complete()):
        return processes.parting(_say_done(keeper))
    measured, null = _attack(prepared, keeper, bars)
    code = _report(prepared, keeper, measured, null) if processes.is_first() else 0
    return processes.parting(code)


def _say_done(keeper):
    """Of a run that needs no going on with."""
    if not processes.is_first():
        return 0
    summary = keeper.out.json("summary.json")
    print(f"All {summary['targets']} targets are done: {keeper.out.path}")
    return _code(summary)


def _attack(prepared, keeper, bars):
    """What `audit.run` and `audit.nulls` return; finished targets go to the keeper."""
    shown = processes.is_first()
    with interrupts.deferred() as check, _StepBar(shown) as bar:

        def on_steps(progress):
            bar.update(progress)
            keeper.flush_in_time()

        bars = bars._replace(steps=on_steps, check=check)
        first = processes.of_first(len(keeper.rows))
        with keeper:
            keeper.start(prepared.config)
            measured = audit.run(prepared, first=first, bars=bars, on_row=keeper.add)
        null = audit.nulls(prepared, measured, bars)
        if prepared.config.null_control and "shuffled_update" not in null:
            measured["interrupted"] = True
    return measured, null


def _report(prepared, keeper, measured, null):
    """Writes and prints the outcome; returns the exit code."""
    out = keeper.out
    for name in ("seconds_compile", "seconds_run"):
        measured[name] += out.json("summary.json").get(name, 0.0)
    summary = audit.summarise(prepared, keeper.rows, measured, null)
    _picture(keeper.rows, keeper.batches, out)
    out.write_json("summary.json", summary)
    print(_text(keeper.rows, summary))
    print(f"Files: {out.path}")
    return _code(summary, keeper.rows)


def _code(summary, rows=()):
    """The exit code; says on stderr what went wrong."""
    if summary["failed"]:
        which = [str(row["target"]) for row in rows if row["loss"] is None]
        print(
            f"error: {summary['failed']} of {summary['targets']} targets had no trial "
            f"with a finite objective{': ' * bool(which)}{', '.join(which)}.",
            file=sys.stderr,
        )
    if summary["interrupted"]:
        print("interrupted: go on with --resume.", file=sys.stderr)
        return INTERRUPTED
    return FAILED if summary["failed"] else 0


def _text(rows, summary):
    scored = "psnr" in rows[0]
    parts = [report.table([_line(row) for row in rows], COLUMNS if scored else BLIND)]
    if scored:
        parts.append(
            f"PSNR {summary['psnr_mean']:.2f} +- {summary['psnr_std']:.2f} dB over "
            f"{summary['targets']} targets (lowest "
            f"{summary['psnr_min']:.2f})"
        )
        parts += [
            f"  {summary[name]:6.2f} dB  {text}"
            for name, text in _NULLS.items()
            if name in summary
        ]
    parts.append(
        f"{summary['seconds_compile']:.1f} s to compile, "
        f"{summary['seconds_run']:.1f} s to run: {summary['layout']}"
    )
    parts.append("The attacker was given:")
    parts += [f"  {name}: {value}" for name, value in summary["threat_model"].items()]
    return "\n".join([*parts, summary["verdict"]])


def _line(row):
    """One row of the table, under COLUMNS or BLIND."""
    if "psnr" in row:
        scores = [
            f"{np.mean(row['psnr']):.2f}",
            f"{np.mean(row['ssim']):.3f}" if row["ssim"] else "-",
            f"{row['label_recall']:.0%}",
        ]
    else:
        values = (row["loss"], row["fit"])
        scores = ["-" if value is None else f"{value:.2e}" for value in values]
    return (str(row["target"]), *scores, str(row["steps"]), row["stopped"])


_NULLS = {
    "null_mean_image": "guessing the mean public image",
    "null_random_image": "guessing random public images",
    "null_shuffled_update": "the same attack on a shuffled update",
}


def _picture(rows, batches, out):
    lines = []
    for row, batch in list(zip(rows, batches, strict=True))[:16]:
        title = f"target {row['target']}"
        if "original" in batch:
            lines.append((f"{title}\noriginal", batch["original"][:16], []))
            captions = [f"{value:.1f} dB" for value in row["psnr"]]
            lines.append(("  reconstructed", batch["image"][:16], captions))
        else:
            lines.append((f"{title}\nreconstructed", batch["image"][:16], []))
    out.write_image("grid.png", report.grid(lines))


def _bar(items, name):
    return iter(tqdm(items, desc=name, unit="chunk", disable=None))


class _StepBar:
    """A progress bar over the steps of all targets, silent where no one watches."""

    def __init__(self, shown):
        self.disable = None if shown else True  # None: where it is no terminal

    def __enter__(self):
        self.bar = tqdm(desc="inverting", unit="it", disable=self.disable)
        return self

    def update(self, progress):
        self.bar.total = progress.total
        self.bar.set_postfix_str(
            f"objective {float(np.min(progress.losses)):.2e}", False
        )
        self.bar.update(progress.done - self.bar.n)

    def __exit__(self, *exception):
        self.bar.close()
