"""The same cases under pytest-benchmark: pytest bench --benchmark-group-by=param:case."""

import pytest

from .bandwidth_limit import limit, new_arrays
from .cases import CASES, elements
from .rivals import rivals_of

PAIRS = [(case, rival) for case, shapes in CASES.items() for rival in rivals_of(shapes)]


@pytest.mark.parametrize(("case", "rival"), PAIRS)
def test_step(benchmark, case, rival):
    step = rivals_of(CASES[case])[rival](CASES[case])
    benchmark.pedantic(step, warmup_rounds=8, rounds=10)


@pytest.mark.parametrize("case", CASES)
def test_limit(benchmark, case):
    benchmark.pedantic(limit(new_arrays(elements(CASES[case]))), warmup_rounds=8, rounds=10)
