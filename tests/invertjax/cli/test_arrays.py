"""Files of arrays: paths as keys, exact round trips, and no Python objects."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import models
from invertjax.cli import arrays as updates

TREE = {
    "layers": {0: {"kernel": np.eye(2, 3, dtype=np.float32), "bias": np.ones(3)}},
    "scale": np.float32(2.5)[None],
}
KEYS = ["layers/0/bias", "layers/0/kernel", "scale"]


def _write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)


def _equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_keys_are_paths():
    assert list(updates.flat(TREE)) == KEYS
    assert list(updates.flat([np.ones(1), {"a": np.ones(1)}])) == ["0", "1/a"]


@pytest.mark.parametrize("suffix", updates.SUFFIXES)
def test_what_is_saved_is_loaded(suffix, tmp_path):
    path = tmp_path / f"update{suffix}"
    _write(path, updates.flat(TREE))
    _equal(updates.as_tree(updates.load(str(path), "--update"), TREE, "--update"), TREE)


def test_checkpoints_carry_notes_and_are_written_whole(tmp_path):
    path = str(tmp_path / "net.safetensors")
    updates.save(path, TREE, {"train_steps": "5"})
    assert updates.notes(path) == {"train_steps": "5"}
    _equal(updates.as_tree(updates.load(path, "--checkpoint"), TREE, ""), TREE)
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]
    _write(tmp_path / "other.safetensors", updates.flat(TREE))
    assert updates.notes(str(tmp_path / "other.safetensors")) == {}


@pytest.mark.parametrize("name", ["mlp", "resnet20"])
def test_params_of_the_models_have_unique_paths(name):
    net = models.build(name, image_shape=(16, 16, 3), num_classes=10, width=4)
    params = jax.eval_shape(net.init, jax.random.key(0))[0]
    flat = updates.flat(params)
    assert len(flat) == len(jax.tree.leaves(params))
    assert updates.as_tree(flat, params, "--params") == params
    assert all("/" in key and "'" not in key for key in flat)


def test_the_forms_of_a_tree():
    arrays = updates.flat(TREE)
    lists, integers, strings, modules = updates.forms(arrays)
    assert isinstance(lists["layers"], list) and "kernel" in lists["layers"][0]
    assert list(integers["layers"]) == [0] and list(strings["layers"]) == ["0"]
    assert list(modules) == ["layers/0", "scale"]
    for form in (lists, integers, strings, modules):
        assert list(updates.flat(form)) == KEYS


def test_eleven_layers_keep_their_order():
    first = next(updates.forms({f"layers/{i}": np.full(1, i) for i in range(11)}))
    assert [leaf[0] for leaf in first["layers"]] == list(range(11))


@pytest.mark.parametrize("names", [("w", "b"), ("1", "2"), ("0", "2"), ("0", "b")])
def test_other_names_are_dicts(names):
    (only,) = updates.forms({name: np.ones(1) for name in names})
    assert sorted(only) == sorted(names)


MISMATCHES = [
    (lambda a: a.pop("scale"), ["no array 'scale'", "(1,)"]),
    (lambda a: a.update(scales=a.pop("scale")), ["'scale'", "did you mean 'scales'"]),
    (lambda a: a.update(extra=np.ones(1)), ["'extra'", "layers/0/bias"]),
    (lambda a: a.update(scale=np.ones(2)), ["'scale'", "(2,)", "(1,)"]),
    (lambda a: a.update(scale=np.float32(1)), ["'scale'", "()", "(1,)"]),
]


@pytest.mark.parametrize("change, fragments", MISMATCHES)
def test_another_tree_is_refused(change, fragments):
    arrays = updates.flat(TREE)
    change(arrays)
    with pytest.raises(ValueError) as caught:
        updates.as_tree(arrays, TREE, "--update=u.npz")
    for fragment in ("--update=u.npz", *fragments):
        assert fragment in str(caught.value)


@pytest.mark.parametrize(
    "value, dtype, says",
    [
        (np.array([1.0, np.nan]), "float32", "not finite"),
        (np.array([1.0, -np.inf]), "float64", "not finite"),
        (np.array([1e300]), "float32", "finite float32"),
        (np.array([1, 2]), "float32", "int64: expected floats"),
        (np.array(["a"]), "float32", "expected floats"),
    ],
)
def test_only_finite_floats_are_accepted(value, dtype, says):
    with pytest.raises(ValueError, match=says) as caught:
        updates.as_floats({"a/b": value}, dtype, "--params=p.npz")
    assert "--params=p.npz" in str(caught.value) and "'a/b'" in str(caught.value)


@pytest.mark.parametrize("given", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "float64"])
def test_floats_take_the_precision_of_the_run(given, wanted):
    cast = updates.as_floats({"a": np.array([0.5, -2.0], given)}, wanted, "")
    assert cast["a"].dtype == wanted and cast["a"].tolist() == [0.5, -2.0]


def _pickled(path: pathlib.Path):
    np.savez(path, a=np.array([{"b": 1}], dtype=object))


def _single(path: pathlib.Path):
    with path.open("wb") as file:
        np.save(file, np.ones(2))


def _truncated(path: pathlib.Path):
    _write(path, {"a": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:600])


def _damaged(path: pathlib.Path):
    _write(path, {"a": np.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[500:600] = bytes(100)
    path.write_bytes(content)


BAD_FILES = [
    ("u.npz", lambda path: None, "no such file"),
    ("u.npz", lambda path: path.mkdir(), "no such file"),
    ("u.pkl", lambda path: path.write_bytes(b""), r"\*.npz or \*.safetensors"),
    ("u.pt", lambda path: path.write_bytes(b""), r"is a pickle.*u.pt.safetensors$"),
    ("u.npz", _pickled, "Python objects"),
    ("u.npz", lambda path: path.write_bytes(b""), "cannot be read"),
    ("u.npz", lambda path: path.write_bytes(b"not a zip file"), "cannot be read"),
    ("u.npz", _truncated, "cannot be read"),
    ("u.npz", _damaged, "cannot be read"),
    ("u.npz", lambda path: _write(path, {}), "no arrays"),
    ("u.npz", _single, "np.savez"),
    ("u.safetensors", lambda path: path.write_bytes(b""), "cannot be read"),
    ("u.safetensors", _truncated, "cannot be read"),
    ("u.safetensors", lambda path: path.write_bytes(b"{" * 99), "cannot be read"),
]


@pytest.mark.parametrize("name, make, says", BAD_FILES)
def test_files_that_cannot_be_read_are_refused(name, make, says, tmp_path):
    path = tmp_path / name
    make(path)
    with pytest.raises(ValueError, match=says) as caught:
        updates.load(str(path), f"--update={path}")
    assert str(caught.value).startswith(f"--update={path}")


# A state: leaves by number


def test_leaves_come_back_as_they_were(tmp_path):
    """Eleven, so that names are not sorted as text; of a device or of NumPy."""
    path = tmp_path / "state.npz"
    rest = [np.arange(i + 1) for i in range(10)]
    tree = {"round": np.int32(3), "rest": (jnp.ones(2), rest)}
    updates.save_leaves(path, tree)
    found = updates.load_leaves(path, jax.tree.map(np.zeros_like, tree))
    _equal(found, jax.device_get(tree))
    assert found["round"].dtype == np.int32
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "leaves, says",
    [
        ({"leaf_00000": np.zeros(3)}, "1 arrays: expected 2"),
        ({"leaf_00000": np.zeros(3), "leaf_00001": np.int8(0)}, "leaf_00001 .*int8"),
        ({"leaf_00000": np.zeros(2), "leaf_00001": 0}, r"leaf_00000 of shape \(2,\)"),
    ],
)
def test_leaves_of_another_tree_are_refused(leaves, says, tmp_path):
    path = tmp_path / "state.npz"
    np.savez(path, **leaves)
    with pytest.raises(ValueError, match=f"state.npz holds {says}"):
        updates.load_leaves(path, (np.zeros(3), np.int64(0)))


@pytest.mark.parametrize("make", [_pickled, _single, _truncated, _damaged])
def test_leaves_that_cannot_be_read_are_refused(make, tmp_path):
    path = tmp_path / "state.npz"
    make(path)
    with pytest.raises(ValueError, match="state.npz cannot be read"):
        updates.load_leaves(path, np.zeros(1000))


BFLOAT16 = {"layer": {"w": jnp.arange(3, dtype=jnp.bfloat16)}, "n": np.int32(4)}


def test_bfloat16_in_npz_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "update.npz"
    np.savez(path, w=np.asarray(BFLOAT16["layer"]["w"]))
    with pytest.raises(ValueError, match=r"'w'.*bfloat16.*float32, or as .safetensors"):
        updates.load(str(path), "--update")


def test_bfloat16_is_kept_in_what_we_write(tmp_path):
    path = str(tmp_path / "net.safetensors")
    updates.save(path, BFLOAT16)
    found = updates.load(path, "--update")["layer/w"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, BFLOAT16["layer"]["w"])
    updates.save_leaves(tmp_path / "state.npz", BFLOAT16)
    state = updates.load_leaves(tmp_path / "state.npz", BFLOAT16)
    assert state["layer"]["w"].dtype == jnp.bfloat16
    _equal(state, BFLOAT16)


HAIKU = {"net/~/a": {"w": np.ones((2, 3)), "b": np.ones(3)}, "net": {"w": np.ones(1)}}
NESTED = {"a": np.ones(1), "a/b": {"w": np.ones(2)}}  # an array, and a longer name


@pytest.mark.parametrize("tree", [HAIKU, NESTED], ids=["haiku", "nested"])
def test_names_may_have_slashes_in_them(tree, tmp_path):
    path = str(tmp_path / "net.safetensors")
    updates.save(path, tree)
    found = updates.load(path, "--params")
    _equal(updates.as_tree(found, tree, "--params"), tree)
    *_, form = updates.forms(found)
    _equal(form, tree)


def test_two_arrays_of_one_path_are_not_lost():
    with pytest.raises(ValueError, match="Two arrays have the path 'a/b/w'"):
        updates.flat({"a/b": {"w": np.ones(1)}, "a": {"b": {"w": np.ones(1)}}})


def test_nothing_and_empty_arrays_are_kept(tmp_path):
    tree = {"none": None, "empty": np.zeros((0, 2), np.float32), "w": np.ones(1)}
    path = str(tmp_path / "net.safetensors")
    updates.save(path, tree)
    _equal(updates.as_tree(updates.load(path, "--params"), tree, "--params"), tree)
