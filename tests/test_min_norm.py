"""The weights of the shortest mean of gradients, against closed form and other ways to solve the quadratic program."""

import itertools

import numpy as np
import pytest

from src.training.min_norm import min_norm_weights


def by_faces(gram):
    """Solves the quadratic program exactly: the best of the stationary points of all faces of the simplex."""
    n, best, least = len(gram), None, np.inf
    for size in range(1, n + 1):
        for face in itertools.combinations(range(n), size):
            # minimise w G w with sum w = 1 on the face: [[G, 1], [1, 0]] [w, -l] = [0, 1]
            system = np.ones((size + 1, size + 1))
            system[:size, :size], system[size, size] = gram[np.ix_(face, face)], 0
            solution = np.linalg.lstsq(system, np.eye(size + 1)[size], rcond=None)[0][:size]
            if (solution >= -1e-12).all():
                weights = np.zeros(n)
                weights[[*face]] = solution
                if weights @ gram @ weights < least:
                    best, least = weights, weights @ gram @ weights
    return best


@pytest.mark.parametrize("seed", range(20))
def test_two_gradients_have_a_closed_form(seed):
    """The foot of the perpendicular on the line between them, or the nearer end."""
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 3)) * [[1], [10 ** rng.uniform(-2, 2)]]
    difference = second - first
    weight = np.clip(second @ difference / (difference @ difference), 0, 1)
    found = min_norm_weights(np.array([first, second]) @ np.array([first, second]).T)
    assert found == pytest.approx([weight, 1 - weight], abs=1e-6)


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("seed", range(20))
def test_more_gradients_agree_with_the_quadratic_program(count, seed):
    """Some of them point the same way, so that the corners and edges of the simplex are met, too."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(count, 50)) + rng.uniform(0, 3) * rng.normal(size=50)
    gradients *= 10 ** rng.uniform(-1, 1, (count, 1))
    gram = gradients @ gradients.T
    found, expected = min_norm_weights(gram), by_faces(gram)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx(expected, abs=1e-6)
    mean = found @ gradients
    assert (gradients @ mean).min() >= mean @ mean * (1 - 1e-6)  # no loss grows


def test_gradients_at_right_angles_count_by_their_inverse_squares():
    assert min_norm_weights(np.diag([1.0, 2.0, 4.0])) == pytest.approx([4 / 7, 2 / 7, 1 / 7], rel=1e-12)


def test_one_gradient():
    assert min_norm_weights(np.array([[3.0]])).tolist() == [1]


def test_opposite_and_equal_gradients():
    assert min_norm_weights(np.array([[1.0, -1.0], [-1.0, 1.0]])) == pytest.approx([0.5, 0.5])
    weights = min_norm_weights(np.full((3, 3), 2.0))
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)


def test_a_gradient_of_zero_says_nothing():
    assert min_norm_weights(np.diag([0.0, 2.0, 2.0])).tolist() == [0, 0.5, 0.5]
    assert min_norm_weights(np.zeros((2, 2))).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(wrong):
    assert np.isnan(min_norm_weights(np.array([[1.0, wrong], [wrong, 1.0]]))).all()
