"""The compiled kernels of the norms, executed from their PTX."""

import random
import re
from itertools import product
from math import inf, nan

import pytest
import torch

from radam_fused import FusedRAdam, rectification
from radam_fused.backends.cuda import CudaReducer
from radam_fused.backends.triton import TritonReducer
from radam_fused.sums import fold

from .harness.helpers import assert_same_bits, copies, gradients, parameters, same_bits
from .harness.ptx import PtxError, mutants
from .harness.ptx.cuda import CudaPtx
from .test_device_bits import assert_same_on_both, step_both
from .test_ptx import assert_covered, noticed, sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:no step is ever rectified"),
]

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 2, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025, 2047, 5000]
BOTH = {"max_grad_norm": 1.0, "track_update_norm": True, "per_parameter_norms": True}
NAMES = ("grad_norm", "update_norm", "grad_norms", "update_norms")


class Steps:
    """Steps of a device backend and of the CPU kernel, with the same gradients."""

    def __init__(self, ptx, sizes, dtype=torch.float32, seed=0, **options):
        params = parameters(*[(size,) for size in sizes], dtype=dtype, seed=seed)
        self.ours, self.cpu = (
            FusedRAdam(copies(params), lr=0.1, backend=name, **BOTH, **options)
            for name in (ptx.name, "cpu")
        )
        self._grads = iter(gradients(params, 20, seed=seed))

    def step(self):
        step_both([self.ours, self.cpu], next(self._grads))
        for name in NAMES:
            assert_same_bits(getattr(self.ours, name), getattr(self.cpu, name), name)
        assert_same_on_both(self.ours, self.cpu)


@pytest.mark.parametrize("fused", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_step_with_all_norms(dtype, amsgrad, fused, ptx):
    options = {"fused": fused, "amsgrad": amsgrad, "weight_decay": 0.1, "skip_above": 1e4}
    if not fused:
        del options["skip_above"]
    steps = Steps(ptx, SIZES, dtype, **options)
    for _ in range(3):
        steps.step()


@pytest.mark.parametrize("seed", range(6))
def test_drawn_tables(seed, ptx):
    draw = random.Random(seed)
    sizes = [draw.choice([*SIZES, draw.randrange(6000)]) for _ in range(draw.randrange(1, 70))]
    steps = Steps(ptx, sizes, draw.choice(FLOATS), seed, amsgrad=draw.random() < 0.5)
    for _ in range(2):
        steps.step()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_way_through_the_sum(dtype, monkeypatch):
    ptx = CudaPtx(monkeypatch)
    kernel = ptx.sum_kernel(dtype)
    kernel.program.forget()
    for sizes in (SIZES, SIZES * 8):  # few segments in the arguments, and more in memory
        Steps(ptx, sizes, dtype).step()
    assert_covered(kernel)


@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_way_through_a_tracked_step(dtype, amsgrad, monkeypatch):
    ptx = CudaPtx(monkeypatch)
    moment = torch.float64 if dtype == torch.float64 else torch.float32
    kernel = ptx.step_kernel((dtype, dtype, moment), amsgrad, tracked=True)
    kernel.program.forget()
    few, many = {"fused": False}, {"fused": False, "weight_decay": 0.1}
    choices = [(SIZES, few), (SIZES * 8, many)]
    for decay, falls_back in product((0.0, 0.1), (True, False)):
        options = {"weight_decay": decay, "degenerated_to_sgd": falls_back, "fused": True}
        choices.append((SIZES, options))
    choices.append((SIZES[:9], {"skip_above": 0.0}))
    for seed, (sizes, options) in enumerate(choices):
        steps = Steps(ptx, sizes, dtype, seed, amsgrad=amsgrad, **options)
        for optimizer in (steps.ours, steps.cpu):
            # Not aligned to a word.
            optimizer.param_groups[0]["params"][-1] = torch.nn.Parameter(
                torch.zeros(sizes[-1] + 1, dtype=dtype)[1:]
            )
        steps.step()
        rectified(steps)
    # The search among segments that share an entry of the index is tested with the other kernel.
    done, every = kernel.program.coverage()
    assert done == every - 7


def rectified(steps):
    """A step far behind the threshold."""
    for optimizer in (steps.ours, steps.cpu):
        for state in optimizer.state.values():
            state["step"].fill_(100.0)
    steps.step()


def reducer_of(ptx):
    return {"cuda": CudaReducer, "triton": TritonReducer}[ptx.name]()


def assert_same_fold(ptx, count):
    numbers = torch.rand(count, dtype=torch.float64)
    assert_same_bits(reducer_of(ptx).fold(numbers), fold(numbers))


@pytest.mark.parametrize("count", [0, 1, 5, 1023, 1024, 1025, 3000])
def test_the_fold_of_numbers(count, ptx):
    assert_same_fold(ptx, count)


CLIPS = [
    (total, scale, limit, above, skips)
    for total in (0.0, 1e-300, 0.25, 2.0, 1e40, inf, nan)
    for scale in (None, 1.0, 3.0, 65536.0)
    for limit, above, skips in ((inf, inf, False), (1.0, inf, True), (0.5, 1.0, False), (0, 9, 1))
]


def clip(ptx, failed, total, scale, limit, above, skips):
    """The state after a clip kernel, from one that counts two skipped steps."""
    state = torch.tensor([7.0, 7.0, 7.0, 2.0], dtype=torch.float64)
    reducer_of(ptx).clip(
        torch.tensor(total, dtype=torch.float64),
        None if scale is None else torch.tensor(scale),
        None if failed is None else torch.tensor(failed, dtype=torch.float64),
        (float(limit), float(above), bool(skips)),
        state,
    )
    return state


@pytest.mark.parametrize("failed", [None, 0.0, 1.0])
def test_every_clip(failed, ptx):
    for total, scale, *options in CLIPS:
        found = clip(ptx, failed, total, scale, *options)
        norm, coefficient, skips = rectification.clip(total, scale or 1.0, *options)
        is_left_out = skips or bool(failed)
        counted = 2.0 + (skips and not failed)
        expected = torch.tensor([norm, coefficient, is_left_out, counted], dtype=torch.float64)
        assert same_bits(found, expected), (total, scale, options, found, expected)


def test_no_access_beyond_a_gradient(monkeypatch):
    """The interpreter would notice a read beyond the last element."""
    ptx = CudaPtx(monkeypatch)
    steps = Steps(ptx, [1025])
    kernel = ptx.sum_kernel(torch.float32)
    wrong = kernel.text.replace("min.s64", "max.s64")
    assert wrong != kernel.text
    ptx.changed[kernel.text] = wrong
    with pytest.raises((PtxError, AssertionError)):
        steps.step()


def kernels(ptx):
    """The kernels of the norms that have run, by name."""
    if ptx.name == "triton":
        return {n: k for n, k in ptx.driver.loaded.items() if n in ("sum_kernel", "fold_kernel")}
    return {"sum": ptx.sum_kernel(torch.float32), "fold": ptx.norm_kernel("fold")}


def test_a_changed_kernel_is_noticed(ptx):
    def run():
        Steps(ptx, [1024, 1025, 3000, 5, 0] * 12).step()
        assert_same_fold(ptx, 3000)

    run()
    for name, kernel in kernels(ptx).items():
        draw = random.Random(name)
        assert not noticed(ptx, [run], kernel, kernel.text + "\n")
        # How a chunk finds its segment is tested with the kernel of the step.
        swapped = (change for change in mutants.swapped(kernel.text) if ".f64" in change[0])
        changes = sample(draw, swapped, 8)
        changes += sample(draw, mutants.without_a_store(kernel.text), 3)
        missed = [what for what, text in changes if not noticed(ptx, [run], kernel, text)]
        assert missed == [], name
        barriers = list(mutants.without_a_barrier(kernel.text))
        missed = [what for what, text in barriers if not noticed(ptx, [run], kernel, text)]
        # Triton also places barriers that are not needed.
        assert len(missed) < len(barriers) if ptx.name == "triton" else missed == [], name


def test_an_atomic_addition_is_not_there(ptx):
    Steps(ptx, [1024, 5]).step()
    texts = [kernel.text for kernel in kernels(ptx).values()]
    assert not any(re.search(r"^\s*(?:@!?%p\d+ )?(?:atom|red)\.", text, re.M) for text in texts)
