"""Metrics against matrices worked out by hand."""

from __future__ import annotations

import pytest

from m2distill_policy.errors import M2DistillError
from training.metrics import fill_after_best, first_best, lifelong_metrics, until_perfect


def test_perfect_memory() -> None:
    metrics = lifelong_metrics([[1.0], [1.0, 1.0], [1.0, 1.0, 1.0]], [[1.0]] * 3)
    assert (metrics.fwt, metrics.nbt, metrics.auc) == (1.0, 0.0, 1.0)


def test_complete_forgetting() -> None:
    metrics = lifelong_metrics([[1.0], [0.0, 1.0], [0.0, 0.0, 1.0]], [[1.0]] * 3)
    # task 1: forgets 1 and 1 over 2 later stages, task 2: 1 over 1, task 3: none
    assert metrics.nbt == pytest.approx((1 + 1 + 0) / 3)
    assert metrics.nbt_k_minus_1 == pytest.approx(1.0)
    # areas: (1 + 0 + 0) / 3, (1 + 0) / 2, 1
    assert metrics.auc == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert metrics.mean_final == pytest.approx(1 / 3)


def test_worked_example_with_epochs() -> None:
    final = [[0.8, 0.1], [0.6, 0.9]]
    curves = [[0.4, 0.8], [0.5, 0.9]]
    metrics = lifelong_metrics(final, curves)
    assert metrics.fwt == pytest.approx((0.6 + 0.7) / 2)
    assert metrics.fwt_final == pytest.approx((0.8 + 0.9) / 2)
    assert metrics.nbt == pytest.approx((0.2 + 0.0) / 2)
    assert metrics.nbt_k_minus_1 == pytest.approx(0.2)
    assert metrics.auc == pytest.approx(((0.6 + 0.6) / 2 + 0.7) / 2)
    assert metrics.mean_final == pytest.approx(0.75)


def test_backward_transfer_can_be_negative_forgetting() -> None:
    assert lifelong_metrics([[0.5], [0.7, 1.0]], [[0.5], [1.0]]).nbt == pytest.approx(-0.1)


def test_tasks_learned_together_weigh_as_many_as_they_are() -> None:
    """Two tasks at once, then a third: what LIBERO's formulas give a task at a time, with each task's own stage."""
    pair, later, third = (0.9, 0.7), (0.5, 0.6), 0.8
    curve = [0.4, 0.8]  # mean over the pair
    grouped = lifelong_metrics(
        [[sum(pair) / 2], [sum(later) / 2, third]], [curve, [0.2, third]], [2, 1]
    )  # fmt: skip
    forgotten = [pair[0] - later[0], pair[1] - later[1], 0.0]
    assert grouped.nbt == pytest.approx(sum(forgotten) / 3)
    assert grouped.nbt_k_minus_1 == pytest.approx(sum(forgotten) / 2)
    assert grouped.fwt == pytest.approx((2 * 0.6 + 0.5) / 3)
    assert grouped.mean_final == pytest.approx((sum(later) + third) / 3)
    assert grouped.auc == pytest.approx(((0.6 + later[0]) / 2 + (0.6 + later[1]) / 2 + 0.5) / 3)
    with pytest.raises(M2DistillError, match="one number of tasks a stage; got 1 for 2"):
        lifelong_metrics([[1.0], [1.0, 1.0]], [[1.0], [1.0]], [2])


def test_no_candidate_is_evaluated_behind_one_that_always_succeeds() -> None:
    rates = iter([0.9, 1.0, 0.5])
    assert until_perfect(rates) == [0.9, 1.0] and list(rates) == [0.5]
    assert until_perfect([0.2, 0.1]) == [0.2, 0.1]


def test_earliest_of_the_best_is_chosen_and_held() -> None:
    assert first_best([0.2, 0.9, 0.9, 0.1]) == 1
    assert fill_after_best([0.2, 0.8, 0.9, 0.1], 1, 4) == [0.2, 0.8, 0.8, 0.8]
    assert fill_after_best([0.2, 0.8], 1, 4) == [0.2, 0.8, 0.8, 0.8]


@pytest.mark.parametrize(
    ("final", "curves", "sentence"),
    [
        ([], [], "one curve a stage"),
        ([[1.0], [1.0]], [[1.0], [1.0]], "needs tasks 0 to 1"),
        ([[1.0]], [[]], "no checkpoint candidates"),
    ],
)
def test_incomplete_matrices_are_refused(final: list[list[float]], curves: list[list[float]], sentence: str) -> None:
    with pytest.raises(M2DistillError, match=sentence):
        lifelong_metrics(final, curves)
