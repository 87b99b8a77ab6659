"""A reconstruction as a person runs it: progress bars, files, a table, a verdict."""

import dataclasses
import sys
import time

import jax
import numpy as np
from tqdm import tqdm

from experiments import audit, config, interrupts, report, rundir

COLUMNS = ("target", "PSNR dB", "SSIM", "labels", "steps", "stopped")
BLIND = ("target", "objective", "misfit", "steps", "stopped")
INTERRUPTED, FAILED = 130, 1
FLUSH_SECONDS = 1.0  # results are on disk that soon


def reconstruct(
    raw: config.Config, workdir: str | None, *, overwrite: bool, resume: bool
) -> int:
    """One run, from checked settings to files; returns the exit code.

    Raises:
      ValueError: on bad input, before anything is traced or written.
    """
    settings = config.resolve(raw)
    jax.config.update("jax_enable_x64", settings.x64)
    name = settings.dataset or "update"
    workdir = workdir or (
        f"runs/{settings.attack}-{settings.model or 'loss'}-"
        f"{name.replace('/', '_').replace(':', '-')}-{settings.digest}"
    )
    kept = dataclasses.asdict(settings)
    rundir.check(workdir, kept, overwrite=overwrite, resume=resume)
    sources = audit.read(settings)
    bars = audit.Bars(over=_bar)
    prepared = audit.prepare(settings, sources, bars)
    out = rundir.open_(workdir, resume=resume)
    if resume:
        summary = out.json("summary.json")
        if summary and not summary["interrupted"]:
            print(f"All {summary['targets']} targets are done: {out.path}")
            return _code(summary)
    return _run(prepared, out, bars)


def _run(prepared, out, bars):
    keeper = _Keeper(out)
    settings = dataclasses.asdict(prepared.config)
    with interrupts.deferred() as check, _StepBar() as bar:
        out.write_json("config.json", {"settings": settings, **audit.versions()})
        bars = bars._replace(steps=bar.update, check=check)
        with keeper:
            first = len(keeper.rows)
            measured = audit.run(prepared, first=first, bars=bars, on_row=keeper.add)
        null = audit.nulls(prepared, measured, bars)
        if prepared.config.null_control and "shuffled_update" not in null:
            measured["interrupted"] = True
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


class _Keeper:
    """Rows and arrays of the finished targets, in memory and, soon after, on disk."""

    def __init__(self, out):
        self.out = out
        self.rows, self.batches = out.finished()
        self.written = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.flush()

    def add(self, row, batch):
        self.rows.append(row)
        self.batches.append(batch)
        if time.monotonic() - self.written > FLUSH_SECONDS:
            self.flush()

    def flush(self):
        if self.rows:  # the arrays first: a row says that they are there
            self.out.write_arrays("reconstructions.npz", _stack(self.batches))
            self.out.write_rows(self.rows)
        self.written = time.monotonic()


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
        f"{summary['seconds_run']:.1f} s to run"
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


def _stack(batches):
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _bar(items, name):
    return iter(tqdm(items, desc=name, unit="chunk", disable=None))


class _StepBar:
    """A progress bar over the steps of all targets, silent where no one watches."""

    def __enter__(self):
        self.bar = tqdm(desc="inverting", unit="it", disable=None)
        return self

    def update(self, progress):
        self.bar.total = progress.total
        self.bar.set_postfix_str(
            f"objective {float(np.min(progress.losses)):.2e}", False
        )
        self.bar.update(progress.done - self.bar.n)

    def __exit__(self, *exception):
        self.bar.close()
