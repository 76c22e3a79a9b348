"""One training run, step by step, so that several can run alternately."""

import io
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .model import Transformer
from .text import batch

BATCH, CONTEXT, VALIDATIONS = 8, 64, 16

MakeOptimizer = Callable[..., torch.optim.Optimizer]


class Run:
    """A model, its optimizer and its measurements."""

    def __init__(self, make: MakeOptimizer, lr: float) -> None:
        torch.manual_seed(0)
        self.model = Transformer(width=128, layers=2, context=CONTEXT)
        self._start = self._weights().clone()
        self.optimizer = make(self.model.parameters(), lr=lr)
        self.losses: dict[int, float] = {}
        self.validations: dict[int, float] = {}
        self.step_seconds: list[float] = []
        self.total_seconds: list[float] = []

    def train(self, text: Tensor, step: int) -> None:
        """Train one step, on the batch with its number."""
        x, y = batch(text, step, BATCH, CONTEXT)
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model(x, y)
        loss.backward()
        before = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self.losses[step] = loss.item()
        self.step_seconds.append(end - before)
        self.total_seconds.append(end - start)

    @torch.no_grad()
    def validate(self, text: Tensor, step: int) -> None:
        """Record the mean loss of fixed batches of the held-out text after so many steps."""
        losses = [
            self.model(*batch(text, -1 - i, BATCH, CONTEXT)).item() for i in range(VALIDATIONS)
        ]
        self.validations[step] = statistics.fmean(losses)

    def validation_loss(self) -> float:
        """The last validation loss."""
        return list(self.validations.values())[-1]

    def smoothed(self, window: int) -> tuple[list[int], list[float]]:
        """Steps, and the means of the training losses of so many steps before each."""
        steps, losses = list(self.losses), list(self.losses.values())
        ends = range(min(window, len(losses)), len(losses) + 1)
        means = [statistics.fmean(losses[max(0, end - window) : end]) for end in ends]
        return [steps[end - 1] + 1 for end in ends], means

    def final_loss(self) -> float:
        """The mean training loss of the last twenty steps."""
        return statistics.fmean(list(self.losses.values())[-20:])

    def step_ms(self) -> float:
        return statistics.median(self.step_seconds) * 1e3

    def share(self) -> float:
        """The share of the optimizer in the time of a training step."""
        return statistics.median(self.step_seconds) / statistics.median(self.total_seconds)

    def save(self) -> bytes:
        """A checkpoint, from torch.save."""
        file = io.BytesIO()
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, file)
        return file.getvalue()

    def load(self, checkpoint: bytes) -> None:
        state = torch.load(io.BytesIO(checkpoint), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def distance(self, other: "Run") -> float:
        """The distance between the parameters of two runs."""
        return (self._weights() - other._weights()).norm().item()

    def distance_from_start(self) -> float:
        """The distance of the parameters from their initial values."""
        return (self._weights() - self._start).norm().item()

    def _weights(self) -> Tensor:
        return torch.nn.utils.parameters_to_vector(self.model.parameters()).detach()
