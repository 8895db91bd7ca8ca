"""Muon for matrices and Adam for the rest, over float32 masters of bfloat16 weights.

Not a torch Optimizer: two rules, one list of tensors, and a state that is itself a
dict of tensors, so that a checkpoint is one safetensors file. Running the model in
bfloat16 outright (instead of under autocast) made a CPU step two to three times
shorter; the masters keep updates smaller than a bfloat16 step.
Source: Muon, Keller Jordan 2024 (Newton-Schulz with quintic coefficients).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor
    from torch.nn import Module, Parameter


@dataclass(frozen=True)
class Rates:
    """muon: step of a matrix, relative to its size. adam: of embeddings and norms.

    The embeddings' rate must stay well under 1e-3 or the structured start is lost.
    """

    muon: float = 0.005
    adam: float = 4e-4
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.97)
    decay: float = 0.01
    clip: float = 1.0


def orthogonalise(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Replace each matrix by the nearest orthogonal one, roughly.

    Args:
        matrices: [N, a, b] with a <= b.
    Returns:
        [N, a, b] bfloat16, singular values between about 0.7 and 1.2.
    """
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.baddbmm(
            x,
            torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315),
            x,
            beta=3.4445,
        )
    return x


class Optimiser:
    """Steps the weights of one module.

    Args:
        module: weights in any floating dtype; their float32 masters are kept here.
        rates: see Rates.
        embeddings: names of matrices that are tables, left to Adam.
        share: this process's number and how many there are; each makes orthogonal only its
            part of the matrices, a quarter of a small CPU step if each did all.
        total: sums a tensor over the processes.
    """

    def __init__(
        self,
        module: Module,
        rates: Rates,
        embeddings: Iterable[str],
        share: tuple[int, int] = (0, 1),
        total: Callable[[Tensor], Tensor] = torch.clone,
    ) -> None:
        self.rates = rates
        self.share, self.total = share, total
        self.parameters: dict[str, Parameter] = dict(module.named_parameters())
        tables = set(embeddings)
        self.state: dict[str, Tensor] = {}
        groups: dict[tuple[int, int], list[str]] = defaultdict(list)
        self.plain: list[str] = []
        for name, p in self.parameters.items():
            self.state[f"master.{name}"] = p.detach().float().clone()
            self.state[f"momentum.{name}"] = torch.zeros_like(p, dtype=torch.float32)
            if p.ndim == 2 and name not in tables:
                groups[min(p.shape), max(p.shape)].append(name)
            else:
                self.plain.append(name)
                self.state[f"square.{name}"] = torch.zeros_like(p, dtype=torch.float32)
        self.groups = list(groups.values())

    def to(self, device: torch.device) -> None:
        """Move the masters and moments beside the weights."""
        self.state = {name: held.to(device) for name, held in self.state.items()}

    def flat_gradient(self) -> Tensor:
        """[all weights] float32, in the order of the parameters; the gradients are let go."""
        parts = []
        for p in self.parameters.values():
            parts.append((torch.zeros_like(p) if p.grad is None else p.grad).flatten().float())
            p.grad = None
        return torch.cat(parts)

    @torch.no_grad()
    def step(self, gradient: Tensor, count: int, factor: float) -> float:
        """Take one step.

        Args:
            gradient: as flat_gradient gives it, averaged over processes.
            count: steps taken so far, this one counted.
            factor: of both rates, from the schedule.
        Returns:
            the gradient's length before clipping.
        """
        norm = float(gradient.norm())
        gradient = gradient * min(1.0, self.rates.clip / (norm + 1e-6))
        sizes = [p.numel() for p in self.parameters.values()]
        grads = {
            name: part.view(p.shape)
            for (name, p), part in zip(
                self.parameters.items(), torch.split(gradient, sizes), strict=True
            )
        }
        self._muon(grads, factor)
        for name in self.plain:
            self._adam(name, grads[name], count, factor)
        for name, p in self.parameters.items():
            p.copy_(self.state[f"master.{name}"])
        return norm

    def _muon(self, grads: Mapping[str, Tensor], factor: float) -> None:
        rates = self.rates
        rank, processes = self.share
        flat = []
        for names in self.groups:
            updates = []
            for name in names:
                momentum = self.state[f"momentum.{name}"].lerp_(grads[name], 1 - rates.momentum)
                update = grads[name].lerp(momentum, rates.momentum)  # Nesterov
                updates.append(update.T if update.shape[0] > update.shape[1] else update)
            mine = torch.zeros(len(names), *updates[0].shape, device=updates[0].device)
            if part := updates[rank::processes]:
                mine[rank::processes] = orthogonalise(torch.stack(part)).float()
            flat.append(mine.flatten())
        together = self.total(torch.cat(flat))
        shares = torch.split(together, [one.numel() for one in flat])
        for names, share in zip(self.groups, shares, strict=True):
            for name, update in zip(names, share.chunk(len(names)), strict=True):
                master = self.state[f"master.{name}"]
                rows, columns = master.shape
                step = (
                    update.view(columns, rows).T if rows > columns else update.view(rows, columns)
                )
                master.mul_(1 - factor * rates.muon * rates.decay)
                master.add_(step, alpha=-factor * rates.muon * max(1.0, rows / columns) ** 0.5)

    def _adam(self, name: str, grad: Tensor, count: int, factor: float) -> None:
        first, second = self.rates.betas
        mean = self.state[f"momentum.{name}"].lerp_(grad, 1 - first)
        square = self.state[f"square.{name}"].lerp_(grad * grad, 1 - second)
        scale = (square / (1 - second**count)).sqrt_().add_(1e-10)
        rate = factor * self.rates.adam / (1 - first**count)
        self.state[f"master.{name}"].addcdiv_(mean, scale, value=-rate)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a saved state, and the weights from its masters.

        Raises:
            KeyError: the state is of another model.
        """
        for name, held in self.state.items():
            held.copy_(state[name])
        for name, p in self.parameters.items():
            p.copy_(self.state[f"master.{name}"])
