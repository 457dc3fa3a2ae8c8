"""The matrix of watches against plain arithmetic, and what it costs."""

from __future__ import annotations

import math
from array import array
from hashlib import blake2b

import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.watch_matrix import NumpyWatchMatrix

DIMENSION = 16


def unit(seed: str) -> array[float]:
    """A direction that depends on the seed alone."""
    numbers = [byte - 127.5 for byte in blake2b(seed.encode(), digest_size=DIMENSION).digest()]
    length = math.hypot(*numbers)
    return array("f", [number / length for number in numbers])


def test_it_agrees_with_plain_arithmetic_while_watches_come_and_go() -> None:
    matrix, held = NumpyWatchMatrix(DIMENSION), {"w0": (unit("0"), 0.5)}
    matrix.put("w0", *held["w0"])
    for step in range(400):
        watcher = f"w{step * 7919 % 150}"
        if step % 10 < 7:
            held[watcher] = (unit(f"watch {step}"), step % 21 / 10 - 1)
            matrix.put(watcher, *held[watcher])
        else:
            held.pop(watcher, None)
            matrix.remove(watcher)
        assert len(matrix) == len(held)
        if step % 20:
            continue
        vectors = [unit(f"memory {step} {n}") for n in range(3)]
        for vector, found in zip(vectors, matrix.nearest(vectors), strict=True):
            cosines = {name: sum(map(float.__mul__, vector, watched)) for name, (watched, _) in held.items()}
            clear = {name for name, cosine in cosines.items() if abs(cosine - held[name][1]) > 1e-5}
            expected = {name for name in clear if cosines[name] >= held[name][1]}
            assert {name for name, _ in found} & clear == expected
            assert all(cosine == pytest.approx(cosines[name], abs=1e-5) for name, cosine in found)


def test_a_text_matches_itself_at_a_threshold_of_one() -> None:
    vectors = [unit(f"text {n}") for n in range(200)]
    matrix = NumpyWatchMatrix(DIMENSION)
    for number, vector in enumerate(vectors):
        matrix.put(str(number), vector, 1.0)
    assert [[name for name, _ in found] for found in matrix.nearest(vectors)] == [[str(n)] for n in range(200)]


def test_nothing_is_near_nothing() -> None:
    matrix = NumpyWatchMatrix(DIMENSION)
    assert matrix.nearest([unit("x")]) == [[]]
    assert matrix.nearest([]) == []
    matrix.remove("nobody")
