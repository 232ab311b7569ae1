"""Which images are looked at."""

import numpy as np

from moco_jax.checks import survey


def test_a_sample_is_spread_and_a_full_one_is_everything():
    np.testing.assert_array_equal(survey.spread(7, 9, 0), np.arange(7))
    chosen = survey.spread(1_000_003, 200, 0)
    assert len(set(chosen.tolist())) == 200
    assert np.diff(chosen).min() > 0
    assert np.diff(chosen).max() < 2 * 1_000_003 / 199
    assert (chosen != survey.spread(1_000_003, 200, 1)).any()
