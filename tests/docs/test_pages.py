"""What the pages show is run: snippets, commands, links, grids.

Snippets of one page share their names, and start with those of `names`.
"""

import importlib
import re
import sys
import tomllib
import types

import jax
import pytest
from absl import flags
from support import cli, pages, toy

from experiments import demo
from experiments.federate import __main__ as federate
from experiments.frontier import __main__ as frontier
from experiments.reconstruct import __main__ as reconstruct
from experiments.settings import settings
from experiments.show import __main__ as show
from experiments.sweep import __main__ as sweep
from experiments.sweep import grid
from invertjax import attacks, candidates, clients, smoothing
from invertjax.cli import __main__ as installed
from invertjax.cli import audit, setting

COMMANDS = {
    "demo": demo,
    "federate": federate,
    "frontier": frontier,
    "reconstruct": reconstruct,
    "show": show,
    "sweep": sweep,
}
PROJECT = tomllib.loads((pages.ROOT / "pyproject.toml").read_text("utf-8"))
RUN = [page for page in pages.PAGES if pages.snippets(page)]


def names():
    """What a reader has: images, a model, an update."""
    nnx = pytest.importorskip("flax.nnx")
    batch, params = toy.batch(1), toy.init(0)
    share, key = toy.at(params), jax.random.key(0)
    return {
        "images": batch["image"],
        "labels": batch["label"],
        "batch": batch,
        "dataset": toy.batch(0, size=24),
        "loss_fn": toy.loss_fn,
        "params": params,
        "model": nnx.Sequential(
            lambda images: images.reshape(len(images), -1),
            nnx.Linear(36, toy.CLASSES, rngs=nnx.Rngs(0)),
        ),
        "net": types.SimpleNamespace(blocks=toy.BLOCKS),
        "key": key,
        "share": share,
        "update": jax.jit(share)(batch),
        "guess": candidates.pixels(batch["image"].shape, batch["label"]),
        "attacks": attacks,
        "candidates": candidates,
        "clients": clients,
        "smoothing": smoothing,
    }


@pytest.mark.parametrize("page", RUN)
def test_snippets_run(page, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    _swept(tmp_path / "runs" / "my")
    # What runs for minutes in a reader's hands runs for a second here.
    quick = attacks.inverting_gradients.__kwdefaults__
    monkeypatch.setitem(quick, "steps", 20)
    _run(page, [snippet for snippet in pages.snippets(page) if not snippet.needs])
    if page == "docs/your_model.md":
        assert "prune:0.99" in capsys.readouterr().out
        assert (tmp_path / "runs" / "mine" / "grid.png").exists()


@pytest.mark.parametrize(
    "page", [p for p in RUN if any(snippet.needs for snippet in pages.snippets(p))]
)
def test_snippets_that_need_more_than_tests_do(page):
    """They stand on their own, as they cannot run everywhere."""
    snippets = [snippet for snippet in pages.snippets(page) if snippet.needs]
    for module in {module for snippet in snippets for module in snippet.needs}:
        pytest.importorskip(module, reason=f"a snippet of {page} needs {module}")
    _run(page, snippets)


def _run(page, snippets):
    scope = names()
    for code, _ in snippets:
        exec(compile(code, page, "exec"), scope)


def _swept(folder):
    """Leaves the table of a sweep."""
    pandas = pytest.importorskip("pandas")
    folder.mkdir(parents=True)
    rows = {"defense_name": ["gaussian", "prune"], "strength": [0.1, 0.9]}
    pandas.DataFrame({**rows, "psnr": [20.0, 15.0]}).to_parquet(folder / "part.parquet")


@pytest.mark.parametrize("page", [p for p in pages.PAGES if pages.commands(p)])
def test_commands_are_parsed_by_their_own_flags(page, monkeypatch, capsys):
    monkeypatch.chdir(pages.ROOT)
    for words in pages.commands(page):
        _check(words)
        capsys.readouterr()


def _check(words):
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", pages.text("Makefile"), re.M)
        assert [w for w in words[1:] if "=" not in w][-1] in targets, words
    elif words[:2] == ["pip", "install"]:
        extras = ",".join(re.findall(r"\[(.*)\]", words[2]))
        known = PROJECT["project"]["optional-dependencies"]
        assert set(filter(None, extras.split(","))) <= set(known), words
    elif words[0] == "invertjax":
        assert installed.main([*words, "--help"]) == 0, words
    elif words == ["python", "-m", "experiments"]:
        pass
    elif words[:2] == ["python", "-m"] and words[2].startswith("experiments."):
        _check_experiment(words[2].removeprefix("experiments."), words[3:])
    elif words[:2] == ["python", "-m"] and words[2].partition(".")[0] == "benchmarks":
        _check_benchmark(words[2], words[3:])
    elif words[:3] == ["python", "-m", "pytest"]:
        paths = [word for word in words[3:] if "/" in word]
        assert all((pages.ROOT / path).exists() for path in paths), words
    elif words[0] == "sed":
        assert all((pages.ROOT / path).exists() for path in words[3:]), words
    else:
        raise AssertionError(f"No test knows the command {words}.")


def _check_experiment(name, arguments):
    assert cli.run_script(COMMANDS[name], *arguments, "--help") == 0, arguments
    if name == "reconstruct" and "--helpshort" not in arguments:
        values = flags.FlagValues()
        for record in reconstruct.RECORDS:
            setting.define(record, values)
        values([name, *arguments])
        settings.resolve(settings.given(values))


def _check_benchmark(module, arguments):
    """By its text: importing it would set up JAX for a measurement."""
    path = pages.ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    known = re.findall(r'add_argument\(\s*"(--\w+)"', path.read_text("utf-8"))
    given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    assert set(given) <= set(known), f"{module} has {known}, not all of {arguments}"


@pytest.mark.parametrize("page", pages.PAGES)
def test_flags_are_those_of_a_command(page):
    known = {"help", "helpshort", "version", *audit.flag_names()}
    for module in COMMANDS.values():
        for record in _records(module):
            known |= set(setting.rules(record))
    text = "".join(
        p.read_text("utf-8") for p in (pages.ROOT / "benchmarks").glob("*.py")
    )
    known |= set(re.findall(r'"--(\w+)"', text))
    for name in pages.flags(page):
        assert name in known or name.removeprefix("no") in known, name


def _records(module):
    return getattr(module, "RECORDS", ()) or (getattr(module, "Asked", demo.Demo),)


@pytest.mark.parametrize("page", pages.PAGES)
def test_links_lead_somewhere(page):
    for path in pages.links(page):
        assert (pages.ROOT / path).exists(), path


@pytest.mark.parametrize("page", [p for p in pages.PAGES if pages.snippets(p, "toml")])
def test_grids_are_read(page, tmp_path):
    for i, (code, _) in enumerate(pages.snippets(page, "toml")):
        path = tmp_path / f"{i}.toml"
        path.write_text(code, "utf-8")
        assert grid.read(str(path)).cells


def test_the_diff_of_a_real_attack_is_that_of_the_code():
    path, lines = "", {}
    for code, _ in pages.snippets("CONTRIBUTING.md", "diff"):
        for line in code.splitlines():
            if line.startswith("+++ b/"):
                path = line.removeprefix("+++ b/")
            else:
                lines.setdefault(path, []).append(line.removeprefix("+"))
    assert len(lines) == 3
    for path, added in lines.items():
        kept = iter(pages.text(path).splitlines())
        assert all(line in kept for line in added), path  # in this order


def test_the_readme_is_short():
    assert len(pages.text("README.md").splitlines()) < 150
    assert len(pages.text("BUILD_NOTES.md").splitlines()) <= 60


def test_lines_fit_a_screen():
    """But for tables, whose rows cannot be broken."""
    for page in pages.PAGES:
        if page == "CHANGELOG.md":
            continue
        for line in pages.text(page).splitlines():
            assert len(line) <= 100 or line.startswith("|"), f"{page}: {line}"


def test_the_address_stands_in_one_place():
    repository = PROJECT["project"]["urls"]["Repository"]
    assert f"repository-code: {repository}\n" in pages.text("CITATION.cff")
    for url in PROJECT["project"]["urls"].values():
        assert url.startswith(repository)
    assert repository not in pages.text("README.md")


def test_links_of_the_wheel_s_readme_are_absolute(monkeypatch):
    hatch = types.ModuleType("hatchling.metadata.plugin.interface")
    hatch.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, hatch.__name__, hatch)
    spec = importlib.util.spec_from_file_location("hook", pages.ROOT / "hatch_build.py")
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    given = "![a](docs/demo.png) [b](docs/x.md#y) [c](#z) [d](https://e.org/f)"
    assert hook.absolute(given, "https://h") == (
        "![a](https://h/raw/HEAD/docs/demo.png) [b](https://h/blob/HEAD/docs/x.md#y) "
        "[c](#z) [d](https://e.org/f)"
    )
    metadata = {"urls": {"Repository": "https://h"}}
    made = hook.Readme()
    made.root = str(pages.ROOT)
    made.update(metadata)
    assert not re.findall(r"\]\((?!https?:|#)", metadata["readme"]["text"])
