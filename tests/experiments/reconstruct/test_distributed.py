"""Many devices and several processes, real ones on this machine, against one device."""

import re
import signal

import jax
import numpy as np
import pytest
from support import cli
from support import processes as support_processes
from support.processes import ROOT, address, ended, signalled

from experiments.settings.settings import flat
from invertjax.cli import processes, run_folder

PROBLEM = str(ROOT / "tests" / "support" / "one_problem.py")
SMALL = ("--model=mlp", "--width=9", "--image_size=8", "--networks=shared")
SMALL += ("--attack=inverting_gradients", "--nonull_control")
LONG = (*SMALL, "--targets=6", "--steps=40000")  # never done within a test

cheap_compilation, start = cli.cheap_compilation, support_processes.start  # fixtures


@pytest.fixture(scope="module")
def solved(start, tmp_path_factory):
    """The problem on one device, on eight, and in two processes; all at once."""
    folder = tmp_path_factory.mktemp("solved")
    files = {name: folder / f"{name}.npz" for name in ("one", "eight", "two")}
    eight = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_NUM_CPU_DEVICES": "-1",  # as XLA_FLAGS say
    }
    place = address()
    done = ended(
        start(PROBLEM, files["one"]),
        start(PROBLEM, files["eight"], **eight),
        *[start(PROBLEM, files["two"], place, "2", str(i)) for i in range(2)],
    )
    assert [code for code, *_ in done] == [0] * 4, done
    return {name: dict(np.load(file)) for name, file in files.items()}


@pytest.mark.parametrize("name, devices", [("eight", 8), ("two", 2)])
def test_many_devices_compute_what_one_does(solved, name, devices):
    one, many = solved["one"], solved[name]
    assert (one["devices"], many["devices"]) == (1, devices)
    # Of one program a layout: some eps of pixels up to 1.
    np.testing.assert_allclose(one["start"], many["start"], rtol=0, atol=1e-6)
    # 1e-4: float32 sums of a few thousand terms in another order.
    np.testing.assert_allclose(many["value"], one["value"], rtol=1e-4)
    scale = np.abs(one["gradient"]).max()
    np.testing.assert_allclose(many["gradient"], one["gradient"], atol=1e-4 * scale)


@pytest.mark.parametrize("name", ["eight", "two"])
def test_many_devices_go_where_one_goes(solved, name):
    one, many = solved["one"], solved[name]
    # Signed steps: a pixel whose gradient is nearly zero may go either way.
    agree = np.abs(many["iterates"] - one["iterates"]) < 1e-4
    assert agree.mean() > 0.99
    moved = np.abs(one["iterates"] - one["start"][:, :, None]) > 1e-3
    assert moved.mean() > 0.5  # there was something to agree on
    assert one["psnr"].mean() > 20
    assert abs(many["psnr"].mean() - one["psnr"].mean()) < 1


def run_two(start, folder, *args, first=("-m",), second=("-m",)):
    """`experiments.reconstruct` in two processes."""
    place = (f"--coordinator={address()}", "--num_processes=2")
    args = ("experiments.reconstruct", f"--workdir={folder}", *args, *place)
    runs = (first, second)
    return [start(*run, *args, f"--process_id={i}") for i, run in enumerate(runs)]


def after_a_row(name, folder):
    """A run that gets a signal once the first finished targets are on disk.

    It then has more to do, and is about to ask the other process, as between all
    chunks of steps.
    """
    ask = "invertjax.driver.layout:gather"
    return signalled(name, ask, folder / "metrics.jsonl")


@pytest.fixture(scope="module")
def orphaned(start, tmp_path_factory):
    """A folder whose run has lost process 1, and how process 0 ended."""
    folder = tmp_path_factory.mktemp("orphaned") / "run"
    lost = after_a_row("SIGKILL", folder)
    (code, out, err), second = ended(*run_two(start, folder, *LONG, second=lost))
    assert second[0] == -signal.SIGKILL, second
    return folder, (code, out, err.strip().splitlines()[-1])


def test_the_others_stop_when_a_process_dies(orphaned):
    folder, (code, out, line) = orphaned
    assert code == 1 and re.fullmatch(r"(Estimate: .*\n)?", out)
    assert line.startswith("error: another process of this run stopped")
    assert str(folder) in line and "--resume" in line
    rows = cli.rows(folder)
    assert len(rows) >= 1 and {row["stopped"] for row in rows} == {"budget"}
    assert len(cli.arrays(folder)["image"]) >= len(rows)


def test_what_two_have_begun_one_may_go_on_with(orphaned):
    """How many processes there are is no setting of the run."""
    folder, *_ = orphaned
    alone = flat(cli.resolved(**cli.given(*LONG)))
    run_folder.check(str(folder), alone, overwrite=False, resume=True)
    with pytest.raises(ValueError, match="--seed=0, this one 1"):
        run_folder.check(
            str(folder), {**alone, "seed": 1}, overwrite=False, resume=True
        )


def test_a_refusal_of_the_first_stops_all(orphaned, start):
    folder, *_ = orphaned
    first, second = ended(*run_two(start, folder, *LONG))
    assert first[:2] == second[:2] == (2, "")
    assert first[2].count("\n") == second[2].count("\n") == 1
    assert "already holds a run" in first[2]
    assert "process 0 of this run stopped" in second[2]


@pytest.mark.slow  # 13 s
def test_ctrl_c_in_one_process_stops_both_with_the_best_so_far(start, tmp_path):
    folder = tmp_path / "run"
    interrupted = after_a_row("SIGINT", folder)
    first, second = ended(*run_two(start, folder, *LONG, second=interrupted))
    assert first[0] == second[0] == 130
    assert "PSNR" in first[1] and first[2].endswith("go on with --resume.\n")
    assert second[1:] == ("", "")  # process 0 speaks for all
    assert cli.summary(folder)["interrupted"]
    assert cli.rows(folder)[-1]["stopped"] == "interrupted"
    assert {path.name for path in folder.iterdir()} == cli.FILES


@pytest.mark.slow  # 22 s
def test_the_others_stop_when_the_coordinator_dies(start, tmp_path):
    folder = tmp_path / "run"
    lost = after_a_row("SIGKILL", folder)
    first, (code, out, err) = ended(*run_two(start, folder, *LONG, first=lost))
    assert first[0] == -signal.SIGKILL, first
    assert (code, out) == (1, "")
    # JAX may have aborted with a stack trace: the line comes after it.
    assert err.strip().splitlines()[-1].startswith("error: another process of this run")
    assert len(cli.rows(folder)) >= 1


def test_silence_counts_as_death_as_soon_as_the_readme_promises(monkeypatch):
    """Within 30 seconds, where not even a closed connection tells."""
    given = {}
    monkeypatch.setattr(processes, "_divert_gloo", lambda: None)
    monkeypatch.setattr(processes.ENDING, "on_abort", lambda: None)
    monkeypatch.setattr(processes.ENDING, "joined", False)  # and back afterwards
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *args, **options: given.update(options)
    )
    processes.join(processes.Place("h:1", 2, 0))
    assert 0 < given["heartbeat_timeout_seconds"] < 30


@pytest.mark.parametrize(
    "args, says",
    [
        (["--coordinator=h:1"], ["--coordinator=h:1", "--num_processes"]),
        (["--process_id=0"], ["--process_id=0", "--coordinator"]),
        (["--num_processes=2", "--process_id=0"], ["--num_processes=2", "--coord"]),
        (["--coordinator=h", 2, 0], ["--coordinator=h:", "HOST:PORT"]),
        (["--coordinator=:1234", 2, 0], ["--coordinator=:1234", "HOST:PORT"]),
        (["--coordinator=h:99999", 2, 0], ["--coordinator=h:99999", "HOST:PORT"]),
        (["--coordinator=h:port", 2, 0], ["--coordinator=h:port", "HOST:PORT"]),
        (["--coordinator=h:1", 0, 0], ["--num_processes=0", "1 or more"]),
        (["--coordinator=h:1", 2, 2], ["--process_id=2", "0 to 1"]),
        (["--coordinator=h:1", 2, -1], ["--process_id=-1", "0 to 1"]),
        (["--distributed", "--coordinator=h:1"], ["--coordinator=h:1", "exclude"]),
    ],
)
def test_flags_that_do_not_go_together(args, says, tmp_path, capsys):
    names = ("", "--num_processes=", "--process_id=")
    texts = [arg if isinstance(arg, str) else None for arg in args]
    numbered = [
        text or f"{name}{arg}"
        for text, name, arg in zip(texts, names, args, strict=False)
    ]
    line = cli.refused(capsys, tmp_path / "run", *numbered)
    for fragment in says:
        assert fragment in line
