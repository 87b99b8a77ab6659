"""Tables and pictures of a sweep, from Parquet parts written here."""

import csv
import os
import statistics

import numpy as np
import pandas
import pytest
from matplotlib.text import Text
from PIL import Image

from experiments.show import __main__ as show
from experiments.show import contact_sheet, style, summaries
from experiments.show import curves as figures

DRAWN = {
    "table.csv",
    "table.tex",
    "curves.csv",
    "heatmap.png",
    "curves.png",
    "contact.png",
}
NONE = summaries.Choice(None, None, "psnr", None, None)


def run(*args: str) -> int:
    """The exit code; what it prints goes to stdout and stderr."""
    return show.main(["show", *args])


def row(defense="none", psnr: float | None = 30.0, **columns):
    """One row of results; without a psnr a failed one."""
    specs = [spec.partition(":") for spec in defense.split("+")]
    done = psnr is not None
    name = "+".join(name for name, _, _ in specs)
    strength = specs[-1][2]
    found = dict(
        target=0,
        dataset="photos",
        model="mlp",
        attack="analytic",
        batch_size=1,
        targets=2,
        total_variation=None,
        defense_known=None if defense == "none" else False,
        seed=0,
        defense=defense,
        defense_name=name,
        strength=float(strength) if strength else None,
        psnr=psnr,
        ssim=None,
        loss=0.5 if done else None,
        stopped="never",
        update_rms=0.1 if done else None,
        attack_run="analytic",
        seconds=1.0,
        status="done" if done else "failed",
        reason=None if done else "the objective\nwas never finite",
        image=None,
        original=None,
    )
    found |= columns
    settings = ("dataset", "model", "attack", "batch_size", "defense", "seed")
    return {"cell": "-".join(str(found[name]) for name in settings), **found}


def write(workdir, rows, parts=1):
    workdir.mkdir(exist_ok=True)
    for i in range(parts):
        table = pandas.DataFrame(rows[i::parts])
        table.to_parquet(workdir / f"part-{i}.parquet", index=False)
    return workdir


def frame(rows, tmp_path):
    return summaries.read(write(tmp_path / "read", rows))


def records(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def defended(models=("mlp", "cnn"), kinds=("gaussian", "prune")):
    """Three strengths of each defense, two seeds, two targets."""
    return [
        row(defense, 30.0 - 4 * i + seed + 2 * target, **draw)
        for model in models
        for i, defense in enumerate(
            ["none", *(f"{kind}:{s}" for kind in kinds for s in (0.001, 0.01, 0.1))]
        )
        for seed in (0, 1)
        for target in (0, 1)
        for draw in [dict(model=model, seed=seed, target=target)]
    ]


def test_means_and_deviations_are_those_of_the_rows_that_are_done(tmp_path, capsys):
    rows = [
        row("none", 40.0),
        row("gaussian:0.1", 10.0, target=0),
        row("gaussian:0.1", 13.0, target=1),
        row("gaussian:0.1", 19.0, seed=1),
        row("gaussian:0.1", None, seed=1, target=1),
        row("prune:0.5", 20.0),
        row("none", None, model="cnn"),
        row("gaussian:0.1", 5.0, model="cnn"),
    ]
    assert run(f"--workdir={write(tmp_path / 'sweep', rows, parts=3)}") == 0
    found = records(tmp_path / "sweep" / "_figures" / "table.csv")
    assert list(found[0]) == ["row", "column", "mean", "std", "n", "min", "max"]
    cells = {(line["row"], line["column"]): line for line in found}
    assert set(cells) == {
        ("none", "mlp"),
        ("none", "cnn"),
        ("gaussian", "mlp"),
        ("gaussian", "cnn"),
        ("prune", "mlp"),
    }
    cell = {name: float(cells["gaussian", "mlp"][name]) for name in list(found[0])[2:]}
    # 10, 13, 19: mean 42/3; deviations -4, -1, 5, so std sqrt(42/2)
    assert cell == pytest.approx(dict(mean=14, std=21**0.5, n=3, min=10, max=19))
    assert cells["none", "mlp"]["std"] == "" and cells["none", "mlp"]["n"] == "1"
    assert cells["none", "cnn"]["mean"] == "" and cells["none", "cnn"]["n"] == "0"
    printed = capsys.readouterr().out
    assert "14.00 ± 4.58 (3)" in printed and "40.00 (1)" in printed
    assert "- (0)" in printed
    assert "failed: 2 of 8 rows" in printed
    assert "the objective was never finite (2)" in printed


def test_what_is_fixed_and_what_is_averaged_over_is_said(tmp_path, capsys):
    assert run(f"--workdir={write(tmp_path / 'sweep', defended())}") == 0
    printed = capsys.readouterr().out.splitlines()
    fixed = next(line for line in printed if line.startswith("fixed: "))
    assert "dataset=photos, attack=analytic, batch_size=1" in fixed
    assert "defense_known=False (or none)" in fixed
    assert "model" not in fixed and "total_variation" not in fixed
    assert "over: seed (2), strength (4), target (2)" in printed
    assert not any(line.startswith("failed") for line in printed)


def test_curves_and_their_numbers(tmp_path):
    out = tmp_path / "out"
    workdir = write(tmp_path / "sweep", defended())
    assert run(f"--workdir={workdir}", f"--out={out}") == 0
    found = records(out / "curves.csv")
    assert list(found[0]) == ["curve", "x", "mean", "std", "n", "min", "max"]
    points = {(line["curve"], line["x"]): line for line in found}
    assert len(points) == 1 + 2 * 3
    draws = [0.0, 1.0, 2.0, 3.0] * 2  # seed + 2 * target, two models
    for i, key in enumerate(
        [("none", ""), ("gaussian", "0.001"), ("gaussian", "0.01")]
    ):
        assert float(points[key]["mean"]) == pytest.approx(31.5 - 4 * i)
        assert float(points[key]["std"]) == pytest.approx(statistics.stdev(draws))
        assert points[key]["n"] == "8"
    assert {path.name for path in out.iterdir()} == DRAWN - {"contact.png"}
    for name in ("curves.png", "heatmap.png"):
        with Image.open(out / name) as picture:
            assert 400 < picture.width < 2000 and 250 < picture.height < 1200
            assert np.unique(np.asarray(picture.convert("L"))).size > 20


def test_another_metric_over_other_settings(tmp_path, capsys):
    workdir = write(tmp_path / "sweep", defended())
    args = ("--metric=loss", "--rows=model", "--columns=seed", "--curves=model")
    assert run(f"--workdir={workdir}", *args) == 0
    assert "objective of the attack" in capsys.readouterr().out
    found = records(workdir / "_figures" / "table.csv")
    assert [(line["row"], line["column"]) for line in found] == [
        ("cnn", "0"),
        ("cnn", "1"),
        ("mlp", "0"),
        ("mlp", "1"),
    ]
    assert {float(line["mean"]) for line in found} == {0.5}
    curves = records(workdir / "_figures" / "curves.csv")
    assert {line["curve"] for line in curves} == {"mlp", "cnn"}


@pytest.mark.parametrize(
    "rows, expected",
    [
        (defended(), ("defense_name", "model", "strength", "defense_name")),
        # one defense against none: its curves are of what else varies
        (defended(kinds=["prune"]), ("defense_name", "model", "strength", "model")),
        # strengths that the defenses share fill the table
        (defended(["mlp"]), ("defense_name", "strength", "strength", "defense_name")),
        # those of one alone would leave it half empty
        (defended(["mlp"], ["prune"]), ("defense", None, "strength", "defense_name")),
        (
            [
                row(attack=attack, batch_size=size, seed=seed)
                for attack in ("idlg", "analytic")
                for size in (1, 2, 4)
                for seed in range(5)
            ],
            ("attack", "batch_size", "batch_size", "attack"),
        ),
        # what another setting decides is no coordinate beside it
        (
            [
                row(model=model, dataset=model, attack=attack)
                for model in ("a", "b", "c")
                for attack in ("idlg", "analytic")
            ],
            ("model", "attack", None, "model"),
        ),
        (
            [row(batch_size=2), row(batch_size=1)],
            ("batch_size", None, "batch_size", None),
        ),
        ([row(), row(seed=1)], (None, None, None, None)),
    ],
)
def test_default_coordinates(rows, expected, tmp_path):
    choice = summaries.choose(frame(rows, tmp_path), NONE)
    assert (choice.rows, choice.columns, choice.x, choice.curves) == expected


def test_a_coordinate_that_is_given_is_not_taken_twice(tmp_path):
    found = frame(defended(), tmp_path)
    assert (
        summaries.choose(found, NONE._replace(columns="defense_name")).rows == "model"
    )
    assert (
        summaries.choose(found, NONE._replace(rows="model")).columns == "defense_name"
    )


def test_values_are_in_order(tmp_path):
    rows = [row("gaussian:1", batch_size=16), row("gaussian:0.1", batch_size=2)]
    rows += [row("clip:5", batch_size=1), row("none", batch_size=4)]
    found = frame(rows, tmp_path)
    levels = {name: list(summaries.shown(found, name).cat.categories) for name in found}
    assert levels["batch_size"] == ["1", "2", "4", "16"]
    assert levels["strength"] == ["none", "0.1", "1", "5"]
    assert levels["defense_name"] == ["none", "clip", "gaussian"]
    assert levels["defense"] == ["none", "clip:5", "gaussian:0.1", "gaussian:1"]


def test_a_target_that_was_tried_again_counts_once(tmp_path):
    workdir = write(tmp_path, [row(psnr=None), row(psnr=10.0, target=1)])
    again = pandas.DataFrame([row(psnr=20.0), row(psnr=None, target=1)])
    again.to_parquet(workdir / "part-9.parquet")
    assert list(summaries.read(workdir)["psnr"].sort_values()) == [10.0, 20.0]


def test_parts_whose_nulls_differ_fit_one_another(tmp_path):
    write(tmp_path, [row("none"), row("prune:0.5")], parts=2)
    found = summaries.read(tmp_path)
    assert sorted(found["strength"].map(summaries.text)) == ["0.5", "none"]
    assert found["ssim"].isna().all()


def images(workdir, rows, side=8):
    """Gives every row a picture of its own grey, and the white original."""
    (workdir / "_images").mkdir(parents=True)
    Image.new("RGB", (side, side), "white").save(workdir / "_images" / "o.png")
    for i, entry in enumerate(rows):
        entry |= dict(image=f"_images/{i}.png", original="_images/o.png")
        Image.new("RGB", (side, side), (100 + i,) * 3).save(workdir / entry["image"])
    return rows


def greys(path):
    """The grey of every picture on a sheet, from left to right and then down."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    grey = np.ptp(pixels, axis=-1) == 0
    found = {}
    for value in range(100, 200):
        where = np.argwhere(grey & (pixels[..., 0] == value))
        if len(where) > 2_000:  # not of the text, whose edges are smooth
            top, left = np.median(where, axis=0)
            found[value] = (top // 50, left)  # text moves it by a pixel
    return sorted(found, key=found.get)


def test_the_contact_sheet_shows_one_draw_by_ascending_strength(tmp_path):
    strengths = np.linspace(0.9, 0.1, 21).round(3)
    rows = [row("none", 50.0)]
    rows += [row(f"prune:{s}", 20.0, seed=seed) for seed in (0, 1) for s in strengths]
    rows += [row("sign", None)]
    workdir = write(tmp_path, images(tmp_path, rows))
    assert run(f"--workdir={workdir}") == 0
    path = workdir / "_figures" / "contact.png"
    # no defense, then ten of the 21 of the first seed, both ends among them
    shown = greys(path)
    assert shown[0] == 100 and len(shown) == 1 + contact_sheet.COLUMNS
    assert shown[1] == 100 + 21 and shown[-1] == 101
    assert shown[1:] == sorted(shown[1:], reverse=True)
    with Image.open(path) as sheet:
        assert sheet.width < 1.2 * contact_sheet.WIDTH and sheet.height < 600


def test_large_batches_fit_on_the_sheet(tmp_path):
    rows = [row(f"prune:{s}", batch_size=64) for s in (0.1, 0.2, 0.3)]
    workdir = write(tmp_path, images(tmp_path, rows))
    for entry in rows:
        Image.new("RGB", (64 * 32, 32), "red").save(workdir / entry["image"])
    assert run(f"--workdir={workdir}") == 0
    with Image.open(workdir / "_figures" / "contact.png") as sheet:
        assert 1000 < sheet.width < 1.2 * contact_sheet.WIDTH


def test_without_images_or_curves_it_says_so(tmp_path, capsys):
    rows = [row(image="_images/gone.png", original="_images/gone.png")]
    workdir = write(tmp_path / "sweep", rows)
    assert run(f"--workdir={workdir}") == 0
    printed = capsys.readouterr().out
    assert "no contact sheet: no images were kept" in printed
    assert "no curves: no setting that is a number takes several values" in printed
    found = {path.name for path in (workdir / "_figures").iterdir()}
    assert found == {"table.csv", "table.tex", "heatmap.png"}
    for name in found:
        assert f"wrote {workdir / '_figures' / name}" in printed


@pytest.mark.parametrize(
    "xs, scale",
    [([1, 31], "log"), ([1, 30], "linear"), ([0, 100], "linear"), ([], "linear")],
)
def test_wide_positive_axes_are_logarithmic(xs, scale):
    _, axes = figures.pyplot.subplots()
    figures.scale(axes, np.array(xs, float))
    assert axes.get_xscale() == scale
    figures.pyplot.close()


def test_curves_say_what_their_strength_is():
    assert style.curve_label("none", "defense_name") == "no defense"
    label = style.curve_label("clip+gaussian", "defense_name")
    assert label == "clip+gaussian (standard deviation)"
    for named in ("sign", "of a former version"):  # there is nothing to say
        assert style.curve_label(named, "defense_name") == named
    assert style.curve_label("mlp", "model") == "model: mlp"


def refused(capsys, code, *args):
    """The one line on stderr of a run that ends with an exit code."""
    assert run(*args) == code
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    return printed


@pytest.mark.parametrize(
    "args, says",
    [
        (["--rows=modle"], "--rows=modle: no such setting; did you mean 'model'?"),
        (["--columns=xyz"], "--columns=xyz: no such setting."),
        (["--curves=psnr"], "--curves=psnr: no such setting."),
        (["--metric=pnsr"], "--metric=pnsr: no such column of results; did you mean"),
        (["--metric=stopped"], "--metric=stopped: expected a column of numbers"),
        (["--metric=ssim"], "--metric=ssim: no row has a value of it"),
        (["--x=model"], "--x=model: expected a column of numbers"),
        (["--wrokdir=x"], "wrokdir"),
        (["model"], "Unexpected argument 'model'"),
    ],
)
def test_bad_flags_are_one_line(args, says, tmp_path, capsys):
    workdir = write(tmp_path / "sweep", defended())
    printed = refused(capsys, 2, f"--workdir={workdir}", *args)
    assert says in printed.err and printed.out == ""
    assert not (workdir / "_figures").exists()


def test_folders_without_results_are_refused(tmp_path, capsys):
    assert "--workdir is missing" in refused(capsys, 2).err
    gone = tmp_path / "gone"
    assert (
        f"{gone}: there is no such folder"
        in refused(capsys, 2, f"--workdir={gone}").err
    )
    (tmp_path / "_sweep.json").write_text("{}")
    assert "no results" in refused(capsys, 2, f"--workdir={tmp_path}").err
    pandas.DataFrame({"psnr": [1.0]}).to_parquet(tmp_path / "part-0.parquet")
    assert "no column 'cell'" in refused(capsys, 2, f"--workdir={tmp_path}").err


def test_parts_and_pictures_that_cannot_be_read_are_named(tmp_path, capsys):
    workdir = write(tmp_path, images(tmp_path, [row()]))
    (workdir / "_images" / "0.png").write_text("not a picture")
    assert (
        str(workdir / "_images" / "0.png")
        in refused(capsys, 2, f"--workdir={workdir}").err
    )
    (workdir / "part-1.parquet").write_bytes(b"PAR1 cut short")
    assert (
        str(workdir / "part-1.parquet")
        in refused(capsys, 2, f"--workdir={workdir}").err
    )


def test_parts_of_other_types_are_refused(tmp_path, capsys):
    rows = [row(batch_size=1), row(batch_size="many")]
    workdir = write(tmp_path, rows, parts=2)
    assert "its parts differ" in refused(capsys, 2, f"--workdir={workdir}").err


def test_where_all_failed_the_reasons_are_printed(tmp_path, capsys):
    rows = [row(psnr=None), row(psnr=None, target=1, reason="no memory")]
    printed = refused(capsys, 1, f"--workdir={write(tmp_path, rows)}")
    assert "all 2 rows failed" in printed.err
    assert "the objective was never finite (1)" in printed.out
    assert "no memory (1)" in printed.out


def test_no_room_to_write_is_one_line(tmp_path, capsys):
    workdir = write(tmp_path / "sweep", [row()])
    (tmp_path / "file").write_text("")
    printed = refused(capsys, 1, f"--workdir={workdir}", f"--out={tmp_path / 'file'}")
    assert "file" in printed.err


HOSTILE = "\x1b]0;owned\x07\x1b[31mred $\\frac{1$ \u202e $x_2$ \n"


def test_text_of_others_stays_text(tmp_path, capsys, monkeypatch):
    """A terminal obeys none of it, and a figure reads no mathematics in it."""
    drawn, draw = [], figures.save

    def save(figure, path):
        drawn.extend(text for text in figure.findobj(Text) if text.get_text())
        draw(figure, path)

    monkeypatch.setattr(figures, "save", save)
    for name in ("dataset", "model"):
        columns = [{name: name + HOSTILE}, {name: name + HOSTILE + "2"}]
        rows = [row(f"prune:{x}", 9 + x, **c) for c in columns for x in (0.1, 0.2)]
        rows += [row("sign", None, reason=HOSTILE)]
        workdir = write(tmp_path / name, rows)
        del drawn[:]
        args = (f"--rows={name}", f"--curves={name}", "--columns=strength")
        assert run(f"--workdir={workdir}", *args) == 0
        printed = capsys.readouterr().out
        assert "owned" in printed and "$x_2$" in printed
        assert printed.replace("\n", "").isprintable()
        mine = [text for text in drawn if "owned" in text.get_text()]
        assert len(mine) >= 4  # of the heat map's axis, and of the legend
        for text in mine:
            shown, mathematics = text._preprocess_math(text.get_text())
            assert not mathematics and "$x_2$" in shown


@pytest.mark.parametrize("name", ["absolute", "above", "a link", "null", "a pipe"])
def test_pictures_outside_the_folder_are_not_opened(name, tmp_path, capsys):
    """A table may come from anybody; its contact sheet goes round."""
    outside = tmp_path / "private.png"
    Image.new("RGB", (8, 8), (150,) * 3).save(outside)
    rows = images(tmp_path / "run", [row(), row("sign")])
    link, pipe = (tmp_path / "run" / "_images" / f"{kind}.png" for kind in "lp")
    link.symlink_to(outside)
    os.mkfifo(pipe)
    rows[0]["image"] = {
        "absolute": str(outside),
        "above": "../private.png",
        "a link": "_images/l.png",
        "null": "_images/\0.png",
        "a pipe": "_images/p.png",
    }[name]
    workdir = write(tmp_path / "run", rows)
    assert run(f"--workdir={workdir}") == 0
    assert 150 not in greys(workdir / "_figures" / "contact.png")


@pytest.mark.parametrize("kind", ["EPS", "huge"])
def test_only_pngs_of_some_size_are_opened(kind, tmp_path, capsys, monkeypatch):
    """Another format may start a program of its own; a header may promise anything."""
    workdir = write(tmp_path, images(tmp_path, [row()]))
    path = workdir / "_images" / "0.png"
    if kind == "huge":
        monkeypatch.setattr(contact_sheet, "PIXELS", 63)
        Image.new("RGB", (8, 8)).save(path)
    else:
        Image.new("RGB", (8, 8)).save(path, kind)
    said = refused(capsys, 2, f"--workdir={workdir}").err
    assert str(path) in said and "expected a PNG" in said


def test_a_panel_a_defense_and_a_guess_in_each(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    rows = [one | {"guess": 12.0 + one["target"]} for one in defended()]
    rows += [row("quantise:4", 25.0, guess=12.5), row("sign", 14.0, guess=12.5)]
    assert run(f"--workdir={write(tmp_path / 'sweep', rows)}") == 0
    figure = kept[1]  # after the heat map
    seen = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(seen) == ["gaussian", "prune", "quantise", "sign"]
    assert seen["prune"].get_xlabel() == "share zeroed"
    assert seen["gaussian"].get_xscale() == "log"
    for axes in seen.values():
        levels = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
        assert levels["a guess without the update"] == pytest.approx(12.5)
        assert levels["no defense"] == pytest.approx(31.5)
    assert any(line.get_ydata()[0] == 14.0 for line in seen["sign"].lines)
    words = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert words == "no defense a guess without the update"


def test_sweeps_from_before_have_no_guess(tmp_path):
    assert summaries.guess(frame(defended(), tmp_path), "psnr") is None
    rows = [
        row(guess=11.0),
        row(guess=13.0, seed=1),
        row(psnr=None, guess=99.0, seed=2),
    ]
    found = frame(rows, tmp_path)
    assert summaries.guess(found, "psnr") == 12.0
    assert summaries.guess(found, "ssim") is None


def test_what_float32_cannot_tell_from_the_truth_is_exact():
    assert summaries.number(160.0, "psnr") == "exact"
    assert summaries.number(159.9, "psnr") == "159.90"
    assert summaries.number(160.0, "seconds") == "160"


def test_the_table_for_a_paper(tmp_path):
    rows = [row(psnr=160.0, model="a_b%"), row(psnr=31.0), row(psnr=33.0, seed=1)]
    workdir = write(tmp_path / "sweep", rows)
    assert run(f"--workdir={workdir}", "--rows=model") == 0
    lines = (workdir / "_figures" / "table.tex").read_text("utf-8").splitlines()
    assert lines[2] == r"\begin{tabular}{lr}" and lines[-1] == r"\end{tabular}"
    assert r"a\_b\% & exact (1) \\" in lines
    assert r"mlp & 32.00 $\pm$ 1.41 (2) \\" in lines


def test_a_few_whole_numbers_have_no_ticks_between_them():
    _, axes = figures.pyplot.subplots()
    axes.plot([0, 1, 2], [0, 1, 2])
    figures.scale(axes, np.array([0.0, 1.0, 2.0]))
    assert all(tick == round(tick) for tick in axes.get_xticks())
    figures.pyplot.close()
