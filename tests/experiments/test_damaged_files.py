"""A few damaged files, as real commands see them: exit code 2, one line, the name."""

import os

from support import processes

start = processes.start  # a fixture


def test_commands_refuse_damaged_files_in_a_line(start, tmp_path):
    """A run, a table, an update and a plan, by as many commands at once."""
    run, swept = tmp_path / "run", tmp_path / "swept"
    run.mkdir()
    swept.mkdir()
    (run / "config.json").write_bytes(b'{"settings": ' + b"[" * 10**5)
    (swept / "part-0.parquet").write_bytes(b"PAR1" + os.urandom(99) + b"PAR1")
    (tmp_path / "update.npz").write_bytes(b"\x80\x04K\x01.")  # a pickle
    (tmp_path / "plan.toml").write_text("[federation]\nrounds = " + "9" * 400)
    given = ["--batch_size=1", "--image_shape=8,8,3", f"--params={tmp_path}/update.npz"]
    commands = {
        "config.json": ["federate", f"--workdir={run}", "--resume"],
        "part-0.parquet": ["show", f"--workdir={swept}"],
        "update.npz": ["reconstruct", f"--update={tmp_path}/update.npz", *given],
        "plan.toml": ["frontier", f"--plan={tmp_path}/plan.toml"],
    }
    started = {
        name: start("-m", f"experiments.{command}", *args)
        for name, (command, *args) in commands.items()
    }
    for name, process in started.items():
        out, err = process.communicate(timeout=processes.HANG_SECONDS)
        assert (process.returncode, out) == (2, ""), (name, err)
        assert err.startswith("error: ") and err.count("\n") == 1 and name in err
