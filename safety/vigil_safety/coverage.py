"""Bounds of a proportion that was observed in trials (Clopper and Pearson 1934): exact, so never too narrow."""

from __future__ import annotations

import math

__all__ = ["clopper_pearson"]

_HALVINGS = 100


def _tail(trials: int, least: int, p: float) -> float:
    """P(X >= least) of X binomial with ``trials`` and ``p``."""
    if p <= 0:
        return float(least <= 0)
    if p >= 1:
        return float(least <= trials)
    log_p, log_q = math.log(p), math.log1p(-p)
    terms = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q
        for k in range(least, trials + 1)
    )
    return min(1.0, math.fsum(math.exp(t) for t in terms))


def _solve(trials: int, least: int, wanted: float) -> float:
    """The p at which P(X >= least) is ``wanted``; the probability rises with p."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _tail(trials, least, middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval that holds the true proportion with at least this confidence, two-sided; (0, 1) without trials.

    Raises:
        ValueError: more successes than trials, a negative number, or a confidence outside 0..1.
    """
    if not 0 <= successes <= trials or not 0 < confidence < 1:
        raise ValueError(f"{successes} of {trials} at confidence {confidence}")
    if trials == 0:
        return 0.0, 1.0
    alpha = 1 - confidence
    low = 0.0 if successes == 0 else _solve(trials, successes, alpha / 2)
    high = 1.0 if successes == trials else _solve(trials, successes + 1, 1 - alpha / 2)
    return low, high
