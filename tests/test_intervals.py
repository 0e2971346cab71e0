"""Confidence intervals of paired differences: their coverage, their clusters, and what is said of them."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lfmri_runtime.evaluation import COLUMNS
from lfmri_trainer.baselines.interpolation import Interpolation
from lfmri_trainer.benchmark.intervals import LEAST_CLUSTERS, _expanded, choose_level, mean_intervals
from lfmri_trainer.benchmark.tables import Difference, difference_table, differences_csv, markdown

from .training_fixtures import parameters


def labels_of(clusters: int, slices: int) -> list[str]:
    return [f"scan {cluster}" for cluster in range(clusters) for _ in range(slices)]


@pytest.mark.parametrize(("clusters", "slices", "least"), [(5, 12, 0.88), (10, 6, 0.92), (40, 1, 0.92)])
def test_nineteen_of_twenty_intervals_hold_the_true_mean(clusters: int, slices: int, least: float) -> None:
    """Slices share what is their scan's own; drawn as if they were independent, intervals would be far too short."""
    rng = np.random.default_rng(clusters)
    own, shared = rng.normal(size=(600, clusters * slices)), rng.normal(size=(600, clusters))
    values = 3 + 0.5 * own + np.repeat(shared, slices, axis=1)

    def coverage(labels: list[str]) -> float:
        return float(np.mean([i.low <= 3 <= i.high for i in mean_intervals(values, labels)]))

    assert least <= coverage(labels_of(clusters, slices)) <= 0.98  # 600 draws: three standard errors are 0.027
    if slices > 1:
        assert coverage([str(n) for n in range(clusters * slices)]) < 0.8


def test_many_clusters_of_one_slice_give_students_interval() -> None:
    values = np.random.default_rng(1).normal(size=(1, 200))
    (found,) = mean_intervals(values, labels_of(200, 1))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(expected, abs=0.02 * (expected.high - expected.low))


def test_clusters_of_unequal_size_agree_with_a_plain_bootstrap() -> None:
    """SciPy's bootstrap of the indices of whole clusters, at the level that the widening asks of nine of them."""
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 30, 9)
    labels = np.repeat([f"s{n}" for n in range(9)], sizes)
    values = rng.normal(size=(1, sizes.sum())) + np.repeat(rng.normal(size=9), sizes)
    parts = [values[0][labels == f"s{n}"] for n in range(9)]
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.975, 8) * math.sqrt(9 / 8))
    reference = stats.bootstrap(
        (np.arange(9),),
        lambda drawn: np.concatenate([parts[int(n)] for n in drawn]).mean(),
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        confidence_level=level,
        rng=np.random.default_rng(3),
    ).confidence_interval
    assert _expanded(9) == pytest.approx(level)
    (found,) = mean_intervals(values, labels.tolist())
    width = reference.high - reference.low
    assert (found.low, found.high) == pytest.approx(tuple(reference), abs=0.06 * width)
    assert found.mean == pytest.approx(values.mean())


def test_the_same_seed_gives_the_same_interval_and_constants_an_empty_one() -> None:
    values = np.stack([np.random.default_rng(4).normal(size=60), np.full(60, 0.25)])
    first, again = (mean_intervals(values, labels_of(6, 10)) for _ in range(2))
    assert first == again
    assert (first[1].low, first[1].high) == pytest.approx((0.25, 0.25))


def test_where_there_is_no_interval_its_bounds_are_not_numbers() -> None:
    values = np.array([[1.0, 2.0, 4.0, 3.0, 5.0], [math.inf, 1.0, 2.0, 3.0, 4.0]])
    alone = mean_intervals(values, ["a"] * 5)
    assert alone[0].mean == pytest.approx(3)
    assert math.isnan(alone[0].low)
    finite, infinite = mean_intervals(values, list("abcde"))
    assert finite.low < finite.mean < finite.high
    assert math.isnan(infinite.high)


def test_too_few_clusters_give_no_interval_and_the_tables_say_so() -> None:
    """Of four, a seventh of the intervals that are called 95 % would miss the mean; the tables show none."""
    values = 3 + np.random.default_rng(5).normal(size=(len(COLUMNS), 20))
    enough, few = (mean_intervals(values, labels_of(n, 20 // n)) for n in (LEAST_CLUSTERS, LEAST_CLUSTERS - 1))
    assert [i.mean for i in few] == [i.mean for i in enough]
    assert all(math.isnan(i.low) and math.isnan(i.high) for i in few)
    assert all(0 < i.low < i.mean < i.high for i in enough)
    shown = []
    for intervals in (enough, few):
        by_key = dict(zip((column.key for column in COLUMNS), intervals, strict=True))
        shown.append([Difference(set_name="InD", method=Interpolation(), other=Interpolation(), intervals=by_key)])
    (certain,), (cells,) = (difference_table(each).rows for each in shown)
    assert all(strong for _, strong in certain[1:])
    means = [f"{i.mean:+.{column.decimals}f} [-]" for column, i in zip(COLUMNS, few, strict=True)]
    assert cells[1:] == tuple((text, False) for text in means)
    assert "nan" not in markdown(difference_table(shown[1]))
    assert differences_csv(shown[1]).count(",nan,nan\n") == len(COLUMNS)


@pytest.mark.parametrize(
    ("subjects", "draws", "groups", "words"),
    [
        (6, 1, 6, "6 subjects are drawn anew with all their scans: it covers other people"),
        (2, 3, 6, "6 scans of 2 subjects are drawn anew: .* not other people"),
        (1, 4, 8, "8 slices of 4 scans of 1 subject are drawn anew .* neither other scans nor other people"),
        (1, 2, 4, "4 slices of 2 scans of 1 subject: too few for an interval, which takes 5.$"),
    ],
)
def test_the_highest_level_with_enough_clusters_is_drawn_anew(
    subjects: int, draws: int, groups: int, words: str
) -> None:
    pairs = [
        replace(parameters(f"s{subject}", "test", "S"), pair=f"s{subject}-{draw}")
        for subject in range(subjects)
        for draw in range(draws)
        for _ in range(2)
    ]
    level = choose_level(pairs, [number % 2 for number in range(len(pairs))])
    assert len(set(level.labels)) == groups
    assert re.match(words, level.covers)
