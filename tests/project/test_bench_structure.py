"""The comparison with another commit: its ratios, its targets and its page."""

import pytest

pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

from bench.structure.cases import TIMED, subjects
from bench.structure.judge import judge, judge_count
from bench.structure.page import page, table

# The second batch ran on a ten times slower machine: the pairs still give 1.1.
NUMERATOR = [[1.1e-3, 2.2e-3, 3.3e-3], [11e-3, 22e-3, 44e-3]]
DENOMINATOR = [[1e-3, 2e-3, 3e-3], [10e-3, 20e-3, 20e-3]]


def test_the_ratio_is_the_median_of_the_pairs():
    found = judge(NUMERATOR, DENOMINATOR, 1.2)
    assert found["pairs"] == 6
    assert found["median_ratio"] == pytest.approx(1.1)
    assert found["median_ratio_of_each_batch"] == pytest.approx([1.1, 1.1])
    assert found["ratio_quartiles"] == pytest.approx([1.1, 1.375])
    assert found["numerator_ms"][1] == pytest.approx((3.3 + 11) / 2)
    assert found["denominator_ms"][1] == pytest.approx((3 + 10) / 2)
    assert found["ratio_of_medians"] == pytest.approx(14.3 / 13)
    with pytest.raises(ValueError, match="shorter"):
        judge(NUMERATOR, [DENOMINATOR[0], DENOMINATOR[1][:2]], None)


@pytest.mark.parametrize(("target", "reached"), [(1.2, True), (1.05, False), (None, None)])
def test_a_ratio_above_its_target_is_a_miss(target, reached):
    assert judge(NUMERATOR, DENOMINATOR, target)["reached"] is reached


@pytest.mark.parametrize(("target", "reached"), [(20, True), (19, False), (None, None)])
def test_a_count_above_its_target_is_a_miss(target, reached):
    assert judge_count(20, target)["reached"] is reached


def test_the_page_shows_every_comparison():
    comparisons = [
        {"case": "a", "compared": "x"} | judge(NUMERATOR, DENOMINATOR, 1.05),
        {"case": "b", "compared": "y"} | judge(NUMERATOR, DENOMINATOR, None),
        {"case": "c", "compared": "z"} | judge_count(20, 20),
    ]
    miss, information, count = (
        [cell.strip() for cell in row.split("|")[1:-1]]
        for row in table(comparisons, "github").splitlines()[2:]
    )
    assert miss[:5] == ["a", "x", "1.100", "<= 1.05", "no"]
    assert information[:5] == ["b", "y", "1.100", "", ""]
    assert count[:5] == ["c", "z", "20", "<= 20", "yes"]
    machine = {"date": "d", "processor": "p", "threads": 2, "instruction_set": "i", "python": "3"}
    record = {"before": "one", "after": "two", "pairs": 6}
    record["machine"] = machine | {"versions": {"torch": "2", "optimi": None}}
    record["comparisons"] = [
        c | {"cores_of_others": n} for c, n in zip(comparisons, (0.1, 0.7, 0.2), strict=True)
    ]
    text = page(record)
    assert table(comparisons, "github") in text
    assert "at most 0.7 cores" in text


def test_every_subject_is_timed_once_per_round():
    for comparisons in TIMED.values():
        timed = subjects(comparisons)
        assert len(set(timed)) == len(timed)
        assert {s for c in comparisons for s in (c.numerator, c.denominator)} == set(timed)
