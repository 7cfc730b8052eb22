"""Files damaged at random end in frames or in one clear error: no hang, no crash, no gigabyte."""

import pytest
from fuzz import BASES, ENDS, run


def bad(ends):
    return {number: end for number, end in ends.items() if end not in ENDS}


def test_a_few_damaged_files():
    ends = run(10_000, 10_000 + 2 * len(BASES))
    assert len(ends) == 2 * len(BASES)
    assert set(ends.values()) >= set(ENDS)
    assert bad(ends) == {}


@pytest.mark.slow
def test_many_damaged_files():
    ends = run(0, 1500)
    assert len(ends) == 1500
    assert bad(ends) == {}
