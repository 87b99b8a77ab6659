"""Tables and pictures of a sweep's results.

    python -m experiments.show --workdir=runs/sweep
    python -m experiments.show --workdir=runs/sweep --rows=defense --columns=model
    python -m experiments.show --workdir=runs/sweep --metric=ssim --x=batch_size

Reads part-*.parquet of --workdir, a row a target, while a sweep still runs or after.
Prints mean, standard deviation and number of values over --rows and --columns, and
writes table.csv, curves.csv, curves.png, heatmap.png and contact.png into --out. Rows
that failed are counted, never averaged. Exit codes: 0 done, 1 nothing to show as all
rows failed, or no room to write, 2 bad input.
"""

import pathlib
from typing import Any

from absl import app, flags

from experiments.show import contact_sheet, curves, summaries
from experiments.show.summaries import Choice
from invertjax.cli import command


def define(values: flags.FlagValues) -> None:
    """Defines the flags; not on import, so that this may be imported beside others."""

    def text(name, default, says):
        flags.DEFINE_string(name, default, says, flag_values=values)

    text("workdir", None, "Folder of the sweep's results.")
    text(
        "rows",
        None,
        "Setting down the table and the heat map. Default: of those that are not "
        "numbers the one with most values, such as defense_name.",
    )
    text("columns", None, "Setting across them. Default: the next, such as model.")
    text(
        "metric",
        "psnr",
        "What is shown: psnr, psnr_min, ssim, label_recall, loss, seconds or any other "
        "column of numbers.",
    )
    text(
        "x",
        None,
        "Setting along the curves, a number. Default: strength if it varies, else the "
        "number with most values.",
    )
    text(
        "curves",
        None,
        "Setting with a curve a value. Default: defense_name if it varies, else the "
        "setting with most values.",
    )
    text("out", None, "Folder of what is written. Default: WORKDIR/_figures.")


def show(workdir: pathlib.Path, out: pathlib.Path, given: Choice) -> int:
    """Prints the table, draws, and returns the exit code.

    Raises:
      ValueError: naming what is wrong with the input.
    """
    frame = summaries.read(workdir)
    choice = summaries.choose(frame, given)
    if not summaries.done(frame).any():
        print(summaries.failures(frame))
        return command.said(
            f"nothing to show: all {len(frame)} rows failed.", command.FAILED
        )
    summaries.check_values(frame, choice.metric)
    out.mkdir(parents=True, exist_ok=True)
    _table(frame, choice, out)
    _curves(frame, choice, out)
    _contact(frame, choice, workdir, out)
    return 0


def _table(frame, choice, out):
    """The table and the heat map, which share their numbers."""
    by = {
        "row": summaries.shown(frame, choice.rows),
        "column": summaries.shown(frame, choice.columns),
    }
    table = summaries.summarise(frame, by, choice.metric)
    over = summaries.averaged(frame, [choice.rows, choice.columns])
    if fixed := summaries.fixed(frame):
        print(f"fixed: {fixed}")
    if over:
        print(f"over: {over}")
    print(f"{curves.metric_label(choice.metric)}: mean ± standard deviation (n)\n")
    lines = (summaries.render(table, choice), summaries.failures(frame))
    print("\n".join(filter(None, lines)), end="\n\n")
    _write(table, out / "table.csv")
    path = out / "heatmap.png"
    curves.heatmap(table, choice, over, path)
    print(f"wrote {path}")


def _curves(frame, choice, out):
    if choice.x is None:
        print("no curves: no setting that is a number takes several values")
        return
    if choice.x == "strength" and choice.curves not in ("defense_name", "defense"):
        frame = frame[frame["strength"].notna() | (frame["defense_name"] == "none")]
    by = {"curve": summaries.shown(frame, choice.curves), "x": frame[choice.x]}
    table = summaries.summarise(frame, by, choice.metric)
    _write(table, out / "curves.csv")
    over = summaries.averaged(frame, [choice.curves, choice.x])
    path = out / "curves.png"
    curves.curves(table, choice, over, path)
    print(f"wrote {path}")


def _contact(frame, choice, workdir, out):
    path = out / "contact.png"
    why = contact_sheet.draw(frame, choice, workdir, path)
    print(f"no contact sheet: {why}" if why else f"wrote {path}")


def _write(table: summaries.Frame, path: pathlib.Path) -> None:
    table.to_csv(path, index=False)
    print(f"wrote {path}")


def main(argv: list[str]) -> int:
    return command.guarded(lambda: _main(argv))


def _main(argv):
    command.check_arguments(argv)
    values = flags.FLAGS
    if values.workdir is None:
        raise ValueError("--workdir is missing: the folder of a sweep's results.")
    workdir = pathlib.Path(values.workdir)
    out = pathlib.Path(values.out) if values.out else workdir / "_figures"
    given: dict[str, Any] = {name: values[name].value for name in Choice._fields}
    return show(workdir, out, Choice(**given))


if __name__ == "__main__":
    define(flags.FLAGS)
    app.run(main, flags_parser=command.parse)
