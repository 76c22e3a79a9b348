"""Everything that a user might pick instead, on a GPU."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from radam_fused import FusedRAdam

from ..cases import Shapes
from ..rivals import OURS
from . import variant

Step = Callable[[], object]

CAPTURABLE = f"{OURS} capturable"
REPLAYED = f"{OURS} in a CUDA graph"
REPLAYED_TRITON = f"{OURS} by Triton in a CUDA graph"
FLAT = f"{OURS} flatten=True"
TRITON = f"{OURS} by Triton"
ROUGHLY = f"{OURS} contracted, rough division"
FOREACH = "torch RAdam foreach"
COMPILED = "torch.compile of RAdam"
FUSED_ADAMW = "torch AdamW fused"


class Rivals:
    """Optimizers over the same shapes that share their gradients, which none of them writes."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes
        self._grads = [torch.randn(shape, device="cuda") for shape in shapes]

    def _params(self) -> list[torch.nn.Parameter]:
        params = [torch.nn.Parameter(torch.randn_like(grad)) for grad in self._grads]
        for param, grad in zip(params, self._grads, strict=True):
            param.grad = grad
        return params

    def _ours(self, backend: str = "cuda", **options: object) -> FusedRAdam:
        return FusedRAdam(self._params(), backend=backend, **options)  # type: ignore[arg-type]

    def _replayed(self, backend: str) -> Step:
        optimizer = self._ours(backend, capturable=True)
        optimizer.step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            optimizer.step()

        def replay() -> FusedRAdam:
            graph.replay()
            return optimizer  # whose memory the graph uses

        return replay

    def _roughly(self) -> Step:
        optimizer = self._ours()
        variant.prepare(optimizer)
        return optimizer.step

    def _compiled(self) -> Step:
        optimizer = torch.optim.RAdam(self._params())
        return torch.compile(optimizer.step)  # type: ignore[no-any-return]

    def _apex(self) -> Step:
        from apex.optimizers import FusedAdam

        return FusedAdam(self._params()).step  # type: ignore[no-any-return]

    def steps(self, with_compiled: bool) -> dict[str, Step]:
        """One step of each."""
        optim = torch.optim
        steps: dict[str, Step] = {
            OURS: self._ours().step,
            CAPTURABLE: self._ours(capturable=True).step,
            REPLAYED: self._replayed("cuda"),
            REPLAYED_TRITON: self._replayed("triton"),
            FLAT: self._ours(flatten=True).step,
            TRITON: self._ours("triton").step,
            ROUGHLY: self._roughly(),
            FOREACH: optim.RAdam(self._params(), foreach=True).step,
            "torch RAdam capturable": optim.RAdam(self._params(), capturable=True).step,
            "torch Adam": optim.Adam(self._params()).step,
            FUSED_ADAMW: optim.AdamW(self._params(), fused=True).step,
        }
        if with_compiled:
            steps[COMPILED] = self._compiled()
        if find_spec("apex"):
            steps["apex FusedAdam"] = self._apex()
        return steps
