"""The table of tensors in Python, for where there is no extension, is that of the extension."""

import random

import pytest
import torch

from radam_fused import FlatBuffers, FusedRAdam, optimizer
from radam_fused.backends import extension, plain
from radam_fused.tensors import gather_counters, moment_names

from .helpers import OPTIONS, copies, gradients, parameters
from .test_device_bits import assert_same_on_both, step_both

CPU = torch.device("cpu")
SHAPES = [(), (0,), (1,), (3, 5), (2, 0, 3), (1, 4), (33,), (1025,), (4, 1, 3)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.complex64]


class Tables:
    """Both tables over the same tensors."""

    def __init__(self, draw):
        self.draw = draw
        self.dtype = draw.choice(DTYPES)
        self.grad_dtype = draw.choice([self.dtype, torch.float32, torch.float64])
        if self.dtype.is_complex:
            self.grad_dtype = self.dtype
        amsgrad, on_device = draw.random() < 0.3, draw.random() < 0.3
        shapes = [draw.choice(SHAPES) for _ in range(draw.choice([1, 2, 7, 20]))]
        self.params = [torch.nn.Parameter(torch.randn(shape).to(self.dtype)) for shape in shapes]
        for p in self.params:
            p.grad_dtype = None
            if p.ndim == 2 and draw.random() < 0.3:
                p.data = p.data.t().contiguous().t()
        flat = None
        if draw.random() < 0.5:
            flat = FlatBuffers(self.params, gradients=draw.random() < 0.5)
            self.grad_dtype = self.dtype
        arithmetic = torch.float64 if self.dtype == torch.float64 else torch.float32
        moment = arithmetic if not self.dtype.is_complex else self.dtype
        self.names = moment_names(amsgrad)
        self.states = [
            {"step": torch.tensor(float(draw.choice([0, 0, 0, 5])))}
            | {name: torch.zeros_like(p, dtype=moment) for name in self.names}
            for p in self.params
        ]
        if flat is not None:
            flat.take_over(list(zip(self.params, self.states, strict=True)), self.names)
        steps = gather_counters(self.states, CPU)
        self.is_flat = flat is not None
        buffers = flat.of(self.params[0]).roles(self.names) if flat else None
        chunk = draw.choice([1, 8, 1024])
        if flat is None or not flat.has_gradients:
            self.move_gradients()
        arguments = (self.params, self.states, steps, amsgrad, buffers, chunk, on_device)
        self.tables = [kind(*arguments) for kind in (extension._C.TensorTable, plain.TensorTable)]
        self.steps = steps

    def move_gradients(self):
        for p in self.params:
            p.grad = None
            if self.draw.random() < 0.8:
                p.grad = torch.zeros_like(p, dtype=self.grad_dtype)

    def refresh(self, alignment=128):
        """What both say, which has to be the same."""
        [ours, expected] = [table.refresh(alignment) for table in reversed(self.tables)]
        assert ours == expected
        if expected is not None:
            [theirs, mine] = self.tables
            assert mine.active == theirs.active
            assert mine.active_is_unchanged == theirs.active_is_unchanged
            assert mine.ranges == theirs.ranges
            assert mine.segments == theirs.segments
        return expected


@pytest.mark.parametrize("seed", range(60))
def test_the_same_segments(seed):
    torch.manual_seed(seed)
    both = Tables(random.Random(seed))
    for _ in range(4):
        assert both.refresh(both.draw.choice([0, 128])) is not None
        before = both.steps.clone()
        both.tables[0].finish()
        expected = both.steps.clone()
        both.steps.copy_(before)
        both.tables[1].finish()
        assert both.steps.tolist() == expected.tolist()
        if both.draw.random() < 0.7:
            both.move_gradients()


def another_gradient(both, p, state):
    p.grad = torch.zeros_like(p, dtype=torch.float16)


def a_gradient_in_another_order(both, p, state):
    p.grad = torch.zeros(5, 3, dtype=both.grad_dtype).t()


def a_sparse_gradient(both, p, state):
    p.grad = torch.zeros(3, 5, dtype=both.grad_dtype).to_sparse()


def a_replaced_moment(both, p, state):
    state["exp_avg"] = state["exp_avg"].clone()


def a_repointed_moment(both, p, state):
    if both.is_flat:
        state["exp_avg"] = state["exp_avg"].clone()  # within a flat buffer nobody looks there
    else:
        state["exp_avg"].data = torch.zeros(5, 3, dtype=state["exp_avg"].dtype).t()


def a_replaced_counter(both, p, state):
    state["step"] = state["step"].clone()


def a_repointed_parameter(both, p, state):
    p.data = p.data.double() if both.dtype == torch.float32 else p.data.float()


def a_missing_moment(both, p, state):
    del state["exp_avg_sq"]


CHANGES = [
    another_gradient,
    a_gradient_in_another_order,
    a_sparse_gradient,
    a_replaced_moment,
    a_repointed_moment,
    a_replaced_counter,
    a_repointed_parameter,
    a_missing_moment,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("seed", range(12))
def test_what_has_changed_is_noticed(change, seed):
    torch.manual_seed(seed)
    draw = random.Random(seed)
    while True:
        both = Tables(draw)
        pairs = zip(both.params, both.states, strict=True)
        matrices = [(p, s) for p, s in pairs if p.shape == (3, 5) and p.grad is not None]
        if matrices and not both.dtype.is_complex and matrices[0][0].is_contiguous():
            break
    assert both.refresh() is not None
    change(both, *matrices[0])
    assert both.refresh() is None


@pytest.mark.parametrize("module", [extension._C, plain], ids=["extension", "plain"])
def test_the_same_objects_and_any_gradient(module):
    one, other = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    assert module.same_objects([one, other], [one, other])
    assert module.same_objects({1: one, 2: other}, [one, other])
    assert not module.same_objects([one, other], [other, one])
    assert not module.same_objects([one], [one, other])
    assert not module.same_objects({1: one, 2: other}, [one])
    assert module.same_objects([], [])
    assert not module.any_gradient([one, other])
    other.grad = torch.zeros(1)
    assert module.any_gradient([one, other])
    assert not module.any_gradient([])


def test_lazy_conjugates_are_not_addressed():
    p = torch.nn.Parameter(torch.randn(4, dtype=torch.complex64))
    state = {"step": torch.tensor(0.0)} | {
        name: torch.zeros_like(p) for name in moment_names(False)
    }
    p.grad = torch.randn(4, dtype=torch.complex64).conj()
    steps = gather_counters([state], CPU)
    for kind in (extension._C.TensorTable, plain.TensorTable):
        with pytest.raises(ValueError, match="gradient 0"):
            kind([p], [state], steps, False)


def test_what_does_not_fit_is_refused():
    p = torch.nn.Parameter(torch.zeros(3))
    good = {"step": torch.tensor(0.0)} | {name: torch.zeros(3) for name in moment_names(False)}
    steps = gather_counters([good], CPU)
    wrong = [
        {"exp_avg": torch.zeros(4)},
        {"exp_avg_sq": torch.zeros(3, dtype=torch.float64)},
        {"exp_avg": torch.zeros(3, device="meta")},
    ]
    for kind in (extension._C.TensorTable, plain.TensorTable):
        kind([p], [good], steps, False)
        for entries in wrong:
            with pytest.raises(ValueError, match="exp_avg"):
                kind([p], [good | entries], steps, False)
        with pytest.raises(ValueError, match="does not fill a range"):
            kind([torch.nn.Parameter(torch.zeros(6)[::2])], [good], steps, False)
        with pytest.raises(ValueError, match="steps"):
            kind([p], [good], torch.zeros(2), False)
        with pytest.raises(ValueError, match="flat buffer"):
            kind([p], [good], steps, False, [torch.zeros(3), None, *[torch.zeros(3)] * 2])


@pytest.mark.parametrize("options", ["l2", "amsgrad", "skip"])
@pytest.mark.parametrize("capturable", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("flatten", [False, True], ids=["scattered", "flat"])
def test_triton_needs_no_extension(options, capturable, flatten, interpreter, monkeypatch):
    monkeypatch.setattr(extension, "TensorTable", plain.TensorTable)
    for name in ("same_objects", "any_gradient"):
        monkeypatch.setattr(optimizer, name, getattr(plain, name))
    monkeypatch.setattr(extension, "why_not", "not built")
    params = parameters((5, 3), (0,), (40,), (1025,))
    ours = FusedRAdam(copies(params), backend="triton", flatten=flatten, **OPTIONS[options])
    theirs = FusedRAdam(copies(params), backend="eager", **OPTIONS[options])
    ours.param_groups[0]["capturable"] = capturable
    for t, grads in enumerate(gradients(params, 9)):
        step_both([ours, theirs], [None if i == t % 4 else g for i, g in enumerate(grads)])
        assert_same_on_both(ours, theirs)
