"""What limit.py promises."""

import pytest

from amplint.limit import with_room

resource = pytest.importorskip("resource")


def most_faults():
    """The most page faults of 100 equal calls, at any depth: eight a call where each takes memory and gives it back."""

    def down(depth):
        return down(depth - 1) if depth else None

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    most = 0
    for depth in range(1, 400):
        before = faults()
        for _ in range(100):
            down(depth)
        most = max(most, faults() - before)
    return most


def test_with_room_no_call_is_at_an_edge_of_the_stack():
    found = []
    with_room(lambda: found.append(most_faults()))
    assert found[0] < 50 < most_faults()
