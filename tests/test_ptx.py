"""The compiled device kernels, executed from their PTX, give the bits of the CPU kernel.

RADAM_PTX=full runs many more cases; RADAM_PTX_ARCH=75 compiles for another architecture.
"""

import os
import random

import numpy as np
import pytest
import torch

from .harness import backends
from .harness.helpers import gradients, launches_of, parameters
from .harness.ptx import Memory, PtxError, mutants
from .harness.ptx.cases import DTYPES, ROLES, Pair, Row, every_way
from .harness.ptx.cuda import UPLOAD, CudaPtx
from .harness.ptx.far import CHUNK, assert_same_far, edges
from .harness.ptx.prologues import assert_same_prologue
from .harness.ptx.stored import FORMATS, Stored
from .test_graphs import Loop, drawn_options, drawn_step

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This instance was constructed with capturable"),
    pytest.mark.filterwarnings("ignore:no step is ever rectified"),
]

FULL = os.environ.get("RADAM_PTX") == "full"

FLOAT32 = Stored(*(torch.float32,) * 3)
BFLOAT16 = Stored(torch.bfloat16, torch.bfloat16, torch.float32)
FLOAT16 = Stored(torch.float16, torch.float32, torch.float16)
FLOAT64 = Stored(*(torch.float64,) * 3)


@pytest.fixture
def triton_ptx(monkeypatch):
    return backends.triton_ptx(monkeypatch)


def assert_covered(kernel):
    """Assert that every instruction of a kernel was executed."""
    done, every = kernel.program.coverage()
    assert done == every


# Few enough segments and step counts for the arguments of the CUDA kernel, with sizes for which the
# search begins at a wrong segment.
ROWS = [Row(20_000, 20), Row(1027, 0, ("grad",)), Row(1023, 20), Row(1, 20), Row(0), Row(2048)]
FEW = [({"weight_decay": 0.1}, [*ROWS, Row(129), Row(300, 4, ROLES)])]

# The largest possible grid, of 2^31 - 1 blocks.
LARGEST = [(2**40, 0), ((2**31 - 1) * CHUNK - 2**40 - 2 * CHUNK, 1), (1000, 0), (1, 1)]
FAR_BLOCKS = [0, 2**30 - 1, 2**30, 2**31 - 4, 2**31 - 3, 2**31 - 2]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_every_way_through_a_kernel(dtypes, amsgrad, ptx):
    draw = random.Random(f"{dtypes} {amsgrad}")
    kernel = ptx.step_kernel(dtypes, amsgrad)
    kernel.program.forget()
    Pair(ptx.name, dtypes, [*every_way()], draw, amsgrad, odd=0.02).step()
    pair = Pair(ptx.name, dtypes, FEW, draw, amsgrad, odd=0.4)
    pair.step()
    pair.step()
    assert_same_far(ptx, dtypes, amsgrad, LARGEST, FAR_BLOCKS, draw)
    assert_covered(kernel)


@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("stored", FORMATS, ids=str)
def test_every_format(stored, amsgrad, ptx):
    draw = random.Random(f"{stored} {amsgrad}")
    for on_device in (False, True):
        Pair(ptx.name, stored, [*every_way()], draw, amsgrad, 0.02, on_device).step()
    pair = Pair(ptx.name, stored, FEW, draw, amsgrad, odd=0.4)
    pair.step()
    pair.step()


@pytest.mark.parametrize("in_memory", [False, True], ids=["arguments", "memory"])
@pytest.mark.parametrize("numel", [2**31 - 1, 2**31, 2**31 + 5, 2**33 + 1023, 2**38 + 7])
@pytest.mark.parametrize("dtypes", [FLOAT64, FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_a_segment_beyond_32_bits(dtypes, numel, in_memory, ptx):
    last = (numel - 1) // CHUNK
    blocks = sorted({0, 1, last // 2, last - 1, last, *(min(last, 2**i) for i in (20, 21, 22))})
    assert_same_far(ptx, dtypes, in_memory, [(numel, 0)], blocks, random.Random(numel), in_memory)


@pytest.mark.parametrize("in_memory", [False, True], ids=["arguments", "memory"])
@pytest.mark.parametrize("dtypes", [FLOAT64, FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_segments_beyond_32_bits(dtypes, in_memory, ptx):
    sizes = [(5, 0), (0, 1), (2**32 + 3, 1), (1024, 2), (2**35 + 1, 0), (0, 2), (7, 2), (3000, 1)]
    blocks = sorted(edges(sizes))
    assert_same_far(ptx, dtypes, True, sizes, blocks, random.Random(0), in_memory)


@pytest.mark.parametrize(("count", "largest"), [(5000, 2**30), (70_000, 2**20)])
def test_some_blocks_of_many_segments(count, largest, ptx):
    """Also of more segments than 16 bits can number."""
    draw = random.Random(1)
    choices = [0, 1, 5, 1024, 5000, largest]
    sizes = [(draw.choice(choices), draw.randrange(6)) for _ in range(count)]
    blocks = sorted(draw.sample(sorted(edges(sizes)), 120))
    assert_same_far(ptx, FLOAT32, False, sizes, blocks, draw)


COUNTERS = ARITHMETIC = (torch.float32, torch.float64)
FRACTIONS = [1.25, 2.6875, 5.8125, 7.5, 1000.7, 99_999.001]
NO_COUNTS = [0.0, 0.5, -3.0, float("inf"), -float("inf"), float("nan")]  # after a step
ODD_COUNTS = FRACTIONS + NO_COUNTS


def test_every_way_through_the_prologue(ptx):
    draw = random.Random(0)
    kinds = [(counter, dtype) for counter in COUNTERS for dtype in ARITHMETIC]
    kernels = [ptx.prologue_kernel(*kind) for kind in kinds]
    kernels += [ptx.prologue_kernel(*kind, True) for kind in kinds if kind[1] == torch.float32]
    for kernel in kernels:
        kernel.program.forget()
    overflows = [None] * 6 + [0.0, -0.0, 1.0, 1e-45, float("inf"), float("nan")]
    for found_inf in overflows:
        for kind in kinds:
            counts = [drawn_step(draw) for _ in range(draw.choice([127, 128, 129]))]
            given = ptx, draw, counts + ODD_COUNTS, *kind, found_inf
            assert_same_prologue(*given)
            if kind[1] == torch.float32:  # no float64 number is rounded
                assert_same_prologue(*given, draws=True)
    for skips in (0.0, 1.0):
        for kind in kinds:
            given = ptx, draw, ODD_COUNTS, *kind, draw.choice([None, 0.0]), skips
            assert_same_prologue(*given)
            if kind[1] == torch.float32:  # no float64 number is rounded
                assert_same_prologue(*given, draws=True)
    for kernel in kernels:
        assert_covered(kernel)


@pytest.mark.parametrize("seed", range(100 if FULL else 8))
def test_drawn_prologues(seed, ptx):
    draw = random.Random(seed)
    counts = [drawn_step(draw) for _ in range(draw.choice([1, 31, 90, 300]))]
    kind = draw.choice(COUNTERS), draw.choice(ARITHMETIC)
    assert_same_prologue(ptx, draw, counts, *kind, draw.choice([None, 0.0]))


def test_step_counts_beyond_the_precision_of_a_counter(ptx):
    draw = random.Random(0)
    limit = 2**24
    counts = [limit - 1, limit, limit + 1, limit + 3, 2**30 + 1]
    wide, wider = [*counts, 2**32 + 1, 10**12 + 1, 2**52], [2.0**53 + 2, 2.0**60, 1e300]
    for dtype in ARITHMETIC:
        assert_same_prologue(ptx, draw, counts, torch.float32, dtype)
        assert_same_prologue(ptx, draw, wide, torch.float64, dtype)
        assert_same_prologue(ptx, draw, wider, torch.float64, dtype)


@pytest.mark.parametrize("counter", COUNTERS)
def test_fractions_and_numbers_that_are_no_count(counter, ptx):
    draw = random.Random(0)
    for dtype in ARITHMETIC:
        assert_same_prologue(ptx, draw, [*FRACTIONS, 1.0, 6.0, *NO_COUNTS], counter, dtype)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 4093])
def test_the_upload(count, monkeypatch):
    ptx = CudaPtx(monkeypatch)
    kernel = ptx.upload_kernel()
    kernel.program.forget()
    arguments = np.zeros(1, UPLOAD)
    arguments["words"] = np.random.default_rng(count).integers(0, 2**63, 4093)
    arguments["to"], arguments["num_words"] = 0x7FFF_FFFF_0008, count
    memory = Memory()
    to = memory.allocate("words", 0x7FFF_FFFF_0008, np.zeros(count, "u8"), True)
    kernel.run(-(-count // kernel.threads), arguments.tobytes(), memory)
    assert (memory.read(to, np.uint64) == arguments["words"][0, :count]).all()
    assert_covered(kernel)


STEPS = [0, 1, 4, 5, 20, 999, 99_999, 999_999]
SIZES = [0, 1, 2, 3, 5, 7, 8, 9, 127, 129, 1023, 1024, 1025, 2047, 2048, 3000]


def drawn_groups(draw, on_device):
    """Groups with drawn options, and rows of drawn size, step count and alignment."""
    misaligned = draw.choice([0.0, 0.1, 1.0])
    many = draw.random() < 0.3
    for _ in range(draw.randrange(1, 5)):
        numbers, flags = drawn_options(draw)
        del numbers["grad_scale"]
        if flags["absolute_weight_decay"]:
            flags["decoupled_weight_decay"] = True
        if on_device and draw.random() < 0.5:
            dtype = draw.choice([torch.float32, torch.float64])
            numbers["lr"] = torch.tensor(numbers["lr"], dtype=dtype)
        yield (
            {**numbers, **flags},
            [
                Row(
                    draw.choice(SIZES[:9] if many else SIZES),
                    draw.choice(STEPS),
                    [role for role in ROLES if draw.random() < misaligned],
                )
                for _ in range(draw.randrange(12, 40) if many else draw.randrange(1, 5))
            ],
        )


@pytest.mark.parametrize("seed", range(400 if FULL else 16))
def test_drawn_steps(seed, ptx):
    draw = random.Random(seed)
    on_device = draw.random() < 0.4
    pair = Pair(
        ptx.name,
        draw.choice(DTYPES + 2 * FORMATS),
        [*drawn_groups(draw, on_device)],
        draw,
        amsgrad=draw.random() < 0.5,
        odd=draw.choice([0.0, 0.05, 0.4]),
        on_device=on_device,
        counter=draw.choice(COUNTERS),
    )
    for _ in range(draw.randrange(1, 4)):
        scaling = (1.0, 0.0) if draw.random() < 0.5 else (3.0, draw.choice([-0.0, 1.0]))
        pair.step(*scaling, absent=draw.choice([0.0, 0.2]))


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "weight_decay": 0.1}], ids=str)
def test_replays_are_steps(options, ptx):
    params = parameters(*[(1 + 13 * i,) for i in range(60)], (1025,))
    loop = Loop(ptx, params, **options)
    steps = iter(gradients(params, 8))
    loop.step(next(steps))
    graph = loop.capture()
    launches = ptx.launches()
    for grads in steps:  # beyond the threshold
        loop.replay(graph, grads)
    assert ptx.launches() == launches
    loop.check()


def captured(ptx):
    params = parameters((5,))
    loop = Loop(ptx, params)
    loop.step(gradients(params, 1)[0])
    graph = loop.capture()
    graph.replay()
    return loop, graph


def test_a_workspace_freed_before_its_graph_is_noticed(ptx):
    _loop, graph = captured(ptx)
    ptx.free_memory_of(graph)
    with pytest.raises(PtxError, match=r"lie in no workspace|has been freed"):
        graph.replay()


def test_staging_memory_freed_before_its_graph_is_noticed(triton_ptx):
    loop, graph = captured(triton_ptx)
    for launch in launches_of(loop.optimizer):
        launch._graph_staging.clear()  # nothing public frees it early
    with pytest.raises(PtxError, match="has been freed"):
        graph.replay()


def noticed(ptx, runs, kernel, changed):
    """Whether a run fails with a changed kernel."""
    ptx.changed[kernel.text] = changed
    try:
        for run in runs:
            try:
                run()
            except AssertionError:
                return True
            except PtxError as error:
                if "not known" in str(error):
                    raise
                return True
    finally:
        del ptx.changed[kernel.text]
    return False


def sample(draw, mutants, count):
    mutants = list(mutants)
    return draw.sample(mutants, min(len(mutants), 10 * count if FULL else count))


def steps(ptx, dtypes):
    """Runs of a step's kernel with amsgrad."""

    def every():
        Pair(ptx.name, dtypes, [*every_way()], random.Random(1), True, odd=0.02).step()

    def few():
        Pair(ptx.name, dtypes, FEW, random.Random(2), True, odd=0.02).step()

    def scaled():
        # Not a power of two: a contracted product would be exact.
        pair = Pair(ptx.name, dtypes, [*every_way()], random.Random(3), True, on_device=True)
        for _ in range(3):
            pair.step(3.0, 0.0)

    def searched():
        # Tables with nothing beside them.
        sizes = [(numel, i % 3) for i, numel in enumerate((5, 1024, 3000, 1, 2048, 0, 7) * 2)]
        for in_memory in (False, True):
            blocks, draw = sorted(edges(sizes)), random.Random(4)
            assert_same_far(ptx, dtypes, True, sizes, blocks, draw, in_memory)

    return [every, few, scaled, searched]


def prologues(ptx):
    """Runs of a prologue's kernel: CUDA's serves both arithmetic types, Triton's float32."""
    dtypes = ARITHMETIC if ptx.name == "cuda" else ARITHMETIC[:1]

    def run():
        draw = random.Random(4)
        for found_inf in (*[None] * 8, 0.0, 1.0):
            for counter in COUNTERS:
                counts = [drawn_step(draw) for _ in range(33)]
                dtype = draw.choice(dtypes)
                skips = draw.choice([None, 0.0, 1.0])
                given = counter, dtype, found_inf, skips
                assert_same_prologue(ptx, draw, counts + ODD_COUNTS, *given)

    return [run]


def test_a_changed_step_is_noticed(ptx):
    dtypes = FLOAT32 if ptx.name == "cuda" else BFLOAT16
    kernel, runs, draw = ptx.step_kernel(dtypes, True), steps(ptx, dtypes), random.Random(5)
    assert not noticed(ptx, runs, kernel, kernel.text + "\n")
    changes = sample(draw, mutants.swapped(kernel.text), 8)
    changes += sample(draw, mutants.without_a_store(kernel.text), 2)
    changes += sample(draw, mutants.at_other_offsets(kernel.text), 2)
    changes += sample(draw, mutants.contracted(kernel.text), 3)
    assert [what for what, text in changes if not noticed(ptx, runs, kernel, text)] == []


def test_a_changed_prologue_is_noticed(ptx):
    kernel, runs, draw = ptx.prologue_kernel(torch.float32), prologues(ptx), random.Random(6)
    assert not noticed(ptx, runs, kernel, kernel.text + "\n")
    changes = sample(draw, mutants.swapped(kernel.text, sums=False), 6)
    changes += sample(draw, mutants.without_a_store(kernel.text), 2)
    changes += sample(draw, mutants.at_other_offsets(kernel.text), 2)
    assert [what for what, text in changes if not noticed(ptx, runs, kernel, text)] == []


@pytest.mark.parametrize("counter", COUNTERS, ids=str)
def test_a_prologue_without_its_barrier_is_noticed(counter, triton_ptx):
    kernel = triton_ptx.prologue_kernel(counter)
    [(_, text)] = mutants.without_a_barrier(kernel.text)
    [run] = prologues(triton_ptx)
    run()
    triton_ptx.changed[kernel.text] = text
    with pytest.raises(PtxError, match="places are written after other lanes"):
        run()
