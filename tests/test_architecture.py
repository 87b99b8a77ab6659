"""The rooms, the arrows between them and what each may touch, read from the source."""

import ast
import functools
import pathlib
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINES = 300  # of a file, at most
FLOORS = 6  # of the packages of experiments, at most
FLAT_FILES = 12  # of experiments, at most
COMMANDS = {"reconstruct", "federate", "sweep", "frontier", "show", "demo"}

STDLIB = set(sys.stdlib_module_names)
EDGES = ("invertjax/cli/",)  # rooms that may touch files and flags
OF_PURE = {"invertjax", "jax", "optax", "numpy", "scipy"}
OF_EDGE = OF_PURE | {"absl", "safetensors", "tqdm"}
OF_MODELS = {"models", "flax", "jax"}
# Imported when called, by one file alone, and not needed to install the rest.
OPTIONAL = {"invertjax/defenses/accounting.py": {"dp_accounting"}}
# The one arrow from a pure room to the edge, where it is called.
TO_THE_EDGE: set[str] = set()


def sources(package):
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, package
    return found


@functools.cache
def trees(package):
    return {
        where(path): ast.parse(path.read_text("utf-8")) for path in sources(package)
    }


def where(path):
    return path.relative_to(ROOT).as_posix()


def is_edge(file):
    return file.startswith(EDGES)


def modules(tree):
    """Every module that a file imports, wherever it does: `a.b` of `from a import b`
    as well as `a`, since b may be a module or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(tree):
    """Top-level names of what a file imports."""
    return {name.partition(".")[0] for name in modules(tree)}


def used(tree):
    """Everything that a file names, as `a.b` or `a`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            yield ast.unparse(node)


def allowed(file):
    if file.startswith("models/"):
        return OF_MODELS
    return OF_EDGE if is_edge(file) else OF_PURE


@pytest.mark.parametrize("package", ["invertjax", "models"])
def test_packages_import_only_what_they_may(package):
    for file, tree in trees(package).items():
        extra = packages(tree) - STDLIB - allowed(file) - OPTIONAL.get(file, set())
        assert not extra, f"{file} imports {sorted(extra)}"


@pytest.mark.parametrize("file", OPTIONAL)
def test_optional_imports_wait_for_a_call(file):
    tree = trees("invertjax")[file]
    assert OPTIONAL[file] <= packages(tree)
    at_once = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert not OPTIONAL[file] & packages(ast.Module(at_once, []))


def test_pure_rooms_touch_no_files_flags_or_command_lines():
    for file, tree in trees("invertjax").items():
        if not is_edge(file):
            extra = packages(tree) & {"argparse", "logging", "os", "pathlib"}
            assert not extra, f"{file} imports {sorted(extra)}"


def test_pure_rooms_do_not_import_the_edge():
    rooms = {edge.rstrip("/").replace("/", ".") for edge in EDGES}
    arrows = {
        file
        for file, tree in trees("invertjax").items()
        for name in modules(tree)
        if not is_edge(file) and any((name + ".").startswith(r + ".") for r in rooms)
    }
    assert arrows == TO_THE_EDGE


def test_only_the_driver_compiles():
    compiling = {
        file
        for file, tree in trees("invertjax").items()
        if not is_edge(file) and {"jax.jit", "jax.pmap"} & {*used(tree), *modules(tree)}
    }
    assert {file.rpartition("/")[0] for file in compiling} == {"invertjax/driver"}


@pytest.mark.parametrize("package", ["invertjax", "models"])
def test_libraries_do_not_print(package):
    for file, tree in trees(package).items():
        if not is_edge(file):
            assert not {"print", "jax.debug.print"} & set(used(tree)), file


def room(module):
    """The package of experiments that a module is in, or the flat file itself."""
    return ".".join(module.split(".")[:2])


def rooms():
    """The rooms of experiments, each with the rooms that it imports."""
    found = {}
    for file, tree in trees("experiments").items():
        here = room(file.removesuffix(".py").replace("/", "."))
        arrows = {
            room(name) for name in modules(tree) if name.startswith("experiments.")
        }
        found.setdefault(here, set()).update(arrows - {here})
    return {here: arrows & set(found) for here, arrows in found.items()}


def test_experiments_stand_on_few_floors_without_a_circle():
    left, floors = rooms(), 0
    while left:
        lowest = {here for here, arrows in left.items() if not arrows & set(left)}
        assert lowest, f"a circle among {sorted(left)}"
        left = {here: arrows for here, arrows in left.items() if here not in lowest}
        floors += 1
    assert floors <= FLOORS
    flat = [path for path in (ROOT / "experiments").glob("*.py")]
    assert len(flat) <= FLAT_FILES


def test_nobody_imports_a_main():
    """What a second command needs moves down a floor."""
    for file, tree in trees("experiments").items():
        for name in modules(tree):
            assert not name.endswith("__main__"), f"{file} imports {name}"


def test_every_command_is_a_folder_or_a_file_of_its_own_name():
    for name in COMMANDS:
        folder = ROOT / "experiments" / name / "__main__.py"
        assert folder.exists() or (ROOT / "experiments" / f"{name}.py").exists()


@pytest.mark.parametrize("package", ["invertjax", "models", "experiments"])
def test_files_are_short_and_not_called_utils(package):
    for path in sources(package):
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= LINES, f"{where(path)} has {lines} lines"
        assert "util" not in path.name, where(path)


def test_only_the_library_is_packaged():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    wheel = config["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": ["invertjax"]}
    names = {name.split(">")[0] for name in config["project"]["dependencies"]}
    assert names == OF_PURE - {"invertjax"}
    extra = {
        name.split(">")[0] for name in config["project"]["optional-dependencies"]["cli"]
    }
    assert names | extra == (OF_EDGE - {"invertjax", "absl"}) | {"absl-py"}


def test_tests_mirror_the_packages():
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests")
        assert (ROOT / folder).is_dir() or folder.name == "validation", where(path)
    assert not list((ROOT / "tests").glob("test_[!a]*.py"))
