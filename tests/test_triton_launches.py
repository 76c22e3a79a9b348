"""The Triton backend without a GPU: compilation, uploads and launches."""

import struct
from collections import Counter
from itertools import count

import numpy as np
import pytest
import torch

from radam_fused import FusedRAdam
from radam_fused.options import OPTION_NAMES
from radam_fused.state import ROLES

from .harness.helpers import OPTIONS, assert_same_bits, copies, gradients, parameters, train
from .test_device_bits import assert_same_on_both, step_both

triton = pytest.importorskip("triton")
from radam_fused.triton_kernels.compiled import CompiledKernels  # noqa: E402
from radam_fused.triton_kernels.radam_math import MOMENTUM  # noqa: E402
from radam_fused.triton_kernels.upload import CHUNK, INDEX_BYTES  # noqa: E402

from .harness.ptx.tables import SEGMENT, index_of  # noqa: E402
from .harness.ptx.triton import TritonPtx  # noqa: E402

pytestmark = pytest.mark.slow

_devices = count()


@pytest.fixture
def gpu(monkeypatch):
    """The Triton backend without a GPU, with nothing compiled yet."""
    return TritonPtx(monkeypatch, device=f"new-{next(_devices)}")


@pytest.fixture
def compilations(gpu, monkeypatch):
    """The names of the kernels that Triton compiles."""
    names = []

    def compiled_one(*, fn, already_compiled=False, **_):
        if not already_compiled:
            names.append(fn.name.rpartition(".")[2])

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", compiled_one)
    return names


class Table:
    """One segment per size, each with its own coefficients."""

    def __init__(self, gpu, *sizes, counter=None, offset=0):
        self.kernels = CompiledKernels(gpu.device, [torch.float32] * 3, False, counter)
        size = offset + INDEX_BYTES + 1000 * len(sizes)
        memory = torch.zeros(size, dtype=torch.uint8)
        gpu.workspaces.note(memory)
        self.upload = self.kernels.upload(memory[offset:])
        self.segments, self.tensors, first = b"", [], 0
        for row, size in enumerate(sizes):
            tensors = {role: torch.ones(size) for role in ("param", "grad", *ROLES[3:5])}
            tensors["step"] = torch.zeros((), dtype=counter)
            addresses = [tensors[role].data_ptr() if role in tensors else 0 for role in ROLES]
            self.segments += struct.pack(f"{len(ROLES)}q4q", *addresses, size, first, row, 0)
            self.tensors.append(tensors)
            first += -(-size // CHUNK) * CHUNK

    def index(self, most):
        """See TensorTable.chunk_index."""
        rows = np.frombuffer(self.segments, SEGMENT)
        entries, shift = index_of(rows, self.upload.num_programs, most)
        return entries.tobytes(), shift

    def step(self, numbers):
        self.kernels.run(self.upload, self.segments, numbers, self.index)


def momentum_steps(*step_sizes):
    """Array of StepCoefficients in float32."""
    rows = [(1, 0, 1, 1, 1, step_size, 0, MOMENTUM.value) for step_size in step_sizes]
    return b"".join(struct.pack("7fi", *row) for row in rows)


def test_a_step_copies_changed_tables_in_one_copy(gpu, monkeypatch):
    copy, copied = torch.Tensor.copy_, []

    def counted(to, source, non_blocking=False):
        copied.append(to.numel())
        return copy(to, source, non_blocking)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    table, other = Table(gpu, 5, 0, 1500), Table(gpu, 7)
    table.step(momentum_steps(1, 2, 3))
    table.step(momentum_steps(1, 2, 3))
    table.step(momentum_steps(4, 5, 6))
    table.segments = other.segments
    table.step(momentum_steps(7))
    segment = SEGMENT.itemsize
    assert copied == [INDEX_BYTES + 3 * (segment + 32), 3 * 32, INDEX_BYTES + segment + 32]
    for tensors, moved in zip(table.tensors + other.tensors, (6, 9, 12, 7), strict=True):
        assert (tensors["param"] == 1 - moved).all()


def test_a_captured_upload_copies_from_its_staging_memory(gpu):
    table, memory = Table(gpu, 5, 1500), torch.zeros(INDEX_BYTES + 1000, dtype=torch.uint8)
    gpu.workspaces.note(memory)
    staging = torch.zeros_like(memory)
    table.upload = table.kernels.upload(memory, staging)
    table.step(momentum_steps(1, 2))
    assert staging.any()
    assert staging.equal(memory)


@pytest.mark.parametrize("counter", [None, torch.float32, torch.float64], ids=str)
def test_no_argument_is_specialised(counter, gpu, compilations):
    """Neither numbers such as 1 and 16 nor alignments need another compilation."""
    options = struct.pack(f"{len(OPTION_NAMES)}d5q", *[0.5] * len(OPTION_NAMES), 0, 0, 0, 0, 0)
    for segments in (1, 2, 16, 17):
        for offset in (0, 8, 16):
            table = Table(gpu, *[3] * segments, counter=counter, offset=offset)
            table.step(options if counter else momentum_steps(*range(segments)))
            assert all(tensors["step"] == (counter is not None) for tensors in table.tensors)
    expected = ["step_kernel"] + ["prologue_kernel"] * (counter is not None)
    assert Counter(compilations) == Counter(expected)


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_steps_reach_the_driver(capturable, gpu):
    """Every layer of a step on a GPU but the driver."""
    params = parameters((5, 3), (1025,), (0,), (2048,))
    ours = FusedRAdam(copies(params), backend="triton", weight_decay=0.1, capturable=capturable)
    theirs = FusedRAdam(copies(params), backend="cpu", weight_decay=0.1)
    for t, grads in enumerate(gradients(params, 8)):
        step_both([ours, theirs], [None if i == t % 3 else g for i, g in enumerate(grads)])
        assert_same_on_both(ours, theirs)
    assert gpu.driver.launched.count("step_kernel") == 8
    assert gpu.driver.launched.count("prologue_kernel") == (8 if capturable else 0)


def test_a_compiler_error_leaves_everything_unchanged(gpu, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such instruction")

    params = parameters((5,))
    before = params[0].detach().clone()
    optimizer = FusedRAdam(params, backend="triton")
    monkeypatch.setattr(gpu.driver.utils, "load_binary", fail)
    dtypes = "parameters, gradients and moments of float32, float32, float32"
    with pytest.raises(RuntimeError, match=f"compile a step on cpu for {dtypes}: no such instr"):
        train(optimizer, gradients(params, 1))
    assert_same_bits(params[0].detach(), before)
    assert gpu.driver.launched == []


@pytest.mark.parametrize("options", [{}, OPTIONS["amsgrad-l2-maximize"]], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_no_option_needs_another_compilation(options, capturable, compilations):
    params = parameters(*[(33,)] * 40, (1025,))
    optimizer = FusedRAdam(params, backend="triton", capturable=capturable, **options)
    [group] = optimizer.param_groups
    for t, grads in enumerate(gradients(params, 9)):  # beyond the threshold
        group["lr"], group["betas"] = 0.1 / (t + 1), (0.9, 0.8 + t / 100)
        group["weight_decay"], group["eps"] = t % 3 / 10, t % 2 * 1e-8
        late = [None if t < 3 and i < 3 else g for i, g in enumerate(grads)]
        only_one = [g if t == 5 and i == 0 else None for i, g in enumerate(grads)]
        train(optimizer, [only_one if t == 5 else late])
    expected = ["step_kernel"] + ["prologue_kernel"] * capturable
    assert Counter(compilations) == Counter(expected)


def test_each_dtype_is_compiled_once(compilations):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        params = parameters((33,), dtype=dtype)
        train(FusedRAdam(params, backend="triton"), gradients(params, 2))
    assert Counter(compilations) == {"step_kernel": 3}
