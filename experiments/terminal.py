"""A reconstruction as a person runs it: progress bars, files, a table, a verdict."""

import dataclasses
import sys

import jax
import numpy as np
from tqdm import tqdm

from experiments import audit, config, report, rundir

COLUMNS = ("target", "PSNR dB", "SSIM", "labels", "steps", "stopped")
INTERRUPTED, FAILED = 130, 1


def reconstruct(
    raw: config.Config, workdir: str | None, *, overwrite: bool, resume: bool
) -> int:
    """One run, from checked settings to files; returns the exit code.

    Raises:
      ValueError: on bad input, before anything is traced or written.
    """
    settings = config.resolve(raw)
    jax.config.update("jax_enable_x64", settings.x64)
    name = settings.dataset if settings.update is None else "update"
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
    out.write_json("config.json", {"settings": kept, "versions": audit.versions()})
    return _run(prepared, out, bars)


def _run(prepared, out, bars):
    rows = [row for row in out.rows() if row["stopped"] != "interrupted"]
    arrays = out.arrays("reconstructions.npz")
    batches = [
        {name: stacked[i] for name, stacked in arrays.items()} for i in range(len(rows))
    ]
    targets = prepared.config.targets
    if len(rows) == targets:
        print(f"All {targets} targets are done: {out.path}")
        return 0

    def on_row(row, batch):
        rows.append(row)
        batches.append(batch)
        out.write_arrays("reconstructions.npz", _stack(batches))
        out.write_rows(rows)

    first = len(rows)
    with _StepBar() as bar:
        bars = bars._replace(steps=bar.update)
        measured = audit.run(prepared, first=first, bars=bars, on_row=on_row)
    null = audit.nulls(prepared, measured["program"], measured["interrupted"])
    summary = audit.summarise(prepared, rows, measured, null)
    out.write_json("summary.json", summary)
    _picture(prepared, rows, batches).save(out.path / "grid.png")
    print(_text(prepared, rows, summary))
    print(f"Files: {out.path}")
    if measured["interrupted"]:
        return INTERRUPTED
    if summary["failed"] == len(rows):
        print("error: no trial of any target had a finite objective.", file=sys.stderr)
    return FAILED if summary["failed"] else 0


def _text(prepared, rows, summary):
    lines = [
        (
            str(row["target"]),
            f"{np.mean(row['psnr']):.2f}" if "psnr" in row else "-",
            f"{np.mean(row['ssim']):.3f}" if row.get("ssim") else "-",
            f"{row['label_recall']:.0%}" if "label_recall" in row else "-",
            str(row["steps"]),
            row["stopped"],
        )
        for row in rows
    ]
    parts = [report.table(lines, COLUMNS)]
    if summary["psnr_mean"] is not None:
        parts.append(
            f"PSNR {summary['psnr_mean']:.2f} +- {summary['psnr_std']:.2f} dB over "
            f"{summary['targets']} targets (worst for the attacker "
            f"{summary['psnr_min']:.2f})"
        )
        parts += [
            f"  {value['psnr_mean']:6.2f} dB  {_NULLS[name]}"
            for name, value in summary["null"].items()
        ]
    else:
        parts.append(summary["truth"])
    parts.append(
        f"{summary['seconds_compile']:.1f} s to compile, {summary['seconds_run']:.1f} s "
        "to run"
    )
    parts.append("The attacker was given:")
    parts += [f"  {name}: {value}" for name, value in summary["threat_model"].items()]
    return "\n".join([*parts, summary["verdict"]])


_NULLS = {
    "mean_image": "guessing the mean public image",
    "random_image": "guessing random public images",
    "shuffled_update": "the same attack on a shuffled update",
}


def _picture(prepared, rows, batches):
    lines = []
    for row, batch in list(zip(rows, batches, strict=True))[:16]:
        title = f"target {row['target']}"
        if "original" in batch:
            lines.append((f"{title}\noriginal", batch["original"][:16], []))
            captions = [f"{value:.1f} dB" for value in row["psnr"]]
            lines.append(("  reconstructed", batch["image"][:16], captions))
        else:
            lines.append((f"{title}\nreconstructed", batch["image"][:16], []))
    return report.grid(lines)


def _stack(batches):
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def _bar(items, name):
    return tqdm(items, desc=name, unit="chunk", disable=None)


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
