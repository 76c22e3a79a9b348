"""The PTX interpreter exchanges values between lanes, and knows which nothing has written."""

import numpy as np
import pytest

from .harness.ptx import PtxError
from .harness.ptx.handwritten import launch

# The lines of a kernel, and what becomes of b.
RESULTS = {
    "exchanged-between-lanes": (
        "shfl.sync.bfly.b32 %r4, %r1, 4, 31, -1; st.global.u32 [%rd7], %r4;",
        lambda b: b ^ 4,
        {},
    ),
    "computed-where-it-is-not-written": (
        # The sum of the other threads is unknown, and not stored.
        "setp.lt.s32 %p1, %r1, 64; @%p1 mov.u32 %r9, 1; add.s32 %r4, %r9, %r1; "
        "@%p1 st.global.u32 [%rd7], %r4;",
        lambda b: np.where(b < 64, b + 1, b),
        {},
    ),
    "packed-with-a-part-that-nothing-writes": (
        "cvt.u16.u32 %h1, %r1; mov.b32 %r4, {%h1, %h8}; mov.b32 {%h2, _}, %r4; "
        "cvt.u32.u16 %r3, %h2; st.global.u32 [%rd7], %r3;",
        lambda b: b,
        {},
    ),
    "written-by-all-with-one-value": (
        "mov.u32 %r3, 7; st.shared.u32 [smem], %r3; bar.sync 0; ld.shared.u32 %r4, [smem]; "
        "st.global.u32 [%rd7], %r4;",
        lambda b: 0 * b + 7,
        {},
    ),
}

# The message, and the lines of a kernel.
FAULTS = {
    "computed-from-an-unwritten-register": (
        "read before it is written",
        "add.s32 %r4, %r9, %r1; xor.b32 %r4, %r4, %r4; st.global.u32 [%rd7], %r4;",
        {},
    ),
    "branch-by-an-unwritten-register": (
        "read before it is written",
        "setp.eq.s32 %p1, %r9, 5; @%p1 bra $E; st.global.u32 [%rd7], %r1;\n$E: ret;",
        {},
    ),
    "address-from-an-unwritten-register": (
        "read before it is written",
        "add.s64 %rd8, %rd7, %rd9; ld.global.u32 %r4, [%rd8];",
        {},
    ),
    "from-a-lane-that-has-not-written": (
        "read before it is written",
        "setp.eq.s32 %p1, %r1, 5; @!%p1 mov.u32 %r9, 1; "
        "shfl.sync.bfly.b32 %r4, %r9, 1, 31, -1; st.global.u32 [%rd7], %r4;",
        {},
    ),
    "lanes-that-do-not-take-part": (
        "not all lanes",
        "setp.eq.s32 %p1, %r1, 5; @!%p1 shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;",
        {},
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(name):
    body, expected, options = RESULTS[name]
    b = launch(body, **options)
    assert (b == expected(np.arange(b.size, dtype=np.uint32))).all()


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    message, body, options = FAULTS[name]
    with pytest.raises(PtxError, match=message):
        launch(body, **options)


def test_a_part_that_nothing_writes_has_other_bits_in_each_run():
    body = "cvt.u16.u32 %h1, %r1; mov.b32 %r4, {%h1, %h8}; st.global.u32 [%rd7], %r4;"
    first, second = launch(body), launch(body)
    assert (first & 0xFFFF == np.arange(first.size)).all()
    assert (first != second).mean() > 0.9
