"""Signals: what features are worth, measured without labels; pure functions of arrays.

All are of unit vectors, since contrastive learning fixes directions alone, and kNN compares them.
Values published for features of any length are therefore other numbers.
"""

import numpy as np

DELTA = 1e-4  # added to the covariance within images (LiDAR, section 4)
FIRST, LAST = 11, 100  # eigenvalues, counted from 1, between which a spectrum's decay is fitted
FEWEST = 5  # eigenvalues to fit it to


def effective_rank(features: np.ndarray) -> float:
    """Return the effective rank of `features` `[N, D]` (RankMe, Garrido 2023, arXiv 2210.02885).

    It is exp of the entropy of the singular values, scaled to sum 1, and lies between 1 (all on one
    line) and min(N, D).
    """
    return _perplexity(np.linalg.svd(np.asarray(features, np.float64), compute_uv=False))


def lidar(views: np.ndarray, delta: float = DELTA) -> float:
    """Return the rank of linear discriminant analysis (LiDAR, Thilak 2023, arXiv 2312.04000).

    Every image is a class of its own, of which Q views are known. With the covariances of the
    images' means, `B`, and within images, `W` (to whose diagonal `delta` is added), it is exp of
    the entropy of the eigenvalues of `W^(-1/2) B W^(-1/2)`, scaled to sum 1: the number of
    directions that tell images apart although views differ. It lies between 1 and
    min(N - 1, D). Means of few views are noisy, which adds 1 / Q to each eigenvalue: with 2 views
    noise is taken for directions.

    Args:
        views: features `[N, Q, D]` of Q >= 2 views of each of N images.
        delta: keeps directions in which views hardly differ from being all that counts.
    """
    views = np.asarray(views, np.float64)
    count, each, width = views.shape
    means = views.mean(1)
    off = (views - means[:, None]).reshape(-1, width)
    within = off.T @ off / (count * (each - 1))
    root = np.linalg.cholesky(within + delta * np.eye(width))
    whitened = np.linalg.solve(root, (means - means.mean(0)).T)
    return _perplexity(np.linalg.svd(whitened, compute_uv=False) ** 2)


def alignment(views: np.ndarray) -> float:
    """Return the mean squared distance of two views of an image (Wang 2020, arXiv 2005.10242).

    `views`: unit features `[N, Q, D]`. It is the mean over all pairs of views of an image, and
    over images, and lies between 0 (views are all that is ignored) and 4.
    """
    views = np.asarray(views, np.float64)
    each = views.shape[1]
    off = views - views.mean(1, keepdims=True)
    # The sum of squared distances of all pairs is Q times that of the distances from the mean.
    return float(np.mean(np.sum(off**2, (1, 2))) * 2 / (each - 1))


def uniformity(features: np.ndarray, t: float = 2.0) -> float:
    """Return how evenly `features` fill the sphere (Wang 2020, arXiv 2005.10242).

    It is the log of the mean of `exp(-t |x - y|^2)` over all pairs of unit vectors `[N, D]`, N >=
    2; 0 where all are equal, and below -3.9 is near to what can be had with t = 2.
    """
    features = np.asarray(features, np.float64)
    rows, columns = np.triu_indices(len(features), 1)
    squares = np.sum(features**2, 1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    return float(np.log(np.mean(np.exp(-t * distances[rows, columns]))))


def spectrum_decay(features: np.ndarray) -> float | None:
    """Return the exponent of the spectrum of `features` `[N, D]` (alpha-ReQ, arXiv 2202.05808).

    The j-th eigenvalue of their covariance is fitted by `c * j ** -exponent`, by least squares of
    the logarithms, each weighted by 1 / j as logarithms lie the closer the larger j is. The first
    eigenvalues follow no such law, nor do the last, which few features leave to chance: taken are
    those from the 11th to the 100th, or to half of those that are there.

    Returns:
        The exponent; None where there are too few eigenvalues above 0.
    """
    features = np.asarray(features, np.float64)
    values = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    there = int(np.sum(values > values[0] * np.finfo(np.float32).eps ** 2)) if values[0] > 0 else 0
    places = np.arange(FIRST, min(LAST, there // 2) + 1)
    if len(places) < FEWEST:
        return None
    slope, _ = np.polyfit(np.log(places), np.log(values[places - 1]), 1, w=places**-0.5)
    return float(-slope)


def _perplexity(values: np.ndarray) -> float:
    """Return exp of the entropy of non-negative `values`, scaled to sum 1."""
    shares = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    return float(np.exp(-np.sum(shares * np.log(shares))))
