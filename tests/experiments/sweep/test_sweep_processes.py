"""How sweeps end, go on, and share a folder with other processes."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import cli, processes, sweeps

from experiments.audit import digests
from experiments.sweep import folder as sweepdir
from experiments.sweep import grid, recorder
from experiments.sweep import run as sweeping
from experiments.sweep import table as table_
from invertjax import driver
from invertjax.cli import leases

cheap_compilation, start = cli.cheap_compilation, processes.start  # fixtures
ended = processes.ended
PIPES = dict(cwd=processes.ROOT, capture_output=True, text=True)

SEVERAL = """
networks = "shared"
targets = 3
seed = [0, 1, 2]
defense = ["none", {prune = [0.5, 0.9]}]
"""  # three blocks of nine rows, in one group


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The flag of a grid, and the folder of its sweep, never interrupted."""
    path = tmp_path_factory.mktemp("several")
    flag = sweeps.write(path, SEVERAL)
    assert sweeps.run(flag, f"--workdir={path / 'run'}") == 0
    return flag, path / "run"


def test_what_is_cut_short_goes_on_to_the_same_table(
    several, tmp_path, capsys, monkeypatch
):
    """By Ctrl-C in the first block, a full disk in the second, and Ctrl-C again."""
    flag, whole = several
    folder, write, write_table = tmp_path / "run", table_.write, pq.write_table
    monkeypatch.setattr(recorder, "FLUSH_SECONDS", 0.0)

    def interrupt(*args):
        write(*args)
        signal.raise_signal(signal.SIGINT)

    def full(table, file):
        if len(list(folder.glob("part-*"))) > 2:
            file.write(b"half a file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(table, file)

    had = [0]
    for module, name, does, code in (
        (table_, "write", interrupt, 130),
        (pq, "write_table", full, 1),
        (table_, "write", interrupt, 130),
    ):
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(module, name, does)
            assert sweeps.run(flag, f"--workdir={folder}") == code
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ")
        assert ("No space left" in last) == (code == 1)
        had.append(len(sweeps.table(folder)))
        assert not list(folder.glob("_partial-*"))
        assert not any((folder / "_leases").iterdir())
    assert had == sorted(set(had)) and had[-1] < 27
    assert sweeps.run(flag, f"--workdir={folder}") == 0
    sweeps.assert_same(folder, whole)


def test_what_is_complete_is_left_alone(several, capsys, monkeypatch):
    """The table is read as often as if it had one block, and each part once before the
    end: thousands of blocks are as many times as long, and no more."""
    flag, whole = several
    before, looks, read = sweeps.files(whole), [], []
    parts, columns = table_.parts, table_.columns
    monkeypatch.setattr(table_, "parts", lambda path: looks.append(1) or parts(path))
    monkeypatch.setattr(
        table_, "columns", lambda part, *names: read.append(1) or columns(part, *names)
    )
    table_.name_of.cache_clear()
    capsys.readouterr()
    assert sweeps.run(flag, f"--workdir={whole}") == 0
    assert "programs compiled: 0." in capsys.readouterr().out
    assert sweeps.files(whole) == before
    assert len(looks) == 3 and len(read) == 2 * len(parts(whole))
    assert table_.name_of.cache_info().misses == 9  # cells


def test_out_of_memory_halves_and_goes_on(several, tmp_path, capsys, monkeypatch):
    flag, whole = several
    run, widths = driver.run, []

    def once(program, *args, **options):
        widths.append(program.width)
        if len(widths) == 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return run(program, *args, **options)

    monkeypatch.setattr(driver, "run", once)
    assert sweeps.run(flag, f"--workdir={tmp_path / 'run'}") == 0
    printed = capsys.readouterr()
    assert "out of memory: going on with 4 targets at once" in printed.err
    assert widths == [8, 4, 4, 4]
    found, expected = sweeps.table(tmp_path / "run"), sweeps.table(whole)
    assert found.status.eq("done").all() and found.cell.equals(expected.cell)
    np.testing.assert_allclose(found.psnr, expected.psnr, atol=1e-3)


def test_what_never_fits_is_recorded(several, tmp_path, capsys, monkeypatch):
    def full(*args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(driver, "run", full)
    monkeypatch.setattr(sweeping, "WIDE", 2)  # fewer programs to compile
    flag, _ = several
    args = (f"--workdir={tmp_path / 'run'}", "--seed=0", "--targets=1")
    assert sweeps.run(flag, *args) == 1
    found = sweeps.table(tmp_path / "run")
    assert len(found) == 3 and set(found.status) == {"failed"}
    assert found.reason.str.startswith("out of memory: RESOURCE_EXHAUSTED").all()
    assert found.psnr.isna().all()


FAILING = """
local_steps = 2
local_lr = [1e30, 0.05]
defense = {gaussian = [1e38, 0.001]}
"""


def test_cells_that_fail_are_recorded_and_the_others_go_on(tmp_path, capsys):
    flag = sweeps.write(tmp_path, FAILING)
    assert sweeps.run(flag, f"--workdir={tmp_path / 'run'}") == 1
    found = sweeps.table(tmp_path / "run")
    assert len(found) == 2 * 4
    done = (found.local_lr == 0.05) & (found.strength == 0.001)
    assert done.sum() == 2
    assert (found.status == np.where(done, "done", "failed")).all()
    for column, there in {"psnr": done, "reason": ~done}.items():
        assert (found[column].notna() == there).all(), column
    reasons = found.set_index(["local_lr", "strength"]).reason
    assert reasons[1e30].str.contains("not finite.*--local_lr=1e[+]30").all()
    assert reasons[0.05, 1e38].str.contains("not finite.*gaussian:1e[+]38").all()
    assert "6 of them failed" in capsys.readouterr().out


def begin(start, flag, folder, *, run=("-m",), **env):
    return start(*run, "experiments.sweep", flag, f"--workdir={folder}", **env)


def before_a_part(name, folder, files, count=1):
    """The `run` of a process that gets a signal before it writes part of the table."""
    write = "experiments.sweep.table:write"
    return processes.signalled(name, write, folder / files, count)


@pytest.fixture(scope="module")
def shared(start, several, tmp_path_factory):
    """The folder of two processes of which one was killed, in a block of its own.

    It stops itself once the block is computed, until the other is done with one.
    """
    path = tmp_path_factory.mktemp("shared") / "two"
    stopped = before_a_part("SIGSTOP", path, "_leases/*")
    killed = begin(start, several[0], path, run=stopped)
    processes.wait_for(path, "_leases/*", killed)
    other = begin(start, several[0], path)
    processes.wait_for(path, "part-*", killed, other)
    killed.kill()
    done = ended(killed, other)[1:]
    assert [code for code, *_ in done] == [0], done
    return path


def test_who_is_killed_has_the_rest_done_by_others(several, shared):
    """Nothing is done twice, or by nobody."""
    sweeps.assert_same(shared, several[1])
    assert not any((shared / "_leases").iterdir())


@pytest.mark.slow  # 20 s, most of it starting
def test_eight_devices_compute_what_one_does(start, several, tmp_path):
    eight = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_NUM_CPU_DEVICES": "-1",  # as XLA_FLAGS say
    }
    done = ended(begin(start, several[0], tmp_path / "eight", **eight))
    assert [code for code, *_ in done] == [0], done
    one, eight = sweeps.table(several[1]), sweeps.table(tmp_path / "eight")
    assert set(one.device.str[:2]) == {"1 "} and set(eight.device.str[:2]) == {"8 "}
    assert one[["cell", "target"]].equals(eight[["cell", "target"]])
    assert set(eight.status) == {"done"}
    assert abs(one.psnr.mean() - eight.psnr.mean()) < 1
    np.testing.assert_allclose(one.update_rms, eight.update_rms, rtol=1e-4)


@pytest.mark.slow  # 20 s, most of it starting
def test_what_is_killed_twice_goes_on_to_the_same_table(start, several, tmp_path):
    flag, whole = several
    for count in (1, 2):
        killed = before_a_part("SIGKILL", tmp_path / "run", "part-*", count)
        process = begin(start, flag, tmp_path / "run", run=killed)
        ((code, *said),) = ended(process)
        assert code == -signal.SIGKILL, said
    ((code, out, err),) = ended(begin(start, flag, tmp_path / "run"))
    assert code == 0, err
    assert "27 targets, 0 of them failed" in out
    sweeps.assert_same(tmp_path / "run", whole)


@pytest.mark.slow  # 10 s
def test_two_processes_compute_what_one_does(start, several, tmp_path):
    """Who does what is left to chance."""
    flag, whole = several
    done = ended(*[begin(start, flag, tmp_path / "run") for _ in range(2)])
    assert [code for code, *_ in done] == [0] * 2, done
    sweeps.assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("flag", ["--coordinator=h:1", "--resume"])
def test_flags_of_other_commands_are_unknown(flag):
    """Here, experiments.reconstruct has defined them; in a sweep's process nobody."""
    code = "import sys, experiments.sweep.__main__ as s; sys.exit(s.main(sys.argv))"
    given = subprocess.run([sys.executable, "-c", code, flag], **PIPES)
    assert given.returncode == 2
    assert given.stderr.startswith("error: ") and given.stderr.count("\n") == 1
    assert flag.split("=")[0].strip("-") in given.stderr


@pytest.mark.parametrize("there", ["_leases/", "_partial-1"])
def test_a_folder_that_another_process_is_just_making(there, several, tmp_path):
    """Or has been killed while making it."""
    folder = tmp_path / "run"
    (folder / "_leases" if there == "_leases/" else folder).mkdir(parents=True)
    if there != "_leases/":
        (folder / there).write_text("{")
    cells = grid.read(several[0].removeprefix("--grid="))
    sweepdir.open_(str(folder), cells, overwrite=False)
    assert (folder / sweepdir.FILE).exists()


def test_a_block_that_was_lost_is_left_to_who_has_it(several, tmp_path, monkeypatch):
    """It is no bad input: this process goes on with the others, then with that one."""
    flag, whole = several
    held, asked = leases.held, []

    @contextlib.contextmanager
    def losing(folder, block):
        with held(folder, block) as still:
            asked.append(block)
            yield still if len(asked) > 1 else lambda: False

    monkeypatch.setattr(leases, "held", losing)
    assert sweeps.run(flag, f"--workdir={tmp_path / 'run'}") == 0
    sweeps.assert_same(tmp_path / "run", whole)


@pytest.fixture
def begun(tmp_path):
    """A folder that holds a sweep of seeds 0 and 1, and nothing of it done."""
    flag = sweeps.write(tmp_path, "seed = [0, 1]")
    found = grid.read(flag.removeprefix("--grid="))
    read = digests.of_runs((c.data, c.clients, c.victim) for c in found.cells)
    return sweepdir.open_(str(tmp_path / "run"), found, inputs=read, overwrite=False)


def _version(folder):
    file = folder / sweepdir.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "0.0.1"}))


@pytest.mark.parametrize(
    "text, change, says",
    [
        ("seed = [0, 2]", lambda folder: None, ["another grid", "seed: [0, 1]"]),
        ("seed = [0, 1]", _version, ["invertjax 0.0.1", "expected the same"]),
        (
            "seed = [0, 1]",
            lambda folder: (folder / sweepdir.FILE).write_text("{"),
            ["_sweep.json cannot be read"],
        ),
        (
            "seed = [0, 1]",
            lambda folder: (folder / sweepdir.FILE).rename(folder / "notes.txt"),
            ["holds other files"],
        ),
        (
            "seed = [0, 1]",
            lambda folder: (folder / "part-000-00000-00000.parquet").write_text("PAR1"),
            ["part-000-00000-00000.parquet cannot be read"],
        ),
    ],
    ids=["grid", "version", "unreadable", "foreign", "damaged"],
)
def test_folders_that_hold_something_else(text, change, says, begun, tmp_path, capsys):
    change(begun)
    line = sweeps.refused(capsys, sweeps.write(tmp_path, text), begun)
    for fragment in (str(begun), *says):
        assert fragment in line


def test_who_is_at_work_is_not_overwritten(begun, tmp_path, capsys):
    """Several may share a folder; none may empty it under another."""
    flag = sweeps.write(tmp_path, "seed = [0, 1]")
    with leases.held(begun / sweepdir.LEASES, "000-00000"):
        line = sweeps.refused(capsys, flag, begun, "--overwrite")
    assert f"--workdir={begun}: another process is at work" in line
    cells = grid.read(flag.removeprefix("--grid="))
    sweepdir.open_(str(begun), cells, overwrite=True)


def test_folders_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    flag = sweeps.write(tmp_path, "")
    (tmp_path / "file").write_text("")
    assert "is a file" in sweeps.refused(capsys, flag, tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root
    assert "no permission" in sweeps.refused(capsys, flag, tmp_path / "run")
