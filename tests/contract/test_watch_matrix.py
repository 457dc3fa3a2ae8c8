"""The matrix of watches against plain arithmetic, and what it costs."""

from __future__ import annotations

import math
from array import array
from random import Random

import pytest

pytest.importorskip("numpy", reason="needs numpy (pip install 'swarmd[memory]')")

from swarmd.adapters.watch_matrix import NumpyWatchMatrix

DIMENSION = 16


def unit(random: Random) -> array[float]:
    numbers = [random.gauss(0, 1) for _ in range(DIMENSION)]
    length = math.hypot(*numbers)
    return array("f", [number / length for number in numbers])


def test_it_agrees_with_plain_arithmetic_while_watches_come_and_go() -> None:
    random = Random(7)
    matrix, held = NumpyWatchMatrix(DIMENSION), dict[str, tuple[array[float], float]]()
    for step in range(400):
        watcher = f"w{random.randrange(150)}"
        if random.random() < 0.7:
            held[watcher] = (unit(random), random.uniform(-1, 1))
            matrix.put(watcher, *held[watcher])
        else:
            held.pop(watcher, None)
            matrix.remove(watcher)
        assert len(matrix) == len(held)
        if step % 20:
            continue
        vectors = [unit(random) for _ in range(3)]
        for vector, found in zip(vectors, matrix.nearest(vectors), strict=True):
            cosines = {name: sum(map(float.__mul__, vector, watched)) for name, (watched, _) in held.items()}
            clear = {name for name, cosine in cosines.items() if abs(cosine - held[name][1]) > 1e-5}
            expected = {name for name in clear if cosines[name] >= held[name][1]}
            assert {name for name, _ in found} & clear == expected
            assert all(cosine == pytest.approx(cosines[name], abs=1e-5) for name, cosine in found)


def test_a_text_matches_itself_at_a_threshold_of_one() -> None:
    random = Random(8)
    vectors = [unit(random) for _ in range(200)]
    matrix = NumpyWatchMatrix(DIMENSION)
    for number, vector in enumerate(vectors):
        matrix.put(str(number), vector, 1.0)
    assert [[name for name, _ in found] for found in matrix.nearest(vectors)] == [[str(n)] for n in range(200)]


def test_nothing_is_near_nothing() -> None:
    matrix = NumpyWatchMatrix(DIMENSION)
    assert matrix.nearest([unit(Random(9))]) == [[]]
    assert matrix.nearest([]) == []
    matrix.remove("nobody")
