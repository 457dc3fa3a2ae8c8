"""Vectors of versions: authors' own where they fit, directions that mean nothing where a text cannot be embedded."""

from __future__ import annotations

import math
from array import array

from swarmd.core.memory import RememberedV2
from swarmd.ports import Pin
from swarmd.roles.memory_vectors import direction_of, own_vector

PIN = Pin("hash", 4)


def test_an_authors_vector_is_used_where_the_same_embedder_made_it() -> None:
    vector = array("f", [0.5, 0.5, 0.5, 0.5])
    assert own_vector(RememberedV2(text="x", vector=vector.tobytes(), embedder="hash"), PIN) == vector
    assert own_vector(RememberedV2(text="x", vector=vector.tobytes(), embedder="other"), PIN) is None
    assert own_vector(RememberedV2(text="x", vector=vector.tobytes()[:-4], embedder="hash"), PIN) is None
    assert own_vector(RememberedV2(text="x"), PIN) is None


def test_a_direction_depends_on_the_text_alone_and_is_far_from_others() -> None:
    found = [direction_of(f"text {n}", 384) for n in range(50)]
    assert direction_of("text 7", 384) == found[7]
    for at, one in enumerate(found):
        assert math.isclose(math.hypot(*one), 1, abs_tol=1e-5)
        assert all(abs(sum(map(float.__mul__, one, other))) < 0.3 for other in found[:at])
    assert len(direction_of("\ud800", 5)) == 5
