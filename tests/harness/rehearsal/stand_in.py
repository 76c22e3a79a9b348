"""A stand-in for a GPU: torch.cuda on the CPU, the CUDA backend on the host grid, and Triton's
interpreter.

It shows whether the checks on a GPU run: their paths, names, imports and arguments. It shows
nothing of a GPU's results or times. Device "cuda" means CPU memory, so a tensor says that it is on
the CPU.
"""

import contextlib
import functools
import importlib
import time
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

MEMORY = 360_000  # bytes: for cases of 5,000 elements

_capturing = []  # the graph that is being captured


def _on_cpu(value):
    is_gpu = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value


class OnCpu(TorchFunctionMode):
    """Device "cuda" is the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0].clone()
        args = [_on_cpu(value) for value in args]
        return function(*args, **{key: _on_cpu(value) for key, value in (kwargs or {}).items()})


class Stream:
    """Work runs at once."""

    cuda_stream = 0

    def wait_stream(self, stream):
        pass

    def synchronize(self):
        pass


class Event:
    def __init__(self, enable_timing=False):
        pass

    def record(self):
        self.seconds = time.perf_counter()

    def elapsed_time(self, end):
        return (end.seconds - self.seconds) * 1e3


class Graph:
    """Keeps the kernels of an optimizer; a replay repeats nothing else."""

    def __init__(self):
        from ..host_grid import host_grid

        self._grid = host_grid().HostGraph()
        self.kept, self.works = [], []  # memory, and the runs of Triton kernels

    @contextlib.contextmanager
    def capture(self):
        self._grid.begin()
        _capturing.append(self)
        try:
            yield
        finally:
            _capturing.pop()
            self._grid.end()

    def replay(self):
        self._grid.replay()
        for work in self.works:
            work()


def install():
    """Show the GPU to this process, for its whole life."""
    _install_cuda()
    _install_backends()
    _shorten_measurements()
    OnCpu().__enter__()


def _install_cuda():
    cuda = torch.cuda
    properties = {"name": "stand-in", "total_memory": MEMORY, "multi_processor_count": 1}
    for name, value in {
        "is_available": True,
        "is_bf16_supported": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "mem_get_info": (MEMORY, MEMORY),
        "memory_stats": {"allocation.all.allocated": 0},
        "get_device_name": "stand-in",
        "get_device_capability": (9, 0),
        "get_device_properties": SimpleNamespace(**properties),
        "current_stream": Stream(),
        "stream": contextlib.nullcontext(),
        **dict.fromkeys(("set_device", "synchronize", "set_sync_debug_mode", "_sleep")),
    }.items():
        setattr(cuda, name, lambda *_, value=value, **__: value)
    cuda.is_current_stream_capturing = lambda: bool(_capturing)
    cuda.Stream, cuda.Event, cuda.CUDAGraph = Stream, Event, Graph
    cuda.graph = lambda graph: graph.capture()
    torch.version.cuda = "13.0"
    torch.compile = lambda function: function  # it looks for a GPU on its own
    # torch's capturable optimizers, of which the benchmark times one, want a device.
    radam = importlib.import_module("torch.optim.radam")
    radam._get_capturable_supported_devices = lambda: ["cpu"]


def _install_backends():
    from bench import rivals, variant
    from radam_fused import backends
    from radam_fused.backends import cpu, launches

    from ..backends import use_extension
    from ..host_grid import host_grid

    use_extension(host_grid(), SimpleNamespace(setattr=setattr))
    variant.module = lambda one: host_grid()
    rivals.available = lambda makers: {name: make() for name, make in makers.items()}
    for name in ("cuda", "triton"):
        backends.BACKENDS[name] = backends.BACKENDS[name]._replace(
            unavailable=lambda: None, unsupported=cpu.unsupported, only_by_name=lambda: False
        )
    for module in (backends, launches):
        module.is_capturing = lambda device: bool(_capturing)
    make = launches.Workspace.make

    def made(workspace, size):
        memory = make(workspace, size)
        if _capturing:
            _capturing[-1].kept.append(memory)
        return memory

    launches.Workspace.make = made
    _record_triton()


class _Recorded:
    """A Triton kernel whose launches a capture keeps."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __getitem__(self, grid):
        launch = self._kernel[grid]

        def run(*arguments, **options):
            if _capturing:
                _capturing[-1].works.append(lambda: launch(*arguments, **options))
            else:
                launch(*arguments, **options)

        return run


def _record_triton():
    from radam_fused.triton_kernels import compiled, sums, upload

    for module in (compiled, sums):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(module, name, _Recorded(getattr(module, name)))

    copy = upload.Upload._copy_bytes

    @functools.wraps(copy)
    def recorded(tables, start, source):
        if not _capturing:
            return copy(tables, start, source)
        part = slice(start, start + source.numel())
        staged = tables._staging[part].copy_(source)
        return _capturing[-1].works.append(lambda: tables._workspace[part].copy_(staged))

    upload.Upload._copy_bytes = recorded


def _shorten_measurements():
    from bench import cases
    from radam_fused.benchmark import timing

    for model in ("gpt2_xl", "llama3_8b", "resnet50"):
        setattr(cases, model, lambda divisor=1: [(32, 8), (8,)])
    interleave = timing.interleave
    timing.interleave = lambda steps, rounds, title, clock, warm_up=0: interleave(
        steps, 2, title, clock, warm_up=2
    )
