"""What every command does first: it asks for no home, and writes where it can."""

import os
import pwd
import warnings

import jax
import pytest

from invertjax.cli import startup

NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def configured(monkeypatch):
    """Puts back what a command configures."""
    before = {name: jax.config.values[name] for name in NAMES}
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def cache_of_a_command():
    startup.quiet_and_cached()
    return jax.config.values["jax_compilation_cache_dir"]


def test_programs_are_kept_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_of_a_command() == str(tmp_path / ".cache" / "invertjax" / "jax")


def test_a_user_that_nobody_knows_has_no_home(monkeypatch):
    """As in many containers: no HOME, and no entry in the system's list of users."""

    def unknown(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_of_a_command() is None


@pytest.mark.parametrize("kind", ["a file", "not there", "read only"])
def test_a_home_where_nothing_can_be_written(monkeypatch, tmp_path, kind):
    home = tmp_path / "home"
    if kind == "a file":
        home.write_text("")
    elif kind == "not there":
        home = home.joinpath("x" * 300)  # a name too long to be made
    else:
        (home / ".cache" / "invertjax" / "jax").mkdir(parents=True)
        # Who may do everything, as some test machines' users, is not asked.
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setenv("HOME", str(home))
    assert cache_of_a_command() is None


def test_a_core_is_one_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert startup._cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert startup._cores() == 64
