"""The mean of weights."""

import numpy as np

from tests.support.checkpoints import state_at
from transformer.training.averaging import average


def test_average_is_the_mean_of_the_weights():
    mean = average([state_at(10).params, state_at(20).params, state_at(60).params])
    np.testing.assert_array_equal(mean["a"]["kernel"], np.full((3, 5), 30, np.float32))
    np.testing.assert_array_equal(mean["b"], state_at(0).params["b"])
    assert mean["b"].dtype == np.float32
