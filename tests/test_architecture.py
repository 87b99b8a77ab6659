"""The rooms, the arrows between them and what each may touch, read from the source."""

import ast
import functools
import pathlib
import sys
import tomllib

import pytest

from invertjax.auditing import attackers
from invertjax.defenses.protections import PROTECTIONS

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
OPTIONAL = {
    "invertjax/defenses/accounting.py": {"dp_accounting"},
    "invertjax/adapters/equinox_module.py": {"equinox"},
    "invertjax/adapters/flax_linen.py": {"flax"},
    "invertjax/adapters/flax_nnx.py": {"flax"},
    "invertjax/cli/own_model.py": {"flax"},
    "invertjax/adapters/torch_module.py": {"torch", "torchax"},
}
# What makes bytes is imported when called, so that the library does without.
OF_REPORTS = {"PIL"}
# The one arrow from a pure room to the edge, where it is called.
TO_THE_EDGE = {"invertjax/auditing/report.py"}
# Whoever else needs a fact about an attack or a defense reads its row.
ROWS = {"invertjax/auditing/attackers.py", "invertjax/defenses/protections.py"}


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


def inside(tree):
    """The functions of a file, and the methods of its classes."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return ast.Module(found, [])


class _WithoutBodies(ast.NodeTransformer):
    def visit_FunctionDef(self, node):
        return None


def at_once(tree):
    """What a file does when it is imported: all but its functions."""
    return _WithoutBodies().visit(ast.parse(ast.unparse(tree)))


def allowed(file):
    if file.startswith("models/"):
        return OF_MODELS
    return OF_EDGE if is_edge(file) else OF_PURE


@pytest.mark.parametrize("package", ["invertjax", "models"])
def test_packages_import_only_what_they_may(package):
    for file, tree in trees(package).items():
        extra = packages(tree) - STDLIB - allowed(file) - OPTIONAL.get(file, set())
        if file.startswith("invertjax/reports/"):
            extra -= OF_REPORTS & packages(inside(tree))
        assert not extra, f"{file} imports {sorted(extra)}"


@pytest.mark.parametrize(
    "file, wanted",
    [
        *OPTIONAL.items(),
        ("invertjax/reports/pictures.py", OF_REPORTS),
    ],
)
def test_optional_imports_wait_for_a_call(file, wanted):
    tree = trees("invertjax")[file]
    assert wanted <= packages(inside(tree)) and not wanted & packages(at_once(tree))


def test_the_arrow_to_the_edge_waits_for_a_call():
    for file in TO_THE_EDGE:
        names = set(modules(at_once(trees("invertjax")[file])))
        assert not any(name.startswith("invertjax.cli") for name in names)


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


def named_in_comparisons(tree, names):
    """Names of rows that a file compares something with, or lists."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            texts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            texts = [node.value]
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            texts = node.elts if len(node.elts) > 1 else []
        elif isinstance(node, ast.Dict) and len(node.keys) > 1:
            texts = node.keys
        else:
            continue
        found = {t.value for t in texts if isinstance(t, ast.Constant)}
        lists = not isinstance(node, ast.Compare | ast.MatchValue)
        # A list of one name among other words is not a list of rows.
        if found & names and (not lists or found <= names):
            yield from found & names


@pytest.mark.parametrize("package", ["invertjax", "experiments"])
def test_nobody_but_the_rows_names_an_attack_or_a_defense(package):
    laws = {row.protection.law for row in PROTECTIONS.values()}  # of noise, too
    names = {*attackers.NAMES, *PROTECTIONS} - laws
    for file, tree in trees(package).items():
        if file not in ROWS:
            found = set(named_in_comparisons(tree, names))
            assert not found, f"{file} compares with {sorted(found)}"


def test_that_a_name_in_a_comparison_would_be_found():
    names = {"posterior", "prune"}
    for text in (
        'a == "prune"',
        'a in ("posterior", "prune")',
        '{"prune": 1, "posterior": 2}',
    ):
        assert set(named_in_comparisons(ast.parse(text), names)), text
    for text in ('f(attack="prune")', '("prune", "stop")', 'a == "none"'):
        assert not set(named_in_comparisons(ast.parse(text), names)), text


def test_no_function_takes_all_settings():
    """Topics do; only what reads settings as a whole, or runs many, may not choose."""
    whole = ("experiments/settings/", "experiments/audit/run.py")
    whole += ("experiments/audit/cost.py",)  # of runs
    whole += tuple(f"experiments/{name}/" for name in COMMANDS)
    for package in ("experiments", "invertjax"):
        for file, tree in trees(package).items():
            if file.startswith(whole):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.arg) and node.annotation is not None:
                    assert "Settings" not in ast.unparse(node.annotation), (
                        f"{file}: {node.arg}"
                    )


def functions(tree):
    """The functions and methods of a file, without those inside of functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node)


@pytest.mark.parametrize("package", ["invertjax", "experiments"])
def test_every_function_is_annotated(package):
    for file, tree in trees(package).items():
        for node in functions(tree):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in given if a.annotation is None]
            bare = [name for name in bare if name not in ("self", "cls")]
            assert not bare, f"{file}: {node.name}({', '.join(bare)})"
            assert node.returns is not None or node.name == "__init__", (
                f"{file}: {node.name}"
            )


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
