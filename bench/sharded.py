"""Measures steps of sharded parameters: of DTensors, and of their shards as plain tensors."""

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing import ProcessExitedException

from radam_fused import FusedRAdam
from radam_fused.benchmark.models import gpt2
from radam_fused.benchmark.timing import Step, Timer, interleave, timings, wall_clock

from .bandwidth_limit import LIMIT, limit, new_arrays
from .cases import Shapes, elements
from .machine import machine
from .record import run, save
from .rivals import FOREACH, FUSED_ADAMW, OURS, RADAM
from .tables import Target

PROCESSES = 2
PLAIN = f"{OURS} on plain tensors"

FEW, MANY = "98 tensors", "722 tensors"
CASES: dict[str, Shapes] = {
    # 33.4M parameters: GPT-2 without the embedding of positions and one bias.
    FEW: [shape for shape in gpt2(512, 8, 16_000) if shape != (1024, 512)][:-1],
    MANY: [(64, 67)] * 722,
}
ROUNDS = {FEW: 61, MANY: 121}

TARGETS = [
    Target(FEW, OURS, PLAIN, 1.05),
    Target(FEW, OURS, FUSED_ADAMW, 0.95),
    Target(MANY, OURS, PLAIN, 1.35),
    Target(MANY, OURS, FUSED_ADAMW, 0.18),
    Target(MANY, OURS, FOREACH, 0.10),
]


def shards(shapes: Shapes, mesh: DeviceMesh | None) -> list[torch.nn.Parameter]:
    """Shards with gradients: DTensors or, without a mesh, plain tensors."""
    generator = torch.Generator().manual_seed(dist.get_rank())

    def shard(shape: tuple[int, ...]) -> Tensor:
        local = torch.randn(shape[0] // dist.get_world_size(), *shape[1:], generator=generator)
        return local if mesh is None else DTensor.from_local(local, mesh, [Shard(0)])

    params = [torch.nn.Parameter(shard(shape)) for shape in shapes]
    for param, shape in zip(params, shapes, strict=True):
        param.grad = shard(shape)
    return params


def sharded_steps(shapes: Shapes, mesh: DeviceMesh) -> dict[str, Step]:
    """The steps of this benchmark, by name."""
    optim = torch.optim
    return {
        OURS: FusedRAdam(shards(shapes, mesh), backend="cpu").step,
        PLAIN: FusedRAdam(shards(shapes, None), backend="cpu").step,
        FUSED_ADAMW: optim.AdamW(shards(shapes, mesh), fused=True).step,
        f"{FUSED_ADAMW} on plain tensors": optim.AdamW(shards(shapes, None), fused=True).step,
        FOREACH: optim.RAdam(shards(shapes, mesh), foreach=True).step,
        RADAM: optim.RAdam(shards(shapes, mesh), foreach=False).step,
        LIMIT: limit(new_arrays(elements(shapes) // PROCESSES)),
    }


def _shared_clock(step: Step) -> Timer:
    """The longest time of a step that all processes begin together."""
    wall = wall_clock(step)

    def timer() -> float:
        dist.barrier()
        seconds = torch.tensor(wall(), dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return seconds.item()

    return timer


Steps = Callable[[Shapes, DeviceMesh], dict[str, Step]]


def _time_in_process(
    rank: int, size: int, steps: Steps, shapes: Shapes, rounds: int, title: str, folder: str
) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if rank > 0:
        os.environ["TQDM_DISABLE"] = "1"
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))
    found = interleave(steps(shapes, mesh), rounds, title, _shared_clock)
    if rank == 0:
        seconds = {name: timing._asdict() for name, timing in found.items()}
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    dist.barrier()  # no process closes its connections while another one still uses them
    dist.destroy_process_group()


def time_shapes(
    shapes: Shapes,
    rounds: int,
    title: str,
    steps: Steps = sharded_steps,
    processes: int = PROCESSES,
) -> dict[str, Any]:
    """Time every step that a function makes, in new processes, each of one thread."""
    arguments = processes, steps, shapes, rounds, title
    try:
        return _in_processes(*arguments)
    except ProcessExitedException as error:
        # A thread of Gloo crashes now and then, where a process begins or ends.
        warnings.warn(f"{title} is timed again: {error}", stacklevel=2)
        return _in_processes(*arguments)


def _in_processes(processes: int, *arguments: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        given = processes, *arguments, folder
        torch.multiprocessing.spawn(_time_in_process, given, nprocs=processes)  # type: ignore[no-untyped-call]
        return json.loads((Path(folder) / "seconds.json").read_text())  # type: ignore[no-any-return]


def measure(folder: Path) -> None:
    """Run the benchmark and write sharded.json, and the page about bench/results."""
    where = machine() | {"threads": 1, "processes": PROCESSES}
    seconds = {case: time_shapes(CASES[case], ROUNDS[case], case) for case in CASES}
    results = {case: timings(section) for case, section in seconds.items()}
    checked = [t.check(results[t.case][t.ours], results[t.case][t.rival]) for t in TARGETS]
    save("sharded", {"machine": where, "seconds": seconds, "targets": checked}, folder)


if __name__ == "__main__":
    run("sharded", __doc__, measure)
