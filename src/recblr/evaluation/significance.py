"""Do two groups of runs differ? Over users, and over seeds.

Over users: each user's metric, averaged over a group's seeds; d (U,) is the difference of the two.

    interval   percentiles of the mean of d over bootstrap samples of users (Efron, 1979)
    p          P(|mean of s d| >= |mean of d|), s random signs: under "no difference" a user's two
               values may be exchanged (Fisher's randomisation test; Smucker et al., CIKM 2007).
               Exact over all signs where few users differ, else from samples, with the observed
               one among them: p > 0.

Over seeds: Welch's t-test of the means of single runs, which users alone cannot give: it sees what
training itself varies by.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_ind

Floats = NDArray[np.float64]

ALPHA = 0.01  # of a star: the paper's level
SEEDS_OF_STAR = (5, 3)  # runs that the two sides need, in either order
EXACT_UP_TO = 14  # users who differ: 2^14 sign patterns
SAMPLES = 10_000
_ROWS = 500  # samples at a time


class Comparison(NamedTuple):
    """Group A over group B; NaN where there are too few runs for a test."""

    mean_a: float
    mean_b: float
    difference: float  # A - B
    low: float  # 95 % bootstrap interval of the difference, over users
    high: float
    p_users: float
    p_seeds: float


def compare(a: Floats, b: Floats, seed: int = 0) -> Comparison:
    """a (S_a, U), b (S_b, U): a metric per run and user, the same users in the same order.

    Raises ValueError for other shapes and for values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or not (a.size and b.size):
        raise ValueError(f"expected (runs, users) with equal users, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a metric is not finite")
    difference = a.mean(0) - b.mean(0)
    low, high = bootstrap_interval(difference, seed)
    p_users = randomisation_p(difference, seed)
    means = (a.mean(), b.mean(), difference.mean())
    return Comparison(*map(float, (*means, low, high, p_users, welch_p(a.mean(1), b.mean(1)))))


def bootstrap_interval(
    difference: Floats, seed: int = 0, samples: int = SAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of `difference` (U,) over samples of users.

    A sample is drawn as how often each distinct value occurs: a multinomial over them.
    """
    random = np.random.default_rng(seed)
    values, counts = np.unique(difference, return_counts=True)
    users = len(difference)
    drawn = random.multinomial(users, counts / users, size=samples)  # (samples, distinct)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn @ values / users, (tail, 1 - tail))
    return float(low), float(high)


def randomisation_p(difference: Floats, seed: int = 0, samples: int = SAMPLES) -> float:
    """Two-sided p of a mean of `difference` (U,) as far from 0 under random signs."""
    different = np.abs(difference[difference != 0])  # the others add 0 whatever their sign
    observed = abs(difference.sum()) * (1 - 1e-12)  # sums of one set in another order
    if len(different) <= EXACT_UP_TO:
        patterns = np.arange(2 ** len(different))[:, None] >> np.arange(len(different)) & 1
        return float((np.abs((1 - 2 * patterns) @ different) >= observed).mean())
    random = np.random.default_rng(seed)
    beyond = 0
    for start in range(0, samples, _ROWS):
        rows = min(_ROWS, samples - start)
        signs = random.integers(0, 2, (rows, len(different)), dtype=np.int8) * 2 - 1
        beyond += int((np.abs(signs @ different) >= observed).sum())
    return (1 + beyond) / (1 + samples)


def welch_p(a: Floats, b: Floats) -> float:
    """Two-sided p of equal means of two groups of runs (S_a,), (S_b,); NaN for a single run.

    Two groups without any variance: 1 if their means are equal, else 0.
    """
    if min(len(a), len(b)) < 2:
        return float("nan")
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return float(a[0] == b[0])
    p: Any = ttest_ind(a, b, equal_var=False)[1]
    return float(p)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p (1979), in the order given: NaN, no test, stays and is not counted."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p == p)
    adjusted, largest = list(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def has_star(p_users: float, p_seeds: float, runs_a: int, runs_b: int) -> bool:
    """Both adjusted p under ALPHA, and enough runs of either side."""
    most, least = sorted((runs_a, runs_b), reverse=True)
    enough = most >= SEEDS_OF_STAR[0] and least >= SEEDS_OF_STAR[1]
    return enough and p_users < ALPHA and p_seeds < ALPHA
