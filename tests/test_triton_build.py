"""The code that Triton compiles from the kernels, for GPUs that need not be present."""

import re
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from radam_fused import rectification

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402
from radam_fused.triton_kernels import compiled as host_side  # noqa: E402
from radam_fused.triton_kernels import kernels, sum_kernels  # noqa: E402
from radam_fused.triton_kernels.upload import CHUNK  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

pytestmark = pytest.mark.slow

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


class Stored(NamedTuple):
    """The constants of a step kernel: dtypes, masters and what is rounded stochastically."""

    param: str
    grad: str
    moment: str
    master: str | None = None
    draws: tuple[str, ...] = ()
    gaps: bool = False

    def __str__(self):
        more = (self.master, *self.draws, "gaps" * self.gaps)
        return "-".join([*self[:3], *filter(None, more)])


EVERY = [Stored(p, g, m) for p in FLOATS for g in FLOATS for m in sorted(moments(p))]
USUAL = [Stored(p, p, m) for p in FLOATS for m in sorted(moments(p))]

_PARAM, _EXP_AVG_SQ = "param", "exp_avg_sq"
FORMATS = [
    Stored("float32", "float32", "bfloat16", None, (_EXP_AVG_SQ,)),
    Stored("float32", "bfloat16", "bfloat16", None, (_EXP_AVG_SQ,), True),
    Stored("bfloat16", "bfloat16", "float32", None, (_PARAM,)),
    Stored("bfloat16", "bfloat16", "bfloat16", None, (_EXP_AVG_SQ,)),
    Stored("bfloat16", "bfloat16", "bfloat16", None, (_PARAM, _EXP_AVG_SQ)),
    Stored("bfloat16", "bfloat16", "bfloat16", None, (_PARAM, _EXP_AVG_SQ), True),
    Stored("bfloat16", "bfloat16", "float32", "split"),
    Stored("bfloat16", "float32", "bfloat16", "split"),
    Stored("bfloat16", "bfloat16", "bfloat16", "split", (_EXP_AVG_SQ,)),
    Stored("bfloat16", "bfloat16", "float32", "float32"),
    Stored("float16", "float16", "float32", "float32"),
    Stored("float16", "float16", "bfloat16", "float32", (_EXP_AVG_SQ,)),
    Stored("float16", "float16", "bfloat16", None, (_EXP_AVG_SQ,)),
]
MASTER_BYTES = {None: 0, "split": 2, "float32": 4}


# The argument types of the kernels.
TYPES = {
    "segments": "*i64",
    "index": "*i32",
    "index_shift": "i64",
    "device_options": "*fp64",
    "sums": "*fp64",
    "numbers": "*fp64",
    "rows": "*i64",
    "to": "*fp64",
    "numel": "i64",
    "square_sum": "*fp64",
    "grad_scale": "*fp32",
    "failed": "*fp64",
    "max_norm": "fp64",
    "skip_above": "fp64",
    "skips": "i64",
    "state": "*fp64",
    "given": "*fp64",
    "clip": "*fp64",
    "draws": "*i64",
}
TYPES |= {"x": "*fp32", "y": "*fp32"}


@cache
def compiled(kernel, target, constants=(), coefficients="*fp32", **options):
    """Compile a kernel for a target, with the arguments that a run passes."""
    constants = dict(constants)
    names = kernel.arg_names
    types = {**TYPES, "coefficients": coefficients, **dict.fromkeys(constants, "constexpr")}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    options = {"enable_fp_fusion": False, **options}
    return triton.compile(source, target=target, options=options)


def step_for(target, stored, amsgrad, tracks=False, **options):
    stored = Stored(*stored)
    param, draws = FLOATS[stored.param], stored.draws
    types = {"P": param, "G": FLOATS[stored.grad], "M": FLOATS[stored.moment]}
    constants = {**types, "AMSGRAD": amsgrad, "TRACKS": tracks, "MASTER": stored.master}
    constants |= {"DRAWS_PARAM": _PARAM in draws, "DRAWS_EXP_AVG_SQ": _EXP_AVG_SQ in draws}
    constants |= {"GAPS": stored.gaps, "CHUNK": CHUNK, "PART": host_side.PART}
    converts = stored.master is not None or len(draws) > 0
    limits = {} if tracks else host_side.options_for(target, param, amsgrad, converts, stored.gaps)
    options = limits | options
    options["coefficients"] = "*fp64" if param == tl.float64 else "*fp32"
    return compiled(kernels.step_kernel, target, tuple(constants.items()), **options)


def prologue_for(target, counter="float32", draws=False):
    constants = ("S", FLOATS[counter]), ("DRAWS", draws)
    return compiled(kernels.prologue_kernel, target, constants, num_warps=1)


def nvidia(capability):
    return GPUTarget("cuda", capability, 32)


def wide_accesses(ptx):
    """The number of global 128-bit loads and stores; wider ones count as several."""
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
        *((90, dtypes, amsgrad) for dtypes in FORMATS for amsgrad in (False, True)),
        *((capability, dtypes, False) for capability in (75, 80, 100, 120) for dtypes in FORMATS),
    ],
    ids=str,
)


@KERNELS
def test_whole_chunks_move_in_128_bit_accesses(capability, dtypes, amsgrad):
    param, grad, moment = (
        BYTES[dtype] * CHUNK // host_side._THREADS for dtype in dtypes[:3]
    )  # of a thread
    param += MASTER_BYTES[dtypes.master] * CHUNK // host_side._THREADS
    moments = (3 if amsgrad else 2) * moment
    ptx = step_for(nvidia(capability), dtypes, amsgrad).asm["ptx"]
    expected = {"ld": (param + grad + moments) // 16, "st": (param + moments) // 16}
    assert wide_accesses(ptx) == expected


def arithmetic(ptx):
    """The floating-point instructions and their rounding."""
    return set(
        re.findall(r"\b(fma|mad|add|sub|mul|div|sqrt)((?:\.\w+)*?)\.f(?:32|64)(?:x2)?\b", ptx)
    )


@KERNELS
def test_no_operation_is_contracted(capability, dtypes, amsgrad):
    found = arithmetic(step_for(nvidia(capability), dtypes, amsgrad).asm["ptx"])
    assert {name for name, _ in found} == {"add", "sub", "mul", "div", "sqrt"}
    assert {how for _, how in found} == {".rn"}


@pytest.mark.parametrize("kernel", ["step", "prologue"])
def test_indices_have_64_bits(kernel):
    """For more than 2^31 elements; only indices within a chunk have 32 bits."""
    if kernel == "step":
        code = step_for(nvidia(90), ["float32"] * 3, False).asm["ttir"]
    else:
        code = prologue_for(nvidia(90)).asm["ttir"]
    assert "arith.muli" in code
    assert not re.search(r"arith\.(addi|subi|muli|shli)\b.*: i32\b", code)


@KERNELS
def test_no_data_goes_through_shared_memory(capability, dtypes, amsgrad):
    # Triton exchanges random bits with gaps that two tensors take.
    exchanges = dtypes.gaps and len(dtypes.draws) == 2
    shared = step_for(nvidia(capability), dtypes, amsgrad).metadata.shared
    assert shared == (4 * CHUNK if exchanges else 0)


def test_a_contracted_kernel_is_noticed():
    kernel = step_for(nvidia(90), ["float32"] * 3, False, enable_fp_fusion=True)
    assert ("fma", ".rn") in arithmetic(kernel.asm["ptx"])


def resources(kernel, tmp_path):
    """The report of the assembler for a kernel."""
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [tool, "-res-usage", binary]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", text)}


@KERNELS
def test_no_register_spills(capability, dtypes, amsgrad, tmp_path):
    used = resources(step_for(nvidia(capability), dtypes, amsgrad), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


COUNTERS = pytest.mark.parametrize("counter", ["float32", "float64"])
CAPABILITIES = pytest.mark.parametrize("capability", [75, 80, 90, 100, 120])


@COUNTERS
@CAPABILITIES
def test_the_prologue_rounds_every_operation(capability, counter, tmp_path):
    kernel = prologue_for(nvidia(capability), counter)
    found = arithmetic(kernel.asm["ptx"])
    assert {how for _, how in found} == {".rn"}
    assert not {"fma", "mad"} & {name for name, _ in found}
    assert {"div", "sqrt"} <= {name for name, _ in found}
    used = resources(kernel, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_constants_of_the_prologue_are_float64():
    """Triton rounds a literal to float32 if it is assigned to a name."""
    ptx = prologue_for(nvidia(90)).asm["ptx"]
    for number in rectification._SERIES:
        bits = [np.float64(sign * number).view(np.uint64) for sign in (1, -1)]
        assert any(f"0d{b:016X}" in ptx for b in bits), number


@COUNTERS
@CAPABILITIES
def test_every_lane_reads_a_counter_before_one_writes_it(capability, counter):
    """The 32 lanes of a warp can run one after another."""
    ptx = prologue_for(nvidia(capability), counter).asm["ptx"]
    bits = FLOATS[counter].primitive_bitwidth
    reads = re.findall(rf"ld\.global\.b{bits} {{ %r\w+ }}, \[ (%rd\d+) \+ 0 \];", ptx)
    written = [read for read in reads if re.search(rf"st\.global\.b{bits} \[ {read} ", ptx)]
    assert len(written) == 1
    after = ptx.split(f"[ {written[0]} + 0 ];", 1)[1]
    between = re.split(rf"st\.global\.b{bits} \[ {written[0]} ", after)[0]
    assert len(re.findall(r"\bbar(?:rier)?(?:\.warp)?\.sync", between)) == 1


GFX942 = GPUTarget("hip", "gfx942", 64)


@pytest.mark.parametrize("dtypes", [*USUAL, *FORMATS], ids=str)
def test_the_kernels_compile_for_amd(dtypes):
    code = step_for(GFX942, dtypes, False).asm["amdgcn"]
    for kind in ("load", "store"):
        assert re.search(rf"\b(buffer|global)_{kind}_dwordx4\b", code)
    spilled = re.findall(r"\.(?:[sv]gpr_spill_count|private_segment_fixed_size): +(\d+)", code)
    assert set(spilled) == {"0"}


@triton.jit
def quotients_and_roots(x, y):
    """The divisions and roots of the update; AMD's compiler expands them with fused operations."""
    i = tl.arange(0, 1024)
    tl.store(x + i, tl.div_rn(tl.load(x + i), tl.sqrt_rn(tl.load(y + i))))


def fused_steps(kernel):
    """The number of fused multiply-adds per division."""
    code = kernel.asm["amdgcn"]
    fused = len(re.findall(r"\bv_(?:fma|fmac|fmamk|fmaak|mad|mac)_f32", code))
    fused += 2 * len(re.findall(r"\bv_pk_fma_f32", code))
    return fused / len(re.findall(r"\bv_div_fixup_f32\b", code))


def test_nothing_is_contracted_on_amd():
    float32 = ["float32"] * 3
    alone = fused_steps(compiled(quotients_and_roots, GFX942, num_warps=2))
    assert abs(fused_steps(step_for(GFX942, float32, False)) - alone) < 0.5
    assert fused_steps(step_for(GFX942, float32, False, enable_fp_fusion=True)) > alone + 1.5


def norm_kernels(target):
    """The kernels of the norms, compiled, by name."""
    warp = {"num_warps": 1}
    made = {"fold": compiled(sum_kernels.fold_kernel, target, (("HAS_ROWS", True),))}
    made["flat fold"] = compiled(sum_kernels.fold_kernel, target, (("HAS_ROWS", False),))
    for name, dtype in FLOATS.items():
        made[f"sum of {name}"] = compiled(sum_kernels.sum_kernel, target, (("G", dtype),))
    for flag in (False, True):
        constants = (("HAS_SCALE", flag), ("CAN_FAIL", flag))
        made[f"clip {flag}"] = compiled(sum_kernels.clip_kernel, target, constants, **warp)
    for coefficients in ("*fp32", "*fp64"):
        made[f"round to {coefficients}"] = compiled(
            sum_kernels.round_kernel, target, (), coefficients, **warp
        )
    for dtypes in [*USUAL, *FORMATS]:
        made[f"tracked {dtypes}"] = step_for(target, dtypes, True, True)
    return made


@CAPABILITIES
def test_the_kernels_of_the_norms(capability, tmp_path):
    """They contract nothing, use no atomic addition and spill no register."""
    for name, kernel in norm_kernels(nvidia(capability)).items():
        ptx = kernel.asm["ptx"]
        assert not re.search(
            r"\bfma\.|\.ftz|\.approx|^\s*(?:@!?%p\d+ )?(?:atom|red)\.", ptx, re.M
        ), name
        used = resources(kernel, tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, name


def test_the_kernels_of_the_norms_compile_for_amd():
    for name, kernel in norm_kernels(GFX942).items():
        code = kernel.asm["amdgcn"]
        assert "atomic_add" not in code, name
        if "fold" in name or "sum" in name:  # a division or a root is made of multiply-adds
            assert not re.search(r"v_(?:pk_)?fma", code), name
