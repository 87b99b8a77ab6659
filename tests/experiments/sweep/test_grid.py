"""Grid files: what they expand to, in which order, and what is said of wrong ones."""

import pytest
from support import cli, sweeps

from experiments.settings import settings
from experiments.sweep import grid
from invertjax.cli import defense_text

FULL = """\
# a comment: seed = 9
dataset = "mnist"
model = "lenet"
attack = "inverting_gradients"
targets = 2
seed = {range = [0, 3]}
batch_size = [1, 4]
defense = [
  "none",
  "clip:1",
  ["clip:1", "gaussian:0.01"],
  {gaussian = {log = [1e-4, 1e-1], n = 4}},
]
"""
DEFENSES = [(), ("clip:1",), ("clip:1", "gaussian:0.01")]
DEFENSES += [(f"gaussian:{x}",) for x in (0.0001, 0.001, 0.01, 0.1)]
SIGN = defense_text.parse("sign")
resolved = cli.resolved


def value(cell, name):
    """As config.json has it: defenses are texts."""
    return settings.flat(cell)[name]


@pytest.fixture
def write(tmp_path):
    """Text (or bytes) to the path of a grid file that holds it."""

    def written(text):
        path = tmp_path / "grid.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return written


@pytest.fixture
def cells(write):
    """The cells of a text, settings given as keywords replacing its own."""
    return lambda text, **given: grid.read(write(text), given).cells


def test_the_last_axis_is_the_fastest(write):
    found = grid.read(write(FULL))
    shared = dict(dataset="mnist", model="lenet", attack="inverting_gradients")
    assert found.cells == [
        resolved(**shared, targets=2, seed=s, batch_size=b, defense=d)
        for s in range(3)
        for b in (1, 4)
        for d in DEFENSES
    ]
    assert list(found.axes) == ["seed", "batch_size", "defense"]
    *axes, defenses = found.axes.values()
    assert axes == [[0, 1, 2], [1, 4]]
    assert [tuple(map(str, defense)) for defense in defenses] == DEFENSES
    assert found.merged == 0


def test_what_a_file_leaves_out_has_its_defaults(cells):
    assert cells("# nothing") == [resolved()]
    assert cells('attack = "idlg"\n[[grid]]') == [resolved(attack="idlg")]


VALUES = [
    ("seed = [2, 0, 1]", [2, 0, 1]),
    ("x64 = [true, false]", [True, False]),
    ('model = ["mlp", "cnn"]', ["mlp", "cnn"]),
    ("attack_lr = [1, 0.5]", [1.0, 0.5]),
    ("seed = {range = [0, 3]}", [0, 1, 2]),
    ("seed = {range = [1, 8, 3]}", [1, 4, 7]),
    ("seed = {range = [4, -1, -2]}", [4, 2, 0]),
    ("seed.range = [0, 2]", [0, 1]),
    ("[seed]\nrange = [0, 2]", [0, 1]),
    ("attack_lr = {range = [1, 3]}", [1.0, 2.0]),
    # the decimals that one would write, both ends as they are
    ("attack_lr = {linear = [0.3, 0.7], n = 5}", [0.3, 0.4, 0.5, 0.6, 0.7]),
    ("attack_lr = {linear = [1, 2], n = 1}", [1.0]),
    ("attack_lr = {log = [1e-4, 0.1], n = 4}", [1e-4, 1e-3, 1e-2, 0.1]),
    ("attack_lr = {log = [8, 1], n = 4}", [8.0, 4.0, 2.0, 1.0]),
    ("attack_lr = {log = [1, 0.123456789012345], n = 2}", [1.0, 0.123456789012345]),
    ("steps = {log = [1, 1000], n = 3}", [1, 32, 1000]),  # 31.6 is no step count
    ('defense = "none"', [()]),
    ('defense = ["sign", "clip:1"]', [("sign",), ("clip:1",)]),
    ('defense = [["sign", "clip:1"]]', [("sign", "clip:1")]),
    ("defense = {clip = [1, 2.5]}", [("clip:1",), ("clip:2.5",)]),
    ("defense = [{prune = 0.5}]", [("prune:0.5",)]),
    ("defense = {quantise = {range = [2, 4]}}", [("quantise:2",), ("quantise:3",)]),
    ("defense = {gaussian = 1e-5}", [("gaussian:1e-05",)]),
]


@pytest.mark.parametrize("text, expected", VALUES, ids=lambda value: str(value)[:40])
def test_values_of_an_axis(cells, text, expected):
    name = text.strip("[").replace(".", " ").replace("]", " ").split()[0]
    found = [value(cell, name) for cell in cells(text)]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


def test_a_sweep_is_the_union_of_its_grids(write):
    text = 'seed = [0, 1]\nattack = "auto"\n[[grid]]\nattack = "gauss_newton"\n'
    text += "[[grid]]\ntotal_variation = [0.01, 0.1]\nseed = 5\n"
    found = grid.read(write(text))
    assert found.cells == [
        resolved(attack="gauss_newton", seed=0),
        resolved(attack="gauss_newton", seed=1),
        resolved(attack="auto", seed=5, total_variation=0.01),
        resolved(attack="auto", seed=5, total_variation=0.1),
    ]
    axes = dict(seed=[0, 1, 5], attack=["gauss_newton", "auto"])
    axes |= dict(total_variation=[None, 0.01, 0.1])
    assert found.axes == axes  # not model and steps, which follow from the attack


def test_what_resolves_alike_is_merged(write):
    text = "seed = [0, 1]\nsteps = [2000, 40]\n[[grid]]\n[[grid]]\nsteps = 2000\n"
    found = grid.read(write('attack = "auto"\n' + text))
    order = [(0, 2000), (0, 40), (1, 2000), (1, 40)]
    assert [(cell.run.seed, cell.attack.steps) for cell in found.cells] == order
    assert found.merged == 2 and len(set(found.cells)) == 4
    # A default that is written down is the default; 1 and 1.0 are the same strength.
    assert grid.read(write("[[grid]]\n[[grid]]\ntargets = 4\n")).merged == 1
    assert grid.read(write("defense = {clip = [1, 1.0]}")).merged == 1


def test_the_command_line_replaces_the_file(write, cells):
    text = FULL + '[[grid]]\nsteps = 3\n[[grid]]\nsteps = [4, 5]\nmodel = "cnn"\n'
    found = cells(text, steps=9, seed=2, defense=(SIGN,), local_steps=2)
    assert [cell.clients.batch_size for cell in found] == [1, 4, 1, 4]
    assert {cell.victim.model for cell in found} == {"lenet", "cnn"}
    for cell in found:
        assert (cell.attack.steps, cell.run.seed) == (9, 2)
        assert (cell.clients.local_steps, cell.clients.defense) == (2, (SIGN,))
    assert grid.read(write(FULL), {"seed": None}) == grid.read(write(FULL))


BILLION = "{range = [0, 1_000_000_000]}"


@pytest.mark.parametrize(
    "text, size",
    [
        ("seed = {range = [0, 100_001]}", 100_001),
        ("seed = {range = [0, 1000]}\nsteps = {range = [1, 1001]}", 10**6),
        (f"seed = {BILLION}\ntargets = {{linear = [1, 9], n = 1000}}", 10**12),
        ("attack_lr = {log = [1e-9, 1], n = 1_000_000_000_000}", 10**12),
        ("defense = {clip = {log = [1, 2], n = 1_000_000_000}}", 10**9),
        (f"seed = {BILLION}\nsteps = [5, 6]\n[[grid]]\nseed = 0\n[[grid]]", 2 + 2e9),
        (f"attack_lr = {{linear = [1, 2], n = {9 * 10**18}}}\nsteps = [7, 8]", 18e18),
    ],
)
def test_too_many_are_counted_without_making_them(write, text, size, monkeypatch):
    made = sweeps.counted(monkeypatch)
    with pytest.raises(grid.TooMany, match=f"toml: {int(size)} .* {grid.MOST}") as e:
        grid.read(write(text))
    assert len(made) == 1
    assert e.value.cells == size and e.value.first.run.seed == 0


def test_as_many_as_allowed_are_expanded(write, monkeypatch):
    monkeypatch.setattr(grid, "MOST", 6)
    assert len(grid.read(write("seed = {range = [0, 6]}")).cells) == 6
    with pytest.raises(grid.TooMany, match="7 combinations"):
        grid.read(write("seed = {range = [0, 7]}"))
    with pytest.raises(grid.TooMany, match="8 combinations") as error:
        grid.read(write("attack_lr = [1, 2]\nseed = {range = [3, 7]}"))
    assert error.value.first == resolved(attack_lr=1.0, seed=3)
    with pytest.raises(ValueError, match="attack_lr=1.0, seed=0: --attack_lr=1.0 does"):
        grid.read(write('attack="idlg"\nattack_lr = [1, 2]\nseed = {range = [0, 7]}'))


# The text, and what is said of it after the path.
REFUSED = [
    # keys, with near misses
    ("\n\nbatchsize = 4", [":3: batchsize = 4", "'batch_size'"]),
    ("\n[[grids]]\nseed = 1", [":2: grids", "'grid'"]),
    ("workdir = 'x'", [":1: workdir", "experiments.reconstruct"]),
    ("seed = 1\n[[grid]]\nseed = 2\n[[grid]]\nsed = 3", [":5: sed = 3", "'seed'"]),
    ("grid = [{sed = 3}]", [":", "sed = 3", "'seed'"]),
    ("update = 'u.npz'", [":1: --update=u.npz", "no axes"]),
    ("image_shape = [8, 8, 3]", [":1: --image_shape", "no axes"]),
    ("seed = 1\ncheckpoint = 'c'", [":2: --checkpoint=c", "every cell"]),
    ("null_control = false", [":1: --null_control=False", "single run"]),
    ("grid = []", [":1: grid = []", "[[grid]]"]),
    ("seed = 1\n[grid]\nsteps = 1", [":2: grid = ", "[[grid]]"]),
    # range tables
    # seeds that would be equal modulo 2^32
    ("seed = {range = [0, 5_000_000_000]}", [":1: --seed=4999999999", "at most"]),
    ("seed = 9223372036854775807", [":1: --seed=9223372036854775807", "2^32"]),
    ("seed = {rnage = [0, 3]}", [":1: seed = ", "rnage", "'range'"]),
    ("attack_lr = {lgo = [1, 2], n = 3}", [":1: attack_lr", "lgo", "'log'"]),
    # values that are wrong on their own
    ("steps = {range = [0, 3]}", [":1: --steps=0", "1 or more"]),
    ("steps = {range = [1_000_000, -2, -1]}", [":1: --steps=-1", "1 or more"]),
    ('model = ["cnn", "lenett"]', [":1: --model=lenett", "'lenet'"]),
    ("defense = 'prone:1'", [":1: --defense=prone:1", "'prune'"]),
    ("defense = ['none',\n'prune:1']", [":1: --defense=prune:1", "[0, 1)"]),
    ("defense = {prune = {linear = [0, 1], n = 3}}", [":1: --defense=prune:1:"]),
    ("defense = {sign = 1}", [":1: --defense=sign:1", "without a value"]),
    ("seed = 1\n[[grid]]\nsteps=1\n[[grid]]\n seed=-2", [":5: --seed=-2", "0 or more"]),
    # settings that do not fit together
    ("model = 'cnn'\nnorm_mode = 'eval'", [": --norm_mode=eval", "--norm=batch"]),
    (
        "steps = 9\nmodel = ['resnet20', 'cnn']\nseed = [0, 1]\nnorm_mode = 'eval'",
        [": model=cnn, seed=0: --norm_mode=eval", "--norm=batch"],
    ),
    (
        "attack_lr = 1\n[[grid]]\nattack = 'auto'\n[[grid]]\nattack = 'idlg'",
        [": attack=idlg: --attack_lr=1.0", "inverting_gradients"],
    ),
    ("defense = ['none', 'sign']\nlocal_lr = 0.1", [": defense=none: --local_lr=0.1"]),
    # not TOML
    ("seed = 1\nseed = {\n", [": ", "line 2", "TOML"]),
    ("seed = 1\nseed = 2\n", [": ", "line 2", "TOML"]),
    (b"seed = 1\n# \xff", [": ", "0xff", "UTF-8"]),
]


# What was expected of one-line files; each names its key and its value first.
EXPECTED = {
    "at least one": "seed = []; defense = []; defense = [[]]; defense = {clip = []}",
    "a whole number": "seed = '1'; seed = 1.0; seed = true; seed = [0, [1]]; "
    "seed = 1979-05-27; seed = 99999999999999999999; seed = {range = [0, 1.5]}; "
    "attack_lr = {range = [1, 1.5]}; seed = {linear = [0, 1.5], n = 2}",
    "a finite number": "attack_lr = 'fast'; attack_lr = [0.1, true]; attack_lr = nan; "
    "total_variation = -inf; attack_lr = {log = [1, inf], n = 2}; "
    "defense = {clip = '1'}; attack_lr = [{log = [1, 2], n = 2}]",
    "true or false": "x64 = 1; x64 = 'true'; x64 = {range = [0, 2]}",
    "a string": "model = 1; model = {range = [0, 2]}; model = ['cnn', false]",
    "NAME:VALUE": "defense = 1; defense = [['clip:1', 2]]; defense = {}; "
    "defense = [['clip:1', {prune = 0.5}]]; defense = {clip = 1, prune = 0.5}",
    "{range = [FIRST, STOP]}": "seed = {range = [0, 3], n = 3}; seed = {range = 3}; "
    "seed = {range = [0, 3], log = [1, 2]}; seed = {range = [3]}; "
    "seed = {range = [0, 3, 1, 1]}; seed = {range = [0, 3, 0]}",
    "not empty": "seed = {range = [3, 3]}; seed = {range = [0, 3, -1]}",
    "{linear = [LOW, HIGH], n = N}": "seed = {}; seed = {n = 3}; "
    "attack_lr = {linear = [1, 2]}; attack_lr = {linear = [1, 2, 3], n = 3}; "
    "attack_lr = {linear = [1, 2], n = 0}; attack_lr = {linear = 1, n = 2}",
    "N a whole number >= 1": "attack_lr = {log = [1, 2], n = -1}; "
    "seed = {log = [1, 2], n = 2.0}; defense = {clip = {log = [1, 2], n = true}}",
    "ends > 0": "attack_lr = {log = [0, 2], n = 2}; seed = {log = [2, -1], n = 2}",
}


@pytest.mark.parametrize(
    "text, expected",
    [(text, what) for what, texts in EXPECTED.items() for text in texts.split("; ")],
)
def test_wrong_values_are_refused_in_one_line(write, text, expected):
    key = text.split(" = ")[0]
    with pytest.raises(ValueError, match=rf"grid.toml:1: {key}[a-z.]* = ") as error:
        grid.read(write(text))
    said = str(error.value).partition(": expected ")[2]
    assert expected in said and said.endswith(".") and "\n" not in said


@pytest.mark.parametrize("text, fragments", REFUSED, ids=lambda value: str(value)[:40])
def test_wrong_files_are_refused_in_one_line(write, text, fragments):
    path = write(text)
    with pytest.raises(ValueError, match="grid.toml:") as error:
        grid.read(path)
    line = str(error.value)
    assert type(error.value) is ValueError and "\n" not in line
    assert line.startswith(f"{path}{fragments[0]}")
    assert all(fragment in line for fragment in fragments)
    assert line.endswith((".", "?")) or "unknown: expected one of" in line


def test_every_setting_of_a_given_update_is_refused(write):
    for name in ("update", "params", "num_classes"):
        with pytest.raises(ValueError, match=f":1: --{name}=x does not fit a sweep"):
            grid.read(write(f"{name} = 'x'"))
        with pytest.raises(ValueError, match=f"^--{name}=x does not fit a sweep"):
            grid.read(write(""), {name: "x"})


def test_wrong_flags_are_not_blamed_on_the_file(write):
    with pytest.raises(ValueError, match="^--steps=0: expected 1 or more"):
        grid.read(write("steps = [1, 2]"), {"steps": 0})


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="none.toml: No such file"):
        grid.read(str(tmp_path / "none.toml"))


def test_a_byte_order_mark_and_crlf_are_no_matter(cells, write):
    assert cells(b"\xef\xbb\xbfseed = 3\r\n") == [resolved(seed=3)]
    with pytest.raises(ValueError, match=":2: sed = 3"):
        grid.read(write("seed = 1\r\nsed = 3\r\n"))


def test_what_is_resolved_can_be_written_down(cells):
    local = dict(local_steps=2, batch_size=4, train_steps=3, defense=("clip:1",))
    cell = resolved(**local, model="resnet20", image_size=32, width=4)
    given = {k: v for k, v in settings.flat(cell).items() if v is not None}
    del given["null_control"]
    given["defense"] = list(given["defense"])
    text = "\n".join(f"{key} = {repr(value).lower()}" for key, value in given.items())
    assert cells(text) == [cell]
