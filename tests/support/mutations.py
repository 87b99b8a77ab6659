"""What can happen to a file: cut, flipped, doubled, or written by somebody else.

Every mutation is a function of the content and of a `random.Random`.
"""

import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas

Mutation = Callable[[bytes, random.Random], bytes]

NASTY: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**63, -(2**63), 10**400, 0.5),
    *(1e-320, -0.0, 1e18, 1.7e308, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "x",
        "1",
        "nan",
        "budget",
        "interrupted",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "x" * 999,
    ),
    *([], [None], [1, "x"], [[1.0]], [1.0] * 50, {}, {"x": 1}, {"settings": {}}),
]
TOKENS = ["1e999", "-1", "NaN", "null", "true", "[]", "{}", '""']
TOKENS += ["9" * 5000, "[" * 3000]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def inserted(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 2, 40])) + content[at:]


def removed(content: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:]


def repeated(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b""]
    at = rng.randrange(len(lines))
    return b"".join([*lines[: at + 1], *lines[rng.randrange(at + 1) :]])


def other(content: bytes, rng: random.Random) -> bytes:
    del content
    wrong = [
        b"",
        b"\n",
        b"\0" * 64,
        b"{}",
        b"[]\n",
        b"{}\n",
        b"null",
        b"PK\3\4",
        b"PAR1",
    ]
    wrong += [b"\xff\xfe{\0}\0", b"\x80\4K\1.", b"{" * 9999, b"[" * 9999]
    return rng.choice([*wrong, rng.randbytes(99)])


BYTES: list[Mutation] = [cut, flipped, flipped, inserted, removed, repeated, other]


def token(content: bytes, rng: random.Random) -> bytes:
    """Puts another value in the place of a number or a word of a text."""
    found = list(re.finditer(rb"[\w.+-]+", content))
    if not found:
        return content
    one = rng.choice(found)
    word = rng.choice([*TOKENS, rng.choice(found)[0].decode("utf-8", "replace")])
    return content[: one.start()] + word.encode() + content[one.end() :]


def of_json(content: bytes, rng: random.Random) -> bytes:
    """Changes one value, or key, of a document or of one of its lines."""
    try:
        json.loads(content)
        lines, at = [content], 0
    except ValueError:
        lines = content.splitlines(keepends=True)
        at = rng.randrange(len(lines))
    document = json.loads(lines[at])
    changed = json.dumps(_changed(document, rng)).encode()
    return b"".join([*lines[:at], changed, b"\n", *lines[at + 1 :]])


def _changed(node: Any, rng: random.Random) -> Any:
    inside = list(node) if isinstance(node, dict) else range(len(node))
    where = rng.choice(list(inside))
    nested = isinstance(node[where], dict | list) and node[where]
    if nested and rng.random() < 0.6:
        node[where] = _changed(node[where], rng)
        return node
    how = rng.randrange(5)
    if how == 0:
        del node[where]
    elif how == 1 and isinstance(node, dict):
        node[rng.choice([where + "x", "", "null_", where.upper()])] = node.pop(where)
    elif how == 2:
        node[where] = node[rng.choice(list(inside))]
    else:
        node[where] = rng.choice(NASTY)
    return node


def of_npz(content: bytes, rng: random.Random) -> bytes:
    """Writes the arrays again, one of them changed, with all checksums right."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = dict(archive)
    name = rng.choice(list(arrays))
    changed = rng.choice(_ARRAYS)(arrays[name], rng)
    if changed is not None:
        arrays[name] = changed
    else:
        other_name = name + rng.choice(["x", "/x", "/y" * 300, "x" * 2000])
        arrays[other_name] = arrays.pop(name)
    file = io.BytesIO()
    write = rng.choice([np.savez, np.savez_compressed])
    write(file, **arrays)  # object arrays as pickles, as anybody may
    return file.getvalue()


_ARRAYS: list[Callable[[np.ndarray, random.Random], Any]] = [
    lambda leaf, rng: leaf.astype(rng.choice(["f2", "f8", "i1", "c16", "U9", "bool"])),
    lambda leaf, rng: leaf[None],
    lambda leaf, rng: leaf.ravel()[: rng.randrange(leaf.size + 1)],
    lambda leaf, rng: np.array([{"a": 1}, leaf.tolist()], dtype=object),
    lambda leaf, rng: np.zeros(leaf.shape, "M8[s]"),
    lambda leaf, rng: np.zeros(leaf.shape, [("a", "f4"), ("b", "O")]),
    lambda leaf, rng: np.full(leaf.shape, rng.choice([np.nan, np.inf, -7, 1e30, 0])),
    lambda leaf, rng: np.zeros((0, 3)),
    lambda leaf, rng: None,
]


def of_headers(content: bytes, rng: random.Random) -> bytes:
    """Packs the members again, one of them with another header: of a huge array."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(list(members))
    data = members[name]
    start, end = data.index(b"{"), data.index(b"\n")
    header = rng.choice(_HEADERS).ljust(end - start)[: end - start]
    changed = data[:start] + header + data[end:]
    members[name] = rng.choice([changed, changed, b"plain text", data])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice([0, 8, 12, 14])) as archive:
        for key, packed in members.items():
            archive.writestr(rng.choice([key, key, key, key[:-1], "../" + key]), packed)
    return file.getvalue()


_HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,)}" % size
    for size in (10**12, 2**40, 2**64, 10**30, 7)
] + [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    b"{'descr': '<U99999999', 'fortran_order': False, 'shape': ()}",
    b"{'descr': 7, 'fortran_order': 1, 'shape': 'x'}",
    b"{" * 60,
    b"'\\d'",
]


def of_table(content: bytes, rng: random.Random) -> bytes:
    """Writes a Parquet table again, with a column changed."""
    frame = pandas.read_parquet(io.BytesIO(content))
    name = rng.choice(list(frame))
    frame = rng.choice(_TABLES)(frame, name, rng)
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


def _with(frame: Any, name: str, value: Any) -> Any:
    return frame.assign(**{name: [value] * len(frame)})


_CELLS: list[Any] = [
    *(1, 1e300, -5, 2**62, True, "x", "", "a\nb", "x" * 999),
    *([1, 2], {"a": 1}, b"\xff", pandas.Timestamp(0)),
]
_TABLES: list[Callable[[Any, str, random.Random], Any]] = [
    lambda frame, name, rng: frame.drop(columns=name),
    lambda frame, name, rng: frame.rename(columns={name: name + "x"}),
    lambda frame, name, rng: frame.iloc[:0],
    lambda frame, name, rng: pandas.concat([frame, frame]),
    lambda frame, name, rng: _with(frame, name, None),
    lambda frame, name, rng: _with(frame, name, float("nan")),
    lambda frame, name, rng: _with(frame, name, rng.choice(_CELLS)),
    lambda frame, name, rng: _with(frame, name, rng.choice(_CELLS)),
]

JSON: list[Mutation] = [*BYTES, token, token, *[of_json] * 8]
TEXT: list[Mutation] = [*BYTES, *[token] * 4]
NPZ: list[Mutation] = [*BYTES, *[of_npz] * 6, *[of_headers] * 3]
TABLE: list[Mutation] = [*BYTES, *[of_table] * 6]


def mutated(content: bytes, how: list[Mutation], seed: int) -> bytes:
    """One or two mutations, drawn by a seed; of what is structured the first alone."""
    rng = random.Random(seed)
    changed = rng.choice(how)(content, rng)
    return rng.choice(BYTES)(changed, rng) if rng.random() < 0.1 else changed
