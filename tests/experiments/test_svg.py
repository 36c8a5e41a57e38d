"""Scales of the charts on the page of a study."""

import math

import pytest

from experiments.study.svg import Axis


@pytest.mark.parametrize("value", [0.0, 7.0, -3e16, 1e300])
def test_equal_values_are_in_the_middle_of_the_axis(value):
    axis = Axis([value, value], 0, 100)
    assert axis(value) == pytest.approx(50)


def test_zero_is_at_the_lower_end_of_a_logarithmic_axis():
    """A gradient may be exactly 0."""
    axis = Axis([0.0, 0.01, 10.0], 0, 100, log=True)
    assert axis(0.0) == axis(0.01) == 0
    assert axis(10.0) == 100
    assert math.isfinite(axis(1.0))
