"""The launches of a step together, and the base of those that pass addresses to kernels."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import profiler

from ..allocation import take_over_layout, take_over_placements
from ..dtensors import is_dtensor, local, redistribute
from ..elements import Elements
from ..extension import _C
from ..flat import Slot
from ..groups import Groups, Place, States, name_of
from ..interrupts import deferred
from ..option_sets import OptionSet
from ..options import COEFFICIENTS, NAMES
from ..state import State
from .interface import Kind, Launch, Reducer
from .step import Step


class _Recorded(NamedTuple):
    """A launch that `torch.profiler` shows with the name of its backend."""

    backend: str
    launch: Launch

    def run(self) -> None:
        with profiler.record_function(f"radam_fused.{self.backend}"):
            self.launch.run()


class Launches:
    """The launches of a step. All of them read, then all compute, then all run."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, Kind], Launch] = {}
        self._is_atomic = True

    def __len__(self) -> int:
        return len(self._by_kind)

    def __iter__(self) -> Iterator[Launch]:
        return iter(self._by_kind.values())

    def add(
        self,
        place: Place,
        param: Tensor,
        grad: Tensor,
        state: State,
        names: Sequence[str],
        backend: Any,
        counts_on_device: bool = False,
        slot: Slot | None = None,
        draws: tuple[str, ...] = (),
        elements: Elements | None = None,
    ) -> None:
        """Add a parameter to the launch of its kind.

        Its state gets the memory order of the parameter; each tensor stays the same object, unless
        it is a DTensor that has to be redistributed.

        Args:
            place: Position of the parameter in the groups.
            param: The parameter.
            grad: Its gradient.
            state: Its state.
            names: Names of the tensors of the state that the step needs, without the counter.
            backend: The backend that updates it.
            counts_on_device: Whether its device counts its steps.
            slot: Its slot in a flat buffer, or None.
            draws: Names of the tensors that are rounded stochastically.
            elements: The numbers of its elements, if there are such tensors.
        """
        if not torch.is_grad_enabled():
            take_over_placements(param, state, names)
        if backend.name != "eager":
            take_over_layout(param, state, names)
        kind = Kind(
            param.device,
            param.dtype,
            grad.dtype,
            state["exp_avg"].dtype,
            state["step"].dtype,
            ("step", *names),
            counts_on_device,
            draws,
            elements is not None and elements.run < local(param).numel(),
        )
        if (backend.name, kind) not in self._by_kind:
            launch = self._by_kind[backend.name, kind] = backend.launch(kind)
            self._is_atomic &= launch.is_atomic
        types = {type(local(tensor)) for tensor in (param, grad, *state.values())}
        self._by_kind[backend.name, kind].add(place, param, types, slot, elements)

    def read(self, groups: Groups, states: States, is_separate: bool = False) -> bool:
        """Read every launch; False if a parameter does not fit its launch any more."""
        return all(launch.read(groups, states, is_separate) for launch in self._by_kind.values())

    def have_moved(self) -> bool:
        """Whether a tensor that the step writes lies at another address than at the last step."""
        return any(launch.has_moved() for launch in self._by_kind.values())

    def misfit(self) -> tuple[Place, str]:
        """The place of a parameter that does not fit its launch, and the name of its tensor."""
        return next(found for found in (launch.misfit() for launch in self) if found[1])

    def place_gradients(self, step: Step) -> None:
        """Place gradients like their parameters: once a step, and in one order on every process.

        Raises:
            RuntimeError: A gradient does not fit its parameter after it was redistributed.
        """
        if not any(launch.misplaced() for launch in self._by_kind.values()):
            return
        found = [(launch, launch.misplaced()) for launch in self._by_kind.values()]
        pairs = {place: (grad, param) for _, them in found for place, param, grad in them}
        moved = redistribute(pairs)
        for launch, misplaced in found:
            if not launch.take_gradients([moved[place] for place, *_ in misplaced]):
                name = name_of(step.groups, launch.misfit()[0])
                raise RuntimeError(f"gradient of {name} does not fit after its redistribution")

    def compute(self, step: Step) -> None:
        """Compute every launch. Writes nothing."""
        for launch in self._by_kind.values():
            launch.compute(step)

    def run(self) -> None:
        """Run every launch. Ctrl-C cannot leave some parameters updated and others not."""
        launches: Iterable[Launch | _Recorded] = self._by_kind.values()
        if profiler._is_profiler_enabled:  # a record takes microseconds
            launches = [_Recorded(name, launch) for (name, _), launch in self._by_kind.items()]
        if not self._is_atomic:
            with deferred():
                for launch in launches:
                    launch.run()
            return
        try:
            for launch in launches:
                launch.run()
        except KeyboardInterrupt:
            self.run()  # A launch that has run does nothing more.
            raise

    def release(self) -> None:
        """Release every tensor that was read, without a step."""
        for launch in self._by_kind.values():
            launch.release()


class TableLaunch:
    """A launch over a TensorTable. A backend adds `run`, usually one call of the extension.

    Args:
        kind: The common properties of its parameters.
        chunk: Elements that one block of the kernel updates.
    """

    is_atomic = True
    reducer: Reducer | None = None

    def __init__(self, kind: Kind, chunk: int = 1) -> None:
        self.kind = kind
        self.is_replayed = False
        self._size = 0  # bytes of the workspace that the step needs
        self._capturing = False
        self._tracked: tuple[Sequence[int], Tensor] | None = None
        self.table = _C.TensorTable(kind.state, chunk, kind.counts_on_device, kind.draws)
        self.read = self.table.read
        self.misfit = self.table.misfit
        self.misplaced = self.table.misplaced
        self.take_gradients = self.table.take_gradients
        self.has_moved = self.table.has_moved
        self.written_ranges = self.table.written_ranges
        self.release = self.table.release

    def add(
        self,
        place: Place,
        param: Tensor,
        types: Collection[type],
        slot: Slot | None,
        elements: Elements | None,
    ) -> None:
        """See Launch.add."""
        dtensor = param if is_dtensor(param) else None
        flat = (None, 0) if slot is None else (slot.buffer, slot.offset)
        self.table.add(place, list(types), dtensor, *flat, elements)

    def compute(self, step: Step) -> None:
        """See Launch.compute."""
        self._begin(len(step.groups))
        if not self.table.is_active():
            return
        if not self.kind.counts_on_device:
            if step.overflows or (self.reducer is None and step.is_skipped):
                self.table.release()
            else:
                clip = self._clip(step)
                self.table.compute(step.numbers, step.host_scale, None, self._capturing, clip)
            return
        scaling = (
            number if number is None else self._on_device(number)
            for number in (step.grad_scale, step.found_inf)
        )
        self.table.compute(step.numbers, *scaling, self._capturing, self._clip(step))

    def _clip(self, step: Step) -> Any:
        """The clip coefficient, or the Clip on the device."""
        if self.reducer is not None and step.clip is not None:
            return step.clip_on(self.kind.device)
        return None if step.host_clip is None else step.host_clip.coefficient

    def track(self, sums: Tensor, first_of_group: Sequence[int]) -> None:
        """See Launch.track."""
        self._tracked = first_of_group, sums

    def _begin(self, groups: int) -> None:
        self._size = self.table.workspace_bytes(groups)
        self._capturing = is_capturing(self.kind.device)

    def _on_device(self, number: Tensor) -> Tensor:
        return number.detach().to(self.kind.device, torch.float32, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of a device."""
    if device.type != "cuda":
        return False
    with as_current(device):
        return torch.cuda.is_current_stream_capturing()


def current_stream(device: torch.device) -> Any:
    """The current stream; None for the CPU, on whose tensors tests run the device backends."""
    if device.type == "cpu":
        return None
    return torch.get_device_module(device).current_stream(device)


def as_current(device: torch.device) -> AbstractContextManager[object]:
    """A context with a device as the current one. It initialises no other device."""
    if device.type == "cpu":
        return nullcontext()
    guard: AbstractContextManager[object] = torch.get_device_module(device).device(device)
    return guard


def new_numbers(options: OptionSet) -> Any:
    """A reader of the options of all groups as numbers; None without the extension."""
    if _C is None:
        return None
    defaults = {name: options.defaults[name] for name in options.ours}
    return _C.GroupOptions(defaults, [name for name in NAMES if name not in COEFFICIENTS])


class Workspace:
    """Device memory for the tables of a launch, kept between steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._memory: Tensor | None = None
        self._stream: Any = None

    def make(self, size: int) -> Tensor:
        """New memory. During a capture, torch takes it from the pool of the graph."""
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def get(self, size: int, stream: Any) -> tuple[Tensor, bool]:
        """Memory of at least `size` bytes for a stream, and whether it is new memory."""
        memory = self._memory
        is_new = memory is None or memory.numel() < size
        if memory is None or is_new:
            memory = self._memory = self.make(size)
        elif stream != self._stream:
            # The allocator must not reuse the memory while the stream still reads it.
            memory.record_stream(stream)
        self._stream = stream
        return memory, is_new
