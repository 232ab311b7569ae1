"""The rank correlation of the comparison of signals, beside SciPy's."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.signals_parts.compare import spearman


@pytest.mark.parametrize("levels", [5, 10**6])  # with many ties, and with none
def test_rank_correlations_are_those_of_scipy(levels):
    rng = np.random.default_rng(levels)
    x = rng.integers(0, levels, 40)
    y = x + rng.normal(0, levels / 2, 40).round()
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert spearman(x, np.exp(x / levels)) == pytest.approx(1)
    assert np.isnan(spearman(x, np.zeros(40)))
