"""The weights of multiple-gradient descent: the point of least norm among the gradients of several losses.

Sener and Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, arXiv:1810.04650.
"""

import numpy as np

_MOST_STEPS = 10_000  # some dozens are usual; each takes microseconds
_TOLERANCE = 1e-12  # of the squared norm, above which the point is not the least yet


def min_norm_weights(gram: np.ndarray) -> np.ndarray:
    """Finds the weights of the shortest weighted mean of gradients.

    A step against that mean lets no loss grow, to first order: its product with every gradient is at least its own
    squared norm. The weights are found by the Frank-Wolfe algorithm; a step moves weight from one gradient to another,
    with exact line search ("pairwise" steps, which converge linearly).

    Args:
        gram: (n, n), the products of all pairs of gradients; of any positive unit.

    Returns:
        float64 (n,), >= 0, sum 1. A gradient of 0, as of a set without a valid pixel, says nothing: its weight is 0,
        unless all are 0. NaN if the products are not all finite.
    """
    gram = np.asarray(gram, np.float64)
    if not np.isfinite(gram).all():
        return np.full(len(gram), np.nan)
    squares = np.diag(gram)
    chosen = squares > 0
    if not chosen.any():
        return np.full(len(gram), 1 / len(gram))
    weights = np.zeros(len(gram))
    # To start with: where the gradients stand at right angles to each other, these are the weights.
    weights[chosen] = squares.max() / squares[chosen]
    weights /= weights.sum()
    for _ in range(_MOST_STEPS):
        products = gram @ weights  # of each gradient with the mean
        least = np.argmin(np.where(chosen, products, np.inf))
        most = np.argmax(np.where(weights > 0, products, -np.inf))
        gap = products[most] - products[least]
        if gap <= _TOLERANCE * max(weights @ products, squares[least], squares[most]) or least == most:
            break
        curvature = gram[most, most] + gram[least, least] - 2 * gram[most, least]
        moved = weights[most] if gap >= weights[most] * curvature else gap / curvature
        weights[least] += moved
        weights[most] -= moved
    return weights / weights.sum()
