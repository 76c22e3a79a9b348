"""What Triton's compiler makes of the kernels, for GPUs that need not be there."""

import re
import struct
import subprocess
from collections import Counter
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from radam_fused import FusedRAdam, rectification
from radam_fused.options import OPTION_NAMES
from radam_fused.state import ROLES

from .helpers import OPTIONS, assert_same_bits, copies, gradients, parameters, train
from .test_device_bits import assert_same_on_both, step_both

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from radam_fused.triton_kernels import launch, step  # noqa: E402
from radam_fused.triton_kernels.radam_math import MOMENTUM  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from .harness.ptx.triton import TritonPtx  # noqa: E402

FLOATS = {
    "float64": tl.float64,
    "float32": tl.float32,
    "bfloat16": tl.bfloat16,
    "float16": tl.float16,
}
BYTES = {name: dtype.primitive_bitwidth // 8 for name, dtype in FLOATS.items()}

NVIDIA = [80, 90, 100]
AMD = "gfx942"


def moments(param):
    return {param, "float64" if param == "float64" else "float32"}


# Parameter, gradient and moment.
EVERY = [(p, g, m) for p in FLOATS for g in FLOATS for m in sorted(moments(p))]
USUAL = [(p, p, m) for p in FLOATS for m in sorted(moments(p))]


# Of the kernels' arguments, as a launch passes them.
TYPES = {"table": "*i64", "count": "i64", "coefficients": "*fp64", "option_rows": "*fp64"}
TYPES |= {"x": "*fp32", "y": "*fp32"}


@cache
def compiled(kernel, target, constants=(), **options):
    """A kernel for a target, with its arguments as the launcher has them."""
    constants = dict(constants)
    names = kernel.arg_names
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else TYPES[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"enable_fp_fusion": False, **options}
    return triton.compile(source, target=target, options=options)


def step_for(target, param, grad, moment, amsgrad, **options):
    types = {"P": FLOATS[param], "G": FLOATS[grad], "M": FLOATS[moment]}
    constants = {**types, "AMSGRAD": amsgrad, "CHUNK": launch.CHUNK, "PART": launch.PART}
    options = launch.options_for(target, FLOATS[param], amsgrad) | options
    return compiled(step.step_kernel, target, tuple(constants.items()), **options)


def prologue_for(target, counter="float32"):
    return compiled(step.prologue_kernel, target, (("S", FLOATS[counter]),), num_warps=1)


def nvidia(capability):
    return GPUTarget("cuda", capability, 32)


def wide_accesses(ptx):
    """How many global loads and stores move 128 bits; wider ones count as several."""
    counted = Counter()
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global(?:\.\w+)*?\.v(\d)\.[bfu](\d+)", ptx):
        assert int(vector) * int(bits) % 128 == 0, "a vector access of less"
        counted[kind] += int(vector) * int(bits) // 128
    return counted


KERNELS = pytest.mark.parametrize(
    ("capability", "dtypes", "amsgrad"),
    [
        *((90, dtypes, amsgrad) for dtypes in EVERY for amsgrad in (False, True)),
        *((capability, dtypes, True) for capability in (75, 80, 100, 120) for dtypes in USUAL),
        *((capability, dtypes, False) for capability in (75, 80, 100, 120) for dtypes in USUAL),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)


@KERNELS
def test_whole_chunks_move_in_128_bit_accesses(capability, dtypes, amsgrad):
    param, grad, moment = (
        BYTES[dtype] * launch.CHUNK // launch._THREADS for dtype in dtypes
    )  # of a thread
    moments = (3 if amsgrad else 2) * moment
    ptx = step_for(nvidia(capability), *dtypes, amsgrad).asm["ptx"]
    expected = {"ld": (param + grad + moments) // 16, "st": (param + moments) // 16}
    assert wide_accesses(ptx) == expected


def arithmetic(ptx):
    """The floating-point instructions with how they round."""
    return set(
        re.findall(r"\b(fma|mad|add|sub|mul|div|sqrt)((?:\.\w+)*?)\.f(?:32|64)(?:x2)?\b", ptx)
    )


@KERNELS
def test_nothing_is_contracted(capability, dtypes, amsgrad):
    found = arithmetic(step_for(nvidia(capability), *dtypes, amsgrad).asm["ptx"])
    assert {name for name, _ in found} == {"add", "sub", "mul", "div", "sqrt"}
    assert {how for _, how in found} == {".rn"}


@pytest.mark.parametrize("kernel", ["step", "prologue"])
def test_places_are_counted_in_64_bits(kernel):
    """Beyond 2^31 scalars; only places within a chunk, which are blocks, have 32."""
    if kernel == "step":
        code = step_for(nvidia(90), *["float32"] * 3, False).asm["ttir"]
    else:
        code = prologue_for(nvidia(90)).asm["ttir"]
    assert "arith.muli" in code
    assert not re.search(r"arith\.(addi|subi|muli|shli)\b.*: i32\b", code)


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_data_goes_through_shared_memory_where_dtypes_agree(dtype):
    assert step_for(nvidia(90), dtype, dtype, dtype, False).metadata.shared == 0


def test_a_contracted_kernel_is_noticed():
    kernel = step_for(nvidia(90), *["float32"] * 3, False, enable_fp_fusion=True)
    assert ("fma", ".rn") in arithmetic(kernel.asm["ptx"])


def resources(kernel, tmp_path):
    """What the assembler says of a kernel."""
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-res-usage", binary]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", text)}


@KERNELS
def test_nothing_spills(capability, dtypes, amsgrad, tmp_path):
    used = resources(step_for(nvidia(capability), *dtypes, amsgrad), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


COUNTERS = pytest.mark.parametrize("counter", ["float32", "float64"])
CAPABILITIES = pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])


@COUNTERS
@CAPABILITIES
def test_the_prologue_rounds_too(capability, counter, tmp_path):
    kernel = prologue_for(nvidia(capability), counter)
    found = arithmetic(kernel.asm["ptx"])
    assert {how for _, how in found} == {".rn"}
    assert not {"fma", "mad"} & {name for name, _ in found}
    assert {"div", "sqrt"} <= {name for name, _ in found}
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_the_prologue_s_numbers_are_not_rounded_to_float32():
    """A literal that is bound to a name would be."""
    ptx = prologue_for(nvidia(90)).asm["ptx"]
    for number in rectification._SERIES:
        bits = [np.float64(sign * number).view(np.uint64) for sign in (1, -1)]
        assert any(f"0d{b:016X}" in ptx for b in bits), number


@COUNTERS
@CAPABILITIES
def test_every_lane_reads_a_counter_before_one_writes_it(capability, counter):
    """The 32 lanes of the warp are free to run one after another."""
    ptx = prologue_for(nvidia(capability), counter).asm["ptx"]
    bits = FLOATS[counter].primitive_bitwidth
    [(read, between)] = re.findall(
        rf"ld\.global\.b{bits} {{ %r\w+ }}, \[ (%rd\d+) \+ 0 \];((?:(?!ld\.global).)*?)"
        rf"st\.global\.b{bits} \[ \1 ",
        ptx,
        re.DOTALL,
    )
    assert len(re.findall(r"\bbar(?:rier)?(?:\.warp)?\.sync", between)) == 1, read


GFX942 = GPUTarget("hip", "gfx942", 64)


@pytest.mark.parametrize("dtypes", USUAL, ids="-".join)
def test_amd(dtypes):
    code = step_for(GFX942, *dtypes, False).asm["amdgcn"]
    for kind in ("load", "store"):
        assert re.search(rf"\b(buffer|global)_{kind}_dwordx4\b", code)
    spilled = re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size): +(\d+)", code)
    assert set(spilled) == {"0"}


@triton.jit
def quotients_and_roots(x, y):
    """The same divisions and roots as the update's, which AMD's compiler builds of fused steps."""
    i = tl.arange(0, 1024)
    tl.store(x + i, tl.div_rn(tl.load(x + i), tl.sqrt_rn(tl.load(y + i))))


def fused_steps(kernel):
    """How many fused multiply-adds of one number or of two there are to each division."""
    code = kernel.asm["amdgcn"]
    fused = len(re.findall(r"\bv_(?:fma|fmac|fmamk|fmaak|mad|mac)_f32", code))
    fused += 2 * len(re.findall(r"\bv_pk_fma_f32", code))
    return fused / len(re.findall(r"\bv_div_fixup_f32\b", code))


def test_nothing_is_contracted_on_amd():
    float32 = ["float32"] * 3
    alone = fused_steps(compiled(quotients_and_roots, GFX942, num_warps=2))
    assert abs(fused_steps(step_for(GFX942, *float32, False)) - alone) < 0.5
    assert fused_steps(step_for(GFX942, *float32, False, enable_fp_fusion=True)) > alone + 1.5


_devices = count()


@pytest.fixture
def gpu(monkeypatch):
    """backend="triton" on a GPU that is not there, for which nothing has been compiled."""
    return TritonPtx(monkeypatch, device=f"new-{next(_devices)}")


@pytest.fixture
def compilations(gpu, monkeypatch):
    """The names of the kernels that are compiled."""
    names = []

    def compiled_one(*, fn, already_compiled=False, **_):
        if not already_compiled:
            names.append(fn.name.rpartition(".")[2])

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", compiled_one)
    return names


class Table:
    """A launch over as many segments as there are sizes, each with coefficients of its own."""

    def __init__(self, gpu, *sizes, counter=None, offset=0):
        self.kernels = launch.Kernels(gpu.device, [torch.float32] * 3, False, counter)
        memory = torch.zeros(offset + 1000 * len(sizes), dtype=torch.uint8)
        gpu.workspaces.note(memory)
        self.upload = launch.Upload(memory[offset:])
        self.segments, self.tensors, first = b"", [], 0
        for row, size in enumerate(sizes):
            tensors = {role: torch.ones(size) for role in ("param", "grad", *ROLES[3:5])}
            tensors["step"] = torch.zeros((), dtype=counter)
            addresses = [tensors[role].data_ptr() if role in tensors else 0 for role in ROLES]
            self.segments += struct.pack(f"{len(ROLES)}q4q", *addresses, size, first, row, 0)
            self.tensors.append(tensors)
            first += -(-size // launch.CHUNK) * launch.CHUNK

    def step(self, numbers):
        self.kernels.step(self.upload, self.segments, numbers)


def momentum_steps(*step_sizes):
    """Rows of StepCoefficients, with bits in their padding."""
    rows = [(1, 0, 1, 1, 0, 1, step_size, 0, MOMENTUM.value, -1) for step_size in step_sizes]
    return b"".join(struct.pack("8d2i", *row) for row in rows)


def test_a_step_makes_one_copy_of_what_has_changed(gpu, monkeypatch):
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
    assert copied == [3 * (80 + 72), 3 * 72, 80 + 72]
    for tensors, moved in zip(table.tensors + other.tensors, (6, 9, 12, 7), strict=True):
        assert (tensors["param"] == 1 - moved).all()


def test_what_a_graph_uploads_lies_in_the_memory_that_it_was_given(gpu):
    table, memory = Table(gpu, 5, 1500), torch.zeros(1000, dtype=torch.uint8)
    gpu.workspaces.note(memory)
    staging = torch.zeros_like(memory)
    table.upload = launch.Upload(memory, staging)
    table.step(momentum_steps(1, 2))
    assert staging.any()
    assert staging.equal(memory)


@pytest.mark.parametrize("counter", [None, torch.float32, torch.float64], ids=str)
def test_no_argument_is_specialised(counter, gpu, compilations):
    """Neither to numbers like 1 and 16 nor to alignment."""
    options = struct.pack(f"{len(OPTION_NAMES)}d4q", *[0.5] * len(OPTION_NAMES), 0, 0, 0, 0)
    for segments in (1, 2, 16, 17):
        for offset in (0, 8, 16):
            table = Table(gpu, *[3] * segments, counter=counter, offset=offset)
            table.step(options if counter else momentum_steps(*range(segments)))
            assert all(tensors["step"] == (counter is not None) for tensors in table.tensors)
    expected = ["step_kernel"] + ["prologue_kernel"] * (counter is not None)
    assert Counter(compilations) == Counter(expected)


@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
def test_what_is_launched_is_the_step(capturable, gpu):
    """All of the way that a step takes on a GPU, up to the driver."""
    params = parameters((5, 3), (1025,), (0,), (2048,))
    ours = FusedRAdam(copies(params), backend="triton", weight_decay=0.1, capturable=capturable)
    theirs = FusedRAdam(copies(params), backend="cpu", weight_decay=0.1)
    for t, grads in enumerate(gradients(params, 8)):
        step_both([ours, theirs], [None if i == t % 3 else g for i, g in enumerate(grads)])
        assert_same_on_both(ours, theirs)
    assert gpu.driver.launched.count("step_kernel") == 8
    assert gpu.driver.launched.count("prologue_kernel") == (8 if capturable else 0)


def test_a_compiler_s_error_comes_before_anything_moves(gpu, monkeypatch):
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
def test_one_compilation_for_a_dtype_and_the_options(options, capturable, compilations):
    params = parameters(*[(33,)] * 40, (1025,))
    optimizer = FusedRAdam(params, backend="triton", capturable=capturable, **options)
    [group] = optimizer.param_groups
    for t, grads in enumerate(gradients(params, 9)):  # past the threshold
        group["lr"], group["betas"] = 0.1 / (t + 1), (0.9, 0.8 + t / 100)
        group["weight_decay"], group["eps"] = t % 3 / 10, t % 2 * 1e-8
        late = [None if t < 3 and i < 3 else g for i, g in enumerate(grads)]
        only_one = [g if t == 5 and i == 0 else None for i, g in enumerate(grads)]
        train(optimizer, [only_one if t == 5 else late])
    expected = ["step_kernel"] + ["prologue_kernel"] * capturable
    assert Counter(compilations) == Counter(expected)


def test_another_dtype_is_another_compilation(compilations):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float32):
        params = parameters((33,), dtype=dtype)
        train(FusedRAdam(params, backend="triton"), gradients(params, 2))
    assert Counter(compilations) == {"step_kernel": 3}
