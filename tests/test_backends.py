"""The choice of a backend: a name works or raises with the reason; only "auto" falls back."""

import contextlib
import os
import re
import subprocess
import sys
import types

import pytest
import torch

from radam_fused import FusedRAdam, backends
from radam_fused.backends import cuda, launches, triton

from .harness.helpers import gradients, launches_of, parameters, train


def chosen(optimizer):
    return [type(launch).__name__ for launch in launches_of(optimizer)]


def output_of(code, **environment):
    command = [sys.executable, "-c", code]
    env = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_auto_chooses_the_cpu_kernel_for_cpu_tensors():
    params = parameters((3,))
    assert chosen(train(FusedRAdam(params), gradients(params, 1))) == ["CpuLaunch"]


REASONS = {
    "without-cuda": ("cuda_architectures", "the extension was built without CUDA"),
    "no-device": (
        "cuda_unavailable",
        "no GPU that CUDA can use was found (none)",
    ),
}


@pytest.mark.parametrize("lacks", REASONS)
def test_cuda_says_why_it_is_unavailable(lacks, monkeypatch):
    """The test does not depend on this machine."""
    stub = types.SimpleNamespace(cuda_architectures="90-real", cuda_unavailable=lambda: "none")
    if lacks == "without-cuda":
        del stub.cuda_architectures
    monkeypatch.setattr(cuda, "_C", stub)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "_found_device", False)
    message = re.escape(f"'cuda' is not available: {REASONS[lacks][1]}")
    with pytest.raises(RuntimeError, match=message):
        FusedRAdam(parameters((3,)), backend="cuda")


def test_cuda_remembers_only_success(monkeypatch):
    """A device can become free, and a failing probe must not exclude it for ever."""
    answers = {"cuda_unavailable": ["busy", None], "cuda_unsupported": ["no memory", None]}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(cuda, "_found_device", False)
    monkeypatch.setattr(cuda, "_supported_devices", set())
    current = []

    @contextlib.contextmanager
    def as_current(device):
        current.append(device)
        yield
        current.pop()

    def probe(index):
        assert current == [torch.device("cuda", index)]
        return answers["cuda_unsupported"].pop(0)

    stub = types.SimpleNamespace(
        cuda_architectures="90-real",
        cuda_unavailable=lambda: answers["cuda_unavailable"].pop(0),
        cuda_unsupported=probe,
    )
    monkeypatch.setattr(cuda, "_C", stub)
    monkeypatch.setattr(cuda, "as_current", as_current)
    monkeypatch.setattr(cuda, "has_own_memory", lambda param: True)
    param = types.SimpleNamespace(device=torch.device("cuda", 1))
    assert [cuda.unavailable() for _ in range(3)] == [
        "no GPU that CUDA can use was found (busy)",
        None,
        None,
    ]
    assert [cuda.unsupported(param) for _ in range(3)] == ["no memory", None, None]


def test_a_capture_is_looked_for_on_the_device_of_the_launch(monkeypatch):
    current = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def as_current(device):
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(launches, "as_current", as_current)
    capturing = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1] == capturing)
    devices = [torch.device("cpu"), torch.device("cuda", 0), capturing]
    assert [backends.is_capturing(device) for device in devices] == [False, False, True]


def step_with_zeros(params, backend):
    optimizer = FusedRAdam(params, backend=backend)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()


def test_cuda_rejects_tensors_on_other_devices(grid):
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    with pytest.raises(RuntimeError, match=r"'cuda' cannot step parameter 0 .* it is on meta"):
        step_with_zeros([p], "cuda")
    assert "it is on cpu, expected a CUDA device" in cuda.unsupported(torch.zeros(3))


ASK_FOR_TRITON = """
import radam_fused, radam_fused.__main__
from radam_fused import backends
try:
    backends.check_name("triton")
except RuntimeError as error:
    print(error)
radam_fused.__main__.main([])
"""

BROKEN = {
    "missing": ("raise ModuleNotFoundError('no', name='triton')", "triton is not installed"),
    "broken": ("raise OSError('libfoo.so')", "triton cannot be imported: OSError: libfoo.so"),
    "empty": ("", "triton cannot be imported: AttributeError: "),
    "old": ("__version__ = '3.5.1'", "triton 3.5.1 is too old, expected 3.6 or later"),
}


@pytest.mark.parametrize(("init", "reason"), BROKEN.values(), ids=BROKEN)
def test_triton_says_that_it_is_missing_or_broken(init, reason, tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(init)
    [error, *report] = output_of(ASK_FOR_TRITON, PYTHONPATH=str(tmp_path)).splitlines()
    assert error.startswith("backend='triton' is not available: ")
    assert reason in error
    [line] = [line for line in report if line.startswith("  triton   unavailable: ")]
    assert reason in line


def test_importing_radam_fused_imports_neither_triton_nor_a_compiler():
    code = "import sys, radam_fused; print({'triton', 'torch._dynamo'} & {*sys.modules})"
    assert output_of(code) == "set()\n"


def test_triton_rejects_tensors_on_other_devices():
    assert "it is on cpu, expected a CUDA or ROCm device" in triton.unsupported(torch.zeros(3))


STEP_BY_TRITON = """
import torch
from radam_fused import FusedRAdam
p = torch.nn.Parameter(torch.linspace(-1, 1, 1500))
auto = FusedRAdam([p])
optimizer = FusedRAdam([p], lr=0.1, backend="triton")
for step in range(8):
    p.grad = torch.linspace(step, 1, 1500)
    optimizer.step()
print(p.tolist())
auto.step()
print([type(launch).__name__ for o in (optimizer, auto) for launch in o._plan.launches])
p = torch.nn.Parameter(torch.zeros(3, device="meta"))
optimizer = FusedRAdam([p], backend="triton")
p.grad = torch.zeros(3, device="meta")
try:
    optimizer.step()
except RuntimeError as error:
    print(error)
"""


def test_the_interpreter_serves_cpu_tensors_only_by_name():
    pytest.importorskip("triton")
    result, launches, error = output_of(STEP_BY_TRITON, TRITON_INTERPRET="1").splitlines()
    p = torch.nn.Parameter(torch.linspace(-1, 1, 1500))
    optimizer = FusedRAdam([p], lr=0.1, backend="cpu")
    for step in range(8):
        p.grad = torch.linspace(step, 1, 1500)
        optimizer.step()
    assert result == str(p.tolist())
    assert launches == "['TritonLaunch', 'CpuLaunch']"
    assert "TRITON_INTERPRET works on CPU tensors only" in error


def test_a_backend_chosen_by_name_raises_with_the_reason():
    [p] = [torch.nn.Parameter(torch.zeros(3, device="meta"))]
    with pytest.raises(RuntimeError, match=r"'cpu' cannot step parameter 0 .* it is on meta"):
        step_with_zeros([p], "cpu")
    with pytest.raises(RuntimeError, match="differentiable=True needs the eager backend"):
        FusedRAdam(parameters((3,)), backend="cpu", differentiable=True)


def test_auto_chooses_eager_for_other_devices_and_differentiable_steps():
    p = torch.nn.Parameter(torch.zeros(3, device="meta"))
    p.grad = torch.zeros(3, device="meta")
    optimizer = FusedRAdam([p])
    optimizer.step()
    assert chosen(optimizer) == ["EagerLaunch"]
    assert optimizer.state[p]["exp_avg"].device.type == "meta"
    assert optimizer.state[p]["step"] == 1


def test_no_kernel_gets_the_address_of_a_wrapper_subclass():
    from torch.testing._internal.two_tensor import TwoTensor

    p = torch.nn.Parameter(TwoTensor(torch.ones(3), torch.ones(3)))
    with pytest.raises(RuntimeError, match="keeps its memory in other tensors"):
        step_with_zeros([p], "cpu")
    p.grad = TwoTensor(torch.ones(3), torch.full((3,), 2.0))
    optimizer = FusedRAdam([p], lr=0.5)
    with pytest.warns(UserWarning, match="100% of the elements .* cpu: TwoTensor keeps its memory"):
        optimizer.step()
    assert chosen(optimizer) == ["EagerLaunch"]
    assert p.a.tolist() == [0.5] * 3
    assert p.b.tolist() == [0.0] * 3


WITHOUT_EXTENSION = """
import importlib.machinery, sys, types
broken = types.ModuleType("radam_fused._C")
broken.__spec__ = importlib.machinery.ModuleSpec("radam_fused._C", None)
sys.modules["radam_fused._C"] = broken if {broken} else None
import torch
from radam_fused import FlatGroup, FusedRAdam
from radam_fused.__main__ import main
p = torch.nn.Parameter(torch.linspace(-1, 1, 1500))
late = torch.nn.Parameter(torch.zeros(3))
optimizer = FusedRAdam([p, late], lr=0.1)
for step in range(8):
    p.grad = torch.linspace(step, 1, 1500)
    late.grad = torch.ones(3) if step > 4 else None
    optimizer.step()
print(p.tolist() + late.tolist())
for wanted in (lambda: FusedRAdam([p], backend="cpu"), lambda: FlatGroup([p])):
    try:
        wanted()
    except RuntimeError as error:
        print(error)
main([])
"""


@pytest.mark.parametrize("broken", [False, True], ids=["absent", "broken"])
def test_without_the_extension_only_eager_is_available(broken):
    code = WITHOUT_EXTENSION.replace("{broken}", str(broken))
    result, error, flat, *report = output_of(code).splitlines()
    expected = (
        "the extension radam_fused._C cannot be loaded: module"
        if broken
        else ("this installation has no extension radam_fused._C")
    )
    assert expected in error
    assert error.startswith("backend='cpu' is not available: ")
    reason = error.removeprefix("backend='cpu' is not available: ")
    assert flat == f"flat buffers need the extension: {reason}"
    for name in ("cpu", "triton", "cuda"):
        [line] = [line for line in report if line.startswith(f"  {name:<8} unavailable: ")]
        assert reason in line
    assert "  eager    available" in report

    p, late = torch.nn.Parameter(torch.linspace(-1, 1, 1500)), torch.nn.Parameter(torch.zeros(3))
    optimizer = FusedRAdam([p, late], lr=0.1, backend="eager")
    for step in range(8):
        p.grad = torch.linspace(step, 1, 1500)
        late.grad = torch.ones(3) if step > 4 else None
        optimizer.step()
    assert result == str(p.tolist() + late.tolist())


def test_backends_have_the_order_of_auto():
    assert [*backends.BACKENDS] == ["cuda", "triton", "cpu", "eager"]
    assert all(name == backend.name for name, backend in backends.BACKENDS.items())


def test_the_extension_shares_torch_s_threads():
    """Two OpenMP runtimes in one process would run two teams of threads on the same cores."""
    code = "import torch, radam_fused; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runtimes = {line.split()[-1] for line in maps.stdout.splitlines() if "libgomp" in line}
    assert len(runtimes) == 1, runtimes
