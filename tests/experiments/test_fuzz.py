"""Damaged files of every kind: they are read, or refused in one line that names them.

Seeds are fixed. Nothing else may come of it: no other exception, no warning, no second
line, no memory.
"""

import pathlib
import resource

import pytest
from support import cli, fuzzed
from support.mutations import BYTES, JSON, NPZ, TABLE, TEXT, mutated

MEMORY = 300e6  # bytes, beyond what was held before

cheap_compilation = cli.cheap_compilation  # a fixture

MADE = {
    "reconstruct": fuzzed.reconstruction,
    "federate": fuzzed.federated,
    "frontier": fuzzed.frontiers,
    "sweep": fuzzed.swept,
    "show": fuzzed.shown,
    "update": fuzzed.given_update,
    "safetensors": fuzzed.safe_update,
    "network": fuzzed.trained,
    "typed": fuzzed.typed,
    "lease": fuzzed.leased,
}
PART = "part-000-00000-00000.parquet"
# (of which folder, the file, mutations, twice how many of them in the daily suite)
KINDS = [
    ("reconstruct", "config.json", JSON, 80),
    ("reconstruct", "metrics.jsonl", JSON, 250),
    ("reconstruct", "summary.json", JSON, 60),
    ("reconstruct", "reconstructions.npz", NPZ, 120),
    ("federate", "config.json", JSON, 40),
    ("federate", "metrics.jsonl", JSON, 200),
    ("federate", "summary.json", JSON, 30),
    ("federate", "state.npz", NPZ, 80),
    ("frontier", "federation.json", JSON, 40),
    ("frontier", "trainings.jsonl", JSON, 20),
    ("frontier", "labels.jsonl", JSON, 20),
    ("frontier", f"attacks/{PART}", TABLE, 30),
    ("sweep", "_sweep.json", JSON, 80),
    ("sweep", PART, TABLE, 60),
    ("show", PART, TABLE, 15),
    ("show", fuzzed.PICTURE, BYTES, 8),
    ("update", "update.npz", NPZ, 150),
    ("update", "params.npz", NPZ, 40),
    ("safetensors", "update.safetensors", TEXT, 80),
    ("network", "net.safetensors", TEXT, 100),
    ("typed", "run.flags", TEXT, 100),
    ("typed", "plan.toml", TEXT, 100),
    ("lease", "block", JSON, 60),
]
NAMES = [f"{folder}-{pathlib.Path(name).name}" for folder, name, _, _ in KINDS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders by name, each made when it is first asked for."""
    found: dict[str, fuzzed.Files] = {}

    def get(name: str) -> fuzzed.Files:
        if name not in found:
            folder = tmp_path_factory.mktemp("fuzz") / name
            found[name] = MADE[name](folder)
            with fuzzed.restored(folder):
                assert fuzzed.told(found[name].read) == (0, "")
        return found[name]

    return get


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(files: fuzzed.Files, name: str, how: list, seeds: range) -> None:
    whole, wrong = (files.folder / name).read_bytes(), []
    with fuzzed.quick():
        before, refused = peak(), 0
        for seed in seeds:
            try:
                code, err = fuzzed.damaged(files, name, mutated(whole, how, seed))
            except BaseException as error:
                wrong.append((seed, f"{type(error).__name__}: {error}"[:200]))
                continue
            refused += code == 2
            named = pathlib.Path(name).name in err or " --" in err
            a_line = err.startswith("error: ") and err.count("\n") == 1 and named
            nothing = code == 1 and err.startswith("error: nothing to show: all ")
            if not ((code == 0 and not err) or (code == 2 and a_line) or nothing):
                wrong.append((seed, (code, err[:300])))
    assert not wrong, f"{len(wrong)} of {len(seeds)}: {wrong[:5]}"
    assert name == "block" or refused > len(seeds) // 10
    assert peak() < before + MEMORY


@pytest.mark.parametrize("folder, name, how, count", KINDS, ids=NAMES)
def test_what_is_damaged_is_read_or_refused_in_a_line(made, folder, name, how, count):
    check(made(folder), name, how, range(count // 2))


@pytest.mark.slow
@pytest.mark.parametrize("folder, name, how, count", KINDS, ids=NAMES)
def test_the_same_of_many_more(made, folder, name, how, count):
    check(made(folder), name, how, range(10**6, 10**6 + 20 * count))
