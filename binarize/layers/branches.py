"""Group-wise structure: K binary branches of one group, added up; gates between groups; a router that picks branches.

With S the aggregate that comes in, h_k what branch k gave in the group before, f_k branch k:

    x_k = g h_k + (1 - g) S,  g = sigmoid(theta)       without a gate x_k = S                              (1)
    v_k = f_k(x_k)
    S'  = sum_k share_k scale_k v_k                     share_k = 1 / K, or the router's                    (2)

Reference:
    Zhuang et al., Structured Binary Neural Networks, CVPR 2019, arXiv:1811.10413, and arXiv:1909.09934: sums, scales,
    gates as in its published code. How its journal version picks branches is not public: the router is our design.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

__all__ = ["Branches", "Gate", "Router", "branch_groups"]

LEAST_HIDDEN = 8  # features between a router's two layers
SHRINK = 8


@final
class Gate(nn.Module):
    """Mixes what each branch gave in the group before with the aggregate, equation (1).

    Attributes:
        theta: ``(1,)``, one gate for all branches, or ``(K,)``. 0 at first: half of each.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(count))

    def forward(self, aggregate: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
        """Map the aggregate and each branch's own ``(n, ...)`` to the input of each branch."""
        shares = self.theta.sigmoid().expand(len(own))
        return [share * h + (1 - share) * aggregate for share, h in zip(shares, own, strict=True)]


@final
class Router(nn.Module):
    """Chooses for each image which K of N stored branches run, from the incoming aggregate.

        l = F2 relu(F1 mean(S)),  p = softmax(l),  share_i = p_i / sum of the K largest p, 0 for the others

    In training, Gumbel noise of size ``temperature`` is added to l; the choice itself has no gradient, the shares have.

    Attributes:
        executed: K.
        temperature: size of the noise, and divisor of l in training; a buffer, so that a trainer may anneal it.
        balance: N * sum_i f_i * mean p_i of the last batch in training, with f_i the share of images that branch i ran
            for: 1 when all branches are used alike; a term of the loss that keeps the router from using few branches.
    """

    temperature: Tensor

    def __init__(self, channels: int, stored: int, executed: int) -> None:
        super().__init__()
        hidden = max(channels // SHRINK, LEAST_HIDDEN)
        self.executed = executed
        self.squeeze = nn.Linear(channels, hidden)
        self.choose = nn.Linear(hidden, stored)
        self.register_buffer("temperature", torch.ones(()))
        self.balance: Tensor | None = None

    def forward(self, aggregate: Tensor) -> Tensor:
        """Map ``(n, c, ...)`` to the shares ``(n, N)``: K of each row are positive and add up to 1."""
        logits = self.logits(aggregate)
        if self.training:
            noise = -torch.empty_like(logits).exponential_().log()
            logits = (logits + self.temperature * noise) / self.temperature
        chosen = torch.zeros_like(logits).scatter(1, logits.topk(self.executed, 1).indices, 1.0)
        likely = logits.softmax(1)
        if self.training:
            used = chosen.mean(0) / self.executed
            self.balance = len(used) * (used * likely.mean(0)).sum()
        shares = likely * chosen
        return shares / shares.sum(1, keepdim=True)

    def logits(self, aggregate: Tensor) -> Tensor:
        """Map ``(n, c, ...)`` to ``(n, N)``."""
        features = aggregate.flatten(2).mean(2) if aggregate.dim() > 2 else aggregate
        found: Tensor = self.choose(F.relu(self.squeeze(features)))
        return found

    def extra_repr(self) -> str:
        """Name the counts."""
        return f"executed={self.executed}, stored={self.choose.out_features}"


@final
class Branches(nn.Module):
    """The binary branches of one group and their sum, equations (1) and (2); in training form and in packed form.

    Attributes:
        bodies: N graphs of one structure; each maps the group's input to its output.
        origin: path in the float graph of each weighted layer of a body, by its path there.
        gate: mixes the inputs, or None where all branches read the aggregate.
        scale: ``(N,)`` learnt, 1 at first; None where branches are averaged.
        router: chooses branches, or None where all run.
        hands_on: whether the next group's gate reads the branches' own outputs.
        sparse: run only the branches that the router chose, image by image. Off in training form, where all branches
            run and the shares of the others are 0: the same numbers, and the definition.
    """

    def __init__(
        self,
        bodies: Sequence[fx.GraphModule],
        origin: Mapping[str, str],
        *,
        gate: Gate | None = None,
        scaled: bool = True,
        router: Router | None = None,
        hands_on: bool = False,
    ) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.origin = dict(origin)
        self.gate, self.router = gate, router
        self.scale = nn.Parameter(torch.ones(len(bodies))) if scaled else None
        self.hands_on, self.sparse = hands_on, False

    def forward(self, aggregate: Tensor, *own: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map the aggregate ``(n, ...)``, and each branch's own where there is a gate, to the new aggregate.

        Returns:
            ``S'``, or ``(S', v_1, ..., v_N)`` if `hands_on`; a branch that did not run for an image hands on S'.
        """
        inputs = self.gate(aggregate, own) if self.gate is not None else [aggregate] * len(self.bodies)
        if self.router is None:
            shares = aggregate.new_full((1, len(self.bodies)), 1 / len(self.bodies))
            values = [body(x) for body, x in zip(self.bodies, inputs, strict=True)]
        else:
            shares = self.router(aggregate)
            values = self._chosen(inputs, shares) if self.sparse else self._all(inputs)
        total = self.add(values, shares)
        if not self.hands_on:
            return total
        if self.router is None:
            return total, *values
        ran = [_per_image(shares[:, k] > 0, total) for k in range(len(values))]
        return total, *(torch.where(here, value, total) for here, value in zip(ran, values, strict=True))

    def add(self, values: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return equation (2) for the branches' outputs ``(n, ...)`` and shares ``(n or 1, N)``.

        The branches are added in their order, each product rounded by itself: both forms give the same bits.
        """
        weights = shares if self.scale is None else shares * self.scale
        total = _per_image(weights[:, 0], values[0]) * values[0]
        for k, value in enumerate(values[1:], 1):
            total = total + _per_image(weights[:, k], value) * value
        return total

    def _all(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [body(x) for body, x in zip(self.bodies, inputs, strict=True)]

    def _chosen(self, inputs: Sequence[Tensor], shares: Tensor) -> list[Tensor]:
        """Run each branch on the images that chose it; the rows of the others stay 0."""
        values: list[Tensor | None] = []
        for k, body in enumerate(self.bodies):
            here = shares[:, k].nonzero().squeeze(1)
            if len(here) == len(shares):
                values.append(body(inputs[k]))
            elif len(here):
                part = body(inputs[k][here])
                values.append(part.new_zeros(len(shares), *part.shape[1:]).index_copy_(0, here, part))
            else:
                values.append(None)
        like = next(value for value in values if value is not None)
        return [torch.zeros_like(like) if value is None else value for value in values]

    def train(self, mode: bool = True) -> "Branches":
        """Set the mode; normalisation layers of routed branches keep their statistics.

        A branch should learn statistics from the images that it runs for; the dense training form feeds it all.
        """
        super().train(mode)
        if self.router is not None:
            for module in self.bodies.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def extra_repr(self) -> str:
        """Name the layers that each branch copies."""
        return f"copies of {', '.join(self.origin.values())}"


def branch_groups(net: nn.Module) -> list[tuple[str, Branches]]:
    """Return every `Branches` of ``net`` with its module path, each once."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, Branches)]


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Reshape ``(n,)`` so that it multiplies ``like`` ``(n, ...)``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
