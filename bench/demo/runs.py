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
        self.model = Transformer(context=CONTEXT)
        self.optimizer = make(self.model.parameters(), lr=lr)
        self.losses: dict[int, float] = {}
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
    def validate(self, text: Tensor) -> float:
        """The mean loss of fixed batches of the held-out text."""
        losses = [
            self.model(*batch(text, -1 - i, BATCH, CONTEXT)).item() for i in range(VALIDATIONS)
        ]
        return statistics.fmean(losses)

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

    def largest_difference(self, other: "Run") -> float:
        """The largest difference between the parameters of two runs."""
        pairs = zip(self.model.parameters(), other.model.parameters(), strict=True)
        return max((p - q).abs().max().item() for p, q in pairs)
