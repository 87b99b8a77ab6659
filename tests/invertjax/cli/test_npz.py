"""Nothing of a .npz is loaded that its own headers do not account for."""

import io
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest

from invertjax.cli import arrays, npz


class Bomb:
    """Leaves a file behind, wherever it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def member(descr, shape, data=b""):
    """An .npy whose header says so."""
    file = io.BytesIO()
    said = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + data


def packed(path, members, how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return str(path)


def test_objects_are_never_unpickled(tmp_path):
    """However they are wrapped."""
    harm = tmp_path / "harm"
    objects = np.array([Bomb(harm)], dtype=object)
    np.savez(tmp_path / "objects.npz", a=objects)
    raw = pickle.dumps(Bomb(harm))
    packed(tmp_path / "said.npz", [("a.npy", member("|O", (1,), raw))])
    packed(tmp_path / "raw.npz", [("a.npy", raw)])
    packed(tmp_path / "inside.npz", [("a.npy", member([("x", "|O")], (1,), raw))])
    (tmp_path / "alone.npz").write_bytes(raw)
    for file in sorted(tmp_path.glob("*.npz")):
        with pytest.raises(ValueError, match=file.name):
            arrays.load(str(file), f"--update={file}")
        with pytest.raises(ValueError, match=file.name):
            arrays.load_leaves(file, np.zeros(1))
    assert not harm.exists()


@pytest.mark.parametrize(
    "members, says",
    [
        ([("a.npy", member("<f4", (10**12,)))], "not of the size that its header says"),
        ([("a.npy", member("<f4", (2**62, 4)))], "not of the size"),
        ([("a.npy", member("<f4", (-1,)))], "not of the size"),
        ([("a.npy", member("<U99999999", ()))], "not of the size"),
        ([("a.npy", member("<f4", (1,), b"12345"))], "not of the size"),
        ([("a.npy", b"text, and no array")], "magic"),
        ([("a", member("<f4", (1,), b"1234"))], "no array as np.savez writes it"),
        ([("a.npy", member("<M8[s]", (0,)))], "of type datetime64"),
        ([("x" * 2000 + ".npy", member("<f4", (0,)))], "name of 2000 characters"),
        ([("/".join("x" * 200) + ".npy", member("<f4", (0,)))], '199 times "/"'),
    ],
)
def test_headers_that_do_not_fit_are_refused(members, says, tmp_path):
    path = packed(tmp_path / "u.npz", members)
    with pytest.raises(npz.Unreadable, match=says):
        npz.read(path)


def test_what_unpacks_to_too_much_is_refused_before_it_does(tmp_path):
    """A megabyte for a quarter of a gigabyte: by what it says, which is true."""
    path = tmp_path / "zeros.npz"
    zeros = member("<f4", (2**26,), b"")
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(zeros)
        for _ in range(2**6):
            stream.write(bytes(2**22))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(npz.Unreadable, match="would take 268435456 bytes"):
        npz.read(str(path), 1e6)
    with pytest.raises(ValueError, match="state.npz"):
        arrays.load_leaves(path.rename(tmp_path / "state.npz"), np.zeros(3))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1e5  # kB


def test_two_arrays_of_one_name_are_refused(tmp_path):
    array = member("<f4", (0,))
    with pytest.warns(UserWarning, match="Duplicate"):
        path = packed(tmp_path / "u.npz", [("a.npy", array), ("a.npy", array)])
    with pytest.raises(npz.Unreadable, match="one name"):
        npz.read(path)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_refused(how, tmp_path):
    path = packed(tmp_path / "u.npz", [("a.npy", member("<f4", (0,)))], how)
    with pytest.raises(npz.Unreadable, match="no array as np.savez writes it"):
        npz.read(path)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_whatever_numpy_writes_is_read(write, tmp_path):
    kept = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "a/b": np.float16([1, 2]),
        "n": np.int8(3),
        "big": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2)),
        "z": np.ones(2, complex),
        "text": np.array(["x", "yz"]),
        "yes": np.array([True]),
    }
    write(tmp_path / "u.npz", **kept)
    found = npz.read(str(tmp_path / "u.npz"))
    np.testing.assert_equal(found, kept)
    assert {k: v.dtype for k, v in found.items()} == {
        k: v.dtype for k, v in kept.items()
    }
