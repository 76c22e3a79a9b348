"""The PTX interpreter runs whole kernels, and reports every kind of fault."""

import struct

import numpy as np
import pytest
import torch

from .harness.ptx import Memory, PtxError, programs, run
from .harness.ptx.handwritten import HEAD, A, B, kernel, launch

REVERSE = """ld.global.u32 %r3, [%rd7]; {between}
xor.b64 %rd9, %rd5, {mask}; add.s64 %rd10, %rd2, %rd9; st.global.u32 [%rd10], %r3;"""


SHARED_REVERSE = """mul.lo.s32 %r3, %r1, 4; st.shared.b32 [%r3], %r1; {between}
xor.b32 %r4, %r3, 508; ld.shared.b32 %r5, [%r4]; st.global.u32 [%rd7], %r5;"""


WRITE_ALL = "st.global.u32 [%rd2], %r1;"


OF_ONE_BLOCK = "add.s64 %rd10, %rd2, %rd3; st.global.u32 [%rd10], %r1;"


# All threads of a warp read the element of its first thread, which then writes it.
WARP_READS = """and.b64 %rd9, %rd5, {mask}; add.s64 %rd10, %rd2, %rd9;
{first} setp.eq.s64 %p1, %rd9, %rd5; @%p1 st.global.u32 [%rd10], 7; {second}"""


READ = "ld.global.u32 %r3, [%rd10];"


PROGRAMS = {
    "copy": ("ld.global.u32 %r3, [%rd6]; st.global.u32 [%rd7], %r3;", lambda b: b, {"grid": 3}),
    "blocks-in-turn": (
        "ld.global.u32 %r3, [%rd6]; add.s32 %r3, %r3, %r3; st.global.u32 [%rd7], %r3;",
        lambda b: 2 * b,
        {"grid": 5, "at_once": 2},
    ),
    "some-blocks": (
        "add.s32 %r3, %r2, 1000; st.global.u32 [%rd7], %r3;",
        lambda b: np.where(b // 128 == 2, 1002, b),
        {"grid": 5, "blocks": [2]},
    ),
    "grid": (
        "mov.u32 %r3, %nctaid.x; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b + 3,
        {"grid": 3},
    ),
    "divergent-loop": (
        """mov.u32 %r3, 0; mov.u32 %r4, 0;
$L1: setp.ge.s32 %p1, %r3, %r1; @%p1 bra $L2;
add.s32 %r3, %r3, 1; and.b32 %r5, %r3, 1; setp.eq.s32 %p2, %r5, 0; @%p2 bra $L1;
add.s32 %r4, %r4, 3; bra.uni $L1;
$L2: st.global.u32 [%rd7], %r4;""",
        lambda b: 3 * ((b + 1) // 2),
        {},
    ),
    "guards": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2; "
        "st.global.u32 [%rd7], %r3;",
        lambda b: np.where(b < 5, 1, 2),
        {},
    ),
    "guarded-return": (
        "setp.lt.s32 %p1, %r1, 5; @%p1 ret; st.global.u32 [%rd7], 9;",
        lambda b: np.where(b < 5, b, 9),
        {},
    ),
    "vectors": (
        """mul.wide.u32 %rd8, %r1, 8; add.s64 %rd9, %rd1, %rd8; add.s64 %rd10, %rd2, %rd8;
setp.ge.s32 %p1, %r1, 64; @%p1 ret;
ld.global.v2.u32 {%r3, %r4}, [%rd9]; st.global.v2.u32 [ %rd10 + 0 ], {%r4, %r3};""",
        lambda b: b ^ 1,
        {},
    ),
    "halves": (
        "mov.b32 {%h1, %h2}, %r1; mov.b32 %r3, {%h2, %h1}; st.global.u32 [%rd7], %r3;",
        lambda b: b << 16,
        {},
    ),
    "registers-of-braces": (
        """shl.b32 %r3, %r1, 16; { .reg .b16 tmp; mov.b32 {tmp, %h1}, %r3; }
{ .reg .b16 tmp; mov.b32 {_, tmp}, %r3; cvt.u32.u16 %r4, tmp; } st.global.u32 [%rd7], %r4;""",
        lambda b: b,
        {},
    ),
    "sign-extension": (
        "st.global.u16 [%rd7], -2; ld.global.s16 %r3, [%rd7]; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b - 2,
        {},
    ),
    "immediates": (
        """mov.f32 %f1, 0f3F800000; add.rn.f32 %f2, %f1, 0f40000000; mov.b32 %r3, %f2;
xor.b32 %r4, %r3, 0x1; sub.s32 %r4, %r4, -1; st.global.u32 [%rd7], %r4;""",
        lambda b: 0 * b + 0x40400002,
        {},
    ),
    "comments-and-directives": (
        '/* ret;\n ret; */ .pragma "nounroll";\n.loc 1 2 3\n// ret;\nst.global.u32 [%rd7], 1;',
        lambda b: 0 * b + 1,
        {},
    ),
    "reverse-in-memory": (REVERSE.format(between="bar.sync 0;", mask=508), lambda b: b ^ 127, {}),
    "reverse-in-shared-memory": (
        SHARED_REVERSE.format(between="bar.sync 0;"),
        lambda b: (b % 128) ^ 127,
        {"grid": 20},
    ),
    "address-of-shared-memory": (
        """mov.b32 %r3, smem; shl.b32 %r4, %r1, 2; add.s32 %r3, %r3, %r4;
st.shared.b32 [%r3+512], %r1; ld.shared.b32 %r5, [%r3+512]; st.global.u32 [%rd7], %r5;""",
        lambda b: b,
        {},
    ),
    "barrier-after-returns": (
        "setp.ge.s32 %p1, %r1, 64; @%p1 ret; bar.sync 0; st.global.u32 [%rd7], 1;",
        lambda b: np.where(b < 64, 1, b),
        {},
    ),
    "generic-address-of-parameters": (
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; ld.u64 %rd11, [%rd10]; "
        "cvt.u32.u64 %r3, %rd11; st.global.u32 [%rd7], %r3;",
        lambda b: 0 * b + A % 2**32,
        {},
    ),
    "fewer-threads": (
        "st.global.u32 [%rd7], 5;",
        lambda b: np.where(b < 33, 5, b),
        {"threads": 33},
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    body, expected, options = PROGRAMS[name]
    b = np.arange(128 * options.get("grid", 1), dtype=np.uint32)
    assert launch(body, **options).tolist() == expected(b).tolist()


# The message for each fault, the program, and the options of its launch.
FAULTS = {
    # Bounds and alignment.
    "past-the-end": ("out of bounds.*end of a", "ld.global.u32 %r3, [%rd6+4];", {}),
    "before-the-start": ("out of bounds", "ld.global.u32 %r3, [%rd6+-4];", {}),
    "before-all-memory": ("before all memory", "mov.u64 %rd9, 64; ld.global.u32 %r3, [%rd9];", {}),
    "store-past-the-end": ("out of bounds", "st.global.u32 [%rd7+4], %r1;", {}),
    "misaligned-vector": ("misaligned", "ld.global.v2.u32 {%r3, %r4}, [%rd6];", {}),
    "misaligned-store": ("misaligned", "st.global.u32 [%rd7+2], %r1;", {}),
    "store-to-what-is-read-only": (
        "a is not to be written",
        "st.global.u32 [%rd6], %r1;",
        {"writable": (False, True)},
    ),
    "past-the-parameters": ("out of bounds", "ld.param.u64 %rd9, [k_1+8];", {}),
    "parameters-as-global": (
        "not in global",
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; ld.global.u64 %rd11, [%rd10];",
        {},
    ),
    "parameters-written": (
        "not to be written",
        "mov.b64 %rd9, k_0; cvta.param.u64 %rd10, %rd9; st.u64 [%rd10], %rd9;",
        {},
    ),
    "past-shared-memory": (
        "out of bounds.*shared",
        "shl.b32 %r3, %r1, 4; st.shared.u32 [%r3], %r1;",
        {"grid": 2},
    ),
    "before-shared-memory": (
        "out of bounds",
        "shl.b32 %r3, %r1, 2; st.shared.u32 [%r3+-4], %r1;",
        {"grid": 2},
    ),
    "misaligned-in-shared-memory": ("misaligned", "st.shared.u32 [smem+2], %r1;", {}),
    "no-shared-memory": ("out of bounds", "st.shared.u32 [smem], %r1;", {"shared_bytes": 0}),
    # Races.
    "one-place-written-by-all": ("two threads write the same place", WRITE_ALL, {}),
    "one-place-written-by-two-blocks": ("two blocks", OF_ONE_BLOCK, {"grid": 2}),
    "one-place-written-by-blocks-in-turn": ("two blocks", OF_ONE_BLOCK, {"grid": 2, "at_once": 1}),
    "reverse-without-barrier": ("no barrier", REVERSE.format(between="", mask=508), {}),
    "reverse-of-two-blocks": (
        "two blocks",
        REVERSE.format(between="bar.sync 0;", mask=512),
        {"grid": 2},
    ),
    "reverse-of-blocks-in-turn": (
        "two blocks",
        REVERSE.format(between="bar.sync 0;", mask=512),
        {"grid": 2, "at_once": 1},
    ),
    "shared-reverse-without-barrier": ("no barrier", SHARED_REVERSE.format(between=""), {}),
    "shared-memory-written-by-all": ("two threads write", "st.shared.u32 [smem], %r1;", {}),
    "shared-memory-written-after-reads": (
        "shared memory: one thread reads",
        """setp.eq.s32 %p1, %r1, 0; @%p1 st.shared.u32 [smem], %r1; bar.sync 0;
ld.shared.u32 %r3, [smem]; @%p1 st.shared.u32 [smem], %r1;""",
        {"threads": 32},
    ),
    "neighbors": (
        "no barrier",
        """ld.global.u32 %r3, [%rd7]; setp.eq.s32 %p1, %r1, 127; @%p1 bra $E;
st.global.u32 [%rd7+4], %r3;\n$E:""",
        {},
    ),
    "part-of-a-word": (
        "no barrier",
        """ld.global.u16 %h1, [%rd7+2]; setp.eq.s32 %p1, %r1, 64;
@%p1 st.global.v4.u32 [%rd2], {%r1, %r1, %r1, %r1};""",
        {},
    ),
    "write-after-reads-of-two-warps": (
        "no barrier",
        WARP_READS.format(mask=-256, first=READ, second=""),
        {},
    ),
    "read-after-a-write-of-the-warp": (
        "no barrier",
        WARP_READS.format(mask=-128, first="", second=READ),
        {},
    ),
    # Barriers and the end.
    "barrier-for-some": (
        "not all threads",
        "setp.eq.s32 %p1, %r1, 5; @%p1 bra $E; bar.sync 0;\n$E: st.global.u32 [%rd7], %r1;",
        {},
    ),
    "guarded-barrier": ("not all threads", "setp.eq.s32 %p1, %r1, 5; @%p1 bar.sync 0;", {}),
    "endless": ("does not end", "$L: bra $L;", {"limit": 50}),
    # Reads of unwritten memory.
    "unwritten-register": ("read before it is written", "st.global.u32 [%rd7], %r9;", {}),
    "register-written-by-some": (
        "read before it is written",
        "setp.eq.s32 %p1, %r1, 5; @%p1 mov.u32 %r9, 1; st.global.u32 [%rd7], %r9;",
        {},
    ),
    "register-of-other-braces": (
        "read before it is written",
        """{ .reg .b16 tmp; mov.b32 {tmp, %h1}, %r1; }
{ .reg .b16 tmp; cvt.u32.u16 %r4, tmp; st.global.u32 [%rd7], %r4; }""",
        {},
    ),
    "unwritten-shared-memory": (
        "nothing has written",
        "shl.b32 %r3, %r1, 2; ld.shared.u32 %r6, [%r3];",
        {},
    ),
    "shared-memory-of-another-block": (
        "nothing has written",
        "setp.eq.s32 %p1, %r2, 0; @%p1 bra $L; ld.shared.u32 %r6, [smem]; ret;\n"
        "$L: setp.eq.s32 %p2, %r1, 0; @%p2 st.shared.u32 [smem], %r1;",
        {"grid": 2, "at_once": 1},
    ),
    # Unknown operations.
    "towards-zero": ("not known", "add.rz.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "flushed-subnormals": ("not known", "add.rn.ftz.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "no-rounding": ("not known", "add.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "approximate-division": ("not known", "div.full.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "approximate-root": ("not known", "sqrt.approx.f32 %f2, 0f3F800000;", {}),
    "saturation": ("not known", "add.rn.sat.f32 %f2, 0f3F800000, 0f3F800000;", {}),
    "instruction": ("not known", "popc.b32 %r3, %r1;", {}),
    "another-barrier": ("not known", "bar.sync 1;", {}),
    "bypass-of-a-cache": ("not known", "ld.global.cv.u32 %r3, [%rd6];", {}),
    "local-memory": ("not known", "ld.local.u32 %r3, [%rd6];", {}),
    "single-bytes": ("single bytes", "st.global.u8 [%rd7], %h1;", {}),
    "special-register": ("not known", "mov.u32 %r3, %clock;", {}),
    "directive": ("directive", ".local .b32 x;", {}),
    "statement": ("not understood", "add.s32 %r3, {%r1, %r1;", {}),
    "braces-within-braces": ("within braces", "{ .reg .b16 x; { .reg .b16 y; } }", {}),
    "label": ("NOWHERE", "bra $NOWHERE;", {}),
    # Wrong types and arguments.
    "immediate-of-another-width": ("does not fit", "mov.b16 %h1, 65536;", {}),
    "integer-for-a-float": ("not known", "add.rn.f32 %f1, 1, 0f3F800000;", {}),
    "float-for-an-integer": ("0f3F800000 is not", "add.s32 %r3, %r1, 0f3F800000;", {}),
    "narrow-register": ("%h1 of 16 bits as 32 bits", "mov.u32 %h1, %r1;", {}),
    "predicate-as-number": ("%p1 of 1 bits", "setp.eq.s32 %p1, %r1, 0; mov.u32 %r3, %p1;", {}),
    "number-as-predicate": ("%r1 of 32 bits as 1 bits", "not.pred %p1, %r1;", {}),
    "number-of-registers": ("are not 2", "ld.global.v2.u32 {%r3}, [%rd6];", {}),
    "number-of-operands": ("argument", "add.s32 %r3, %r1;", {}),
    "threads": ("129 threads in a block, made for 128", "", {"threads": 129}),
    "blocks": ("outside of the grid", "", {"blocks": [1]}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults(name):
    message, body, options = FAULTS[name]
    with pytest.raises(PtxError, match=message):
        launch(body, **options)


@pytest.mark.parametrize(("threads", "warps"), [(128, 4 * 3), (33, 3)])
def test_reads_of_a_warp_before_its_write_are_counted(threads, warps):
    memory = Memory()
    for name, address in (("a", A), ("b", B)):
        memory.allocate(name, address, np.arange(128 * 3, dtype=np.uint32), True)
    program = kernel(WARP_READS.format(mask=-128, first=READ, second=""))
    run(program, 3, struct.pack("QQ", A, B), memory, threads=threads)
    assert memory.same_warp_reads_before_writes == 2 * warps  # the two halves of a number


def test_separate_launches_do_not_race():
    memory = Memory()
    for name, address in (("a", A), ("b", B)):
        memory.allocate(name, address, np.arange(256, dtype=np.uint32), True)
    for body in (OF_ONE_BLOCK, "xor.b64 %rd3, %rd3, 508; " + OF_ONE_BLOCK):
        run(kernel(body), 1, struct.pack("QQ", A, B), memory, threads=128)
    assert len(memory.regions) == 2


def test_the_whole_of_an_access_must_be_in_bounds():
    memory = Memory()
    memory.allocate("b", B, bytes(12), True)
    load = kernel("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2];")
    with pytest.raises(PtxError, match="-12 from the end of b"):
        run(load, 1, struct.pack("QQ", A, B), memory, threads=1)


def test_coverage():
    program = kernel(
        """setp.lt.s32 %p1, %r1, 900; @%p1 mov.u32 %r3, 1; @!%p1 mov.u32 %r3, 2;
@!%p1 bra $E; @%p1 bra $E; neg.s32 %r3, %r1;\n$E:"""
    )
    assert not program.executed
    assert program.coverage() == (0, 16)
    run(program, 1, bytes(16), Memory(), threads=128)
    assert program.executed
    assert program.coverage() == (14, 16)
    assert program.opcodes() >= {"ld.param.u64", "bra", "setp.lt.s32", "mov.u32", "ret"}
    assert "neg.s32" not in program.opcodes()


def test_parameters():
    text = HEAD.replace(
        ".param .u64 k_0, .param .u64 k_1",
        ".param .u8 k_0, .param .u64 .ptr .global .align 1 k_1, .param .align 16 .b8 k_2[40]",
    )
    program = programs(text + "ret;\n}\n.entry other()\n{\nret;\n}\n")["k"]
    assert program.kernel.params == {"k_0": (0, 1), "k_1": (8, 8), "k_2": (16, 40)}
    with pytest.raises(PtxError, match="55 bytes of parameters for 56"):
        run(program, 1, bytes(55), Memory(), threads=1)
    with pytest.raises(PtxError, match="a parameter that is not known"):
        programs(text.replace(".u8 k_0", ".u8 k_0[]") + "ret;\n}\n")
    with pytest.raises(PtxError, match="variables of a module"):
        programs(".global .b32 x;\n" + HEAD + "ret;\n}\n")


def test_kernels_can_access_host_memory():
    a, b = torch.arange(128, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    memory = Memory()
    memory.over_host("a", a.data_ptr(), 512, False)
    memory.over_host("nothing", a.data_ptr(), 0, True)
    region = memory.over_host("b", b[3:].data_ptr(), 512, True)
    arguments = struct.pack("QQ", a.data_ptr(), b[3:].data_ptr())
    copy = kernel(PROGRAMS["copy"][0])
    run(copy, 1, arguments, memory, threads=128)
    assert b.tolist() == [0] * 3 + a.tolist() + [0] * 125
    assert memory.read(region, np.int32).tolist() == a.tolist()
    memory.over_host("part of b", b[5:].data_ptr(), 8, True)
    with pytest.raises(PtxError, match="b and part of b overlap"):
        run(copy, 1, arguments, memory, threads=128)


def test_a_fault_names_its_line():
    line = HEAD.count("\n") + 2
    with pytest.raises(PtxError, match=rf"line {line}: st\.global\.u32 \[%rd7\+4\], %r1"):
        launch("\nst.global.u32 [%rd7+4], %r1;")
