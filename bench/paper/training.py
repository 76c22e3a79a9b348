"""Training runs: the tasks, the optimizers, and parallel runs on all cores."""

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from bench.demo.model import Transformer
from bench.demo.runs import MakeOptimizer
from bench.demo.text import batch, standard_library
from radam_fused import FusedRAdam

# torch.optim.Adam as options of FusedRAdam.
adam = partial(FusedRAdam, rectify=False, eps_after_bias_correction=True)


class Recipe(NamedTuple):
    """An optimizer and the start of its learning rate."""

    make: MakeOptimizer
    warm_up: int = 0  # steps over which the learning rate grows linearly
    frozen: int = 0  # steps in which only exp_avg_sq is updated (Adam-2k)

    def factor(self, step: int) -> float:
        """The factor of the learning rate at a step, counted from 0."""
        if step < self.frozen:
            return 0.0
        return min(1.0, (step + 1) / self.warm_up) if self.warm_up else 1.0

    def mean_factor(self, steps: int) -> float:
        """The mean factor of the learning rate: warm-up times r_t."""
        p = nn.Parameter(torch.zeros(1))
        optimizer = self.make([p], lr=1.0)
        total = 0.0
        for step in range(steps):
            p.grad = torch.ones(1)
            optimizer.step()
            r_t = 1.0
            if isinstance(optimizer, FusedRAdam):
                r_t = optimizer.rectification()[0].r_t
            total += self.factor(step) * r_t
        return total / steps


class Task(NamedTuple):
    """A training task."""

    model: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int], Tensor]  # of a model on the batch of a step
    score: Callable[[nn.Module], float]  # on held-out data


class Outcome(NamedTuple):
    """The result of one run."""

    losses: list[float]  # of every step
    score: float  # nan where the loss became infinite or nan


def _digits_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train, held_out = (
        torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 16 for x in split[:2]
    )
    return train, held_out, *map(torch.tensor, split[2:])


def _digits_loss(model: nn.Module, step: int) -> Tensor:
    images, _, labels, _ = _digits()
    rows = torch.randint(len(images), (64,), generator=torch.Generator().manual_seed(step))
    return functional.cross_entropy(model(images[rows]), labels[rows])


def _digits_score(model: nn.Module) -> float:
    _, images, _, labels = _digits()
    return (model(images).argmax(1) == labels).double().mean().item()


_text = cache(standard_library)


def _bytes_loss(model: nn.Module, step: int) -> Tensor:
    return model(*batch(_text()[0], step, 8, 64))


def _bytes_score(model: nn.Module) -> float:
    losses = [model(*batch(_text()[1], -1 - i, 64, 64)).item() for i in range(8)]
    return sum(losses) / len(losses)


TASKS = {
    "digits": Task(_digits_model, _digits_loss, _digits_score),
    "bytes": Task(partial(Transformer, width=128, layers=2), _bytes_loss, _bytes_score),
    "bytes, 3.3M parameters": Task(Transformer, _bytes_loss, _bytes_score),
}


def steps_of(
    task: Task, recipe: Recipe, lr: float, steps: int, seed: int
) -> Iterator[tuple[float, nn.Module]]:
    """Train; yield the loss and the model with its gradients after each backward pass.

    The batches are the same for every recipe and, shifted, for every seed.
    """
    torch.manual_seed(seed)
    model = task.model()
    optimizer = recipe.make(model.parameters(), lr=lr)
    for step in range(steps):
        if step == recipe.frozen > 0:
            for state in optimizer.state.values():
                state["exp_avg"].zero_()
        optimizer.param_groups[0]["lr"] = lr * recipe.factor(step)
        optimizer.zero_grad()
        loss = task.loss(model, seed * 1_000_000 + step)
        loss.backward()
        yield loss.item(), model
        optimizer.step()


def train(task: str, recipe: Recipe, lr: float, steps: int, seed: int) -> Outcome:
    """Train one model to the end.

    Args:
        task: Name of the task.
        recipe: Optimizer.
        lr: Its learning rate.
        steps: Number of steps.
        seed: Of the initial weights and the batches.
    """
    losses: list[float] = []
    for loss, model in steps_of(TASKS[task], recipe, lr, steps, seed):  # noqa: B007
        losses.append(loss)
        if not math.isfinite(loss):
            return Outcome(losses, math.nan)
    with torch.no_grad():
        return Outcome(losses, TASKS[task].score(model))


def _alone() -> None:
    torch.set_num_threads(1)  # so that a result does not depend on the number of cores
    warnings.simplefilter("ignore")


def _call(work: tuple[Callable[..., object], tuple[object, ...]]) -> object:
    function, arguments = work
    return function(*arguments)


def over_cores(
    function: Callable[..., object], arguments: Sequence[tuple[object, ...]], what: str
) -> Iterator[object]:
    """Results of calls, in order. One single-threaded process per core runs them."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores, _alone) as pool:
        work = [(function, each) for each in arguments]
        yield from tqdm(pool.imap(_call, work), what, len(work), mininterval=1)
