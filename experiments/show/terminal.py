"""Results as a person looks at them: tables printed, pictures and their numbers
written."""

import pathlib

from experiments.show import contact_sheet, curves, latex, panels, style, summaries
from experiments.show.summaries import Choice, Frame
from invertjax.cli import command, run_folder


def show(workdir: pathlib.Path, out: pathlib.Path, given: Choice) -> int:
    """Prints the table, draws, and returns the exit code.

    Args:
      workdir: folder of a sweep's results.
      out: folder of what is written.
      given: what is shown, as far as it was given.

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


def _table(frame: Frame, choice: Choice, out: pathlib.Path) -> None:
    """Writes the table and the heat map, which share their numbers."""
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
    print(f"{style.metric_label(choice.metric)}: mean ± standard deviation (n)\n")
    lines = (summaries.render(table, choice), summaries.failures(frame))
    print("\n".join(filter(None, lines)), end="\n\n")
    _write(table, out / "table.csv")
    head, rows = summaries.cells(table, choice)
    says = f"{style.metric_label(choice.metric)}: mean, standard deviation (n)"
    file = out / "table.tex"
    run_folder.write(file, latex.table(head, rows, f"{says}, over {over}").encode())
    print(f"wrote {file}")
    path = out / "heatmap.png"
    curves.heatmap(table, choice, over, path)
    print(f"wrote {path}")


def _curves(frame: Frame, choice: Choice, out: pathlib.Path) -> None:
    if choice.x is None:
        print("no curves: no setting that is a number takes several values")
        return
    if choice.x == "strength" and choice.curves not in ("defense_name", "defense"):
        frame = frame[frame["strength"].notna() | (frame["defense_name"] == "none")]
    by = {"curve": summaries.shown(frame, choice.curves), "x": frame[choice.x]}
    table = summaries.summarise(frame, by, choice.metric)
    _write(table, out / "curves.csv")
    over = summaries.averaged(frame, [choice.curves, choice.x])
    path, guess = out / "curves.png", summaries.guess(frame, choice.metric)
    if (choice.curves, choice.x) == ("defense_name", "strength"):
        panels.draw(table, choice, over, path, guess)
    else:
        curves.curves(table, choice, over, path, guess)
    print(f"wrote {path}")


def _contact(
    frame: Frame, choice: Choice, workdir: pathlib.Path, out: pathlib.Path
) -> None:
    path = out / "contact.png"
    why = contact_sheet.draw(frame, choice, workdir, path)
    print(f"no contact sheet: {why}" if why else f"wrote {path}")


def _write(table: Frame, path: pathlib.Path) -> None:
    run_folder.write(path, table.to_csv(index=False).encode())
    print(f"wrote {path}")
