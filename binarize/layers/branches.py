"""Group-wise structure: K binary branches of one group, added up; gates between groups; a router that picks branches.

With S the aggregate that comes in, f_k branch k, h_k what it or the copy of it that ran gave in the group before:

    x_k = g h_k + (1 - g) S,  g = sigmoid(theta)       without a gate x_k = S                              (1)
    v_k = f_k(x_k)
    S'  = sum_k share_k scale_k v_k                     share_k = 1 / K, or the router's                    (2)

Reference:
    Zhuang et al., Structured Binary Neural Networks, CVPR 2019, arXiv:1811.10413, and arXiv:1909.09934: sums, scales,
    gates as in its published code. How its journal version picks branches is not public: the router is our design.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from binarize.layers.binary import BinaryActivation, BinaryLayer
from binarize.layers.chosen import (
    Rows,
    add_weighted,
    empty,
    may_choose,
    per_image,
    run_chosen,
    some,
    take,
    train_chosen,
)

__all__ = ["Branches", "Gate", "Router", "branch_groups", "routed_groups", "sharing"]

LEAST_HIDDEN = 8  # features between a router's two layers
NOISE = 0.1  # a tenth of how far apart a started router's logits are: images between two kinds try both
SHRINK = 8
START = -2.0  # theta: copies were fitted to the aggregate, and trained gates end between -1 and -4


@final
class Gate(nn.Module):
    """Mixes what each branch gave in the group before with the aggregate, equation (1).

    Attributes:
        theta: ``(1,)``, one gate for all branches, or ``(K,)``. At first 0.12 of the branch's own, the rest aggregate.
    """

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.full((count,), START))

    def forward(self, aggregate: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
        """Map the aggregate and each branch's own ``(n, ...)`` to the input of each branch."""
        shares = self.theta.sigmoid()
        kept = [(1 - share) * aggregate for share in shares]
        return [torch.addcmul(kept[k % len(kept)], shares[k % len(kept)], h) for k, h in enumerate(own)]

    def mix(self, k: int, aggregate: Tensor, own: Tensor) -> Tensor:
        """Return the input of branch k from the aggregate and the branch's own ``(n, ...)``."""
        share = self.theta[k % len(self.theta)].sigmoid()
        return torch.addcmul((1 - share) * aggregate, share, own)

    def gather(self, aggregate: Tensor, own: Sequence[Tensor | Rows]) -> Callable[[int, Sequence[int]], Tensor]:
        """Return a function from a branch and the images it runs for to its input, the same bits as in `forward`."""
        shares = self.theta.sigmoid()
        shared = (1 - shares) * aggregate if len(shares) == 1 else None

        def mix(k: int, images: Sequence[int]) -> Tensor:
            share = shares[k % len(shares)]
            made = empty(len(images), aggregate[0])
            for place, image in enumerate(images):
                kept = (1 - share) * aggregate[image] if shared is None else shared[image]
                torch.addcmul(kept, share, own[k][image], out=made[place])
            return made

        return mix


@final
class Router(nn.Module):
    """Chooses for each image which K of N stored branches run, from the incoming aggregate.

    Branch i is a copy of branch i mod K, and for each of these K one copy is chosen, the one with the largest l:

        l = F2 relu(F1 mean(S)),  p = softmax(l),  share_i = p_i / sum of the K chosen p, 0 for the others           (3)

    In training that with the largest l + ``temperature`` * Gumbel noise is chosen; the shares are by l alone, as in
    evaluation. The choice itself has no gradient, the shares have.

    Attributes:
        executed: K.
        temperature: size of the noise; a buffer, so that a trainer may anneal it.
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
        self.register_buffer("temperature", torch.full((), NOISE))
        self.balance: Tensor | None = None

    def forward(self, aggregate: Tensor) -> Tensor:
        """Map ``(n, c, ...)`` to the shares ``(n, N)``: K of each row are positive and add up to 1."""
        logits = self.logits(aggregate)
        wanted = logits.detach()
        if self.training:
            wanted = wanted - self.temperature * torch.empty_like(wanted).exponential_().log()
        chosen = self._one_of_each(wanted)
        # the softmax of the chosen alone is what p_i / sum of theirs comes to
        least = torch.finfo(logits.dtype).tiny  # what is chosen runs, however small its share
        found = logits.gather(1, chosen).softmax(1).clamp_min(least)
        shares = torch.zeros_like(logits).scatter(1, chosen, found)
        if self.training:
            used = (shares > 0).to(logits.dtype).mean(0) / self.executed
            self.balance = len(used) * (used * logits.softmax(1).mean(0)).sum()
        return shares

    def _one_of_each(self, wanted: Tensor) -> Tensor:
        """Map ``(n, N)`` to the number ``(n, K)`` of the most wanted among the branches k, k + K, ... for each k."""
        lacking = -wanted.shape[1] % self.executed
        copies = F.pad(wanted, (0, lacking), value=-torch.inf).unflatten(1, (-1, self.executed))
        found: Tensor = copies.argmax(1) * self.executed + torch.arange(self.executed, device=wanted.device)
        return found

    def logits(self, aggregate: Tensor) -> Tensor:
        """Map ``(n, c, ...)`` to ``(n, N)``, in full precision also where torch computes the rest in bfloat16."""
        features = mean_features(aggregate)
        kind = features.device.type
        exactly = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if exactly else contextlib.nullcontext():
            found: Tensor = self.choose(F.relu(self.squeeze(features.float() if exactly else features)))
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Leave `balance` out of copies: it belongs to a backward pass."""
        return {**self.__dict__, "balance": None}

    def train(self, mode: bool = True) -> "Router":
        """Set the mode; evaluation forgets `balance`."""
        if not mode:
            self.balance = None
        return super().train(mode)

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
        sparse: run only the branches that the router chose, image by image, without gradients: the packed form. The
            training form does so in training, with gradients, and normalisation layers learn the statistics of the
            images that their branch runs for. In evaluation all its branches run and the shares of the others are 0:
            the same numbers, and the definition.
        shared: the first K branches run for all images and the router rests, until the others become their copies.
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
        self.hands_on, self.sparse, self.shared = hands_on, False, False

    def forward(self, aggregate: Tensor, *own: Tensor | Rows) -> Tensor | tuple[Tensor | Rows, ...]:
        """Map the aggregate ``(n, ...)``, and each branch's own where there is a gate, to the new aggregate.

        Returns:
            ``S'``, or ``(S', v_1, ..., v_N)`` if `hands_on`; for an image that another copy ran for, what that gave.
            If `sparse`, each v is a list of images.
        """
        if (self.sparse or self.training) and not self.shared and self.router is not None and may_choose(aggregate):
            shares = self.router(aggregate)
            return (self._run_chosen if self.sparse else self._train_chosen)(shares, aggregate, own)
        values = self._values(aggregate, own)
        if self.router is None or self.shared:
            total = self.add(values, aggregate.new_full((1, len(values)), 1 / len(values)))
            handed = [values[k % len(values)] for k in range(len(self.bodies))]
            return (total, *handed) if self.hands_on else total
        shares = self.router(aggregate)
        total = self.add(values, shares)
        return (total, *self._of_copies(values, shares != 0)) if self.hands_on else total

    def terms(self, aggregate: Tensor, *own: Tensor) -> list[Tensor]:
        """Return ``share_k v_k`` of equation (2) for each branch that runs, ``(n, ...)``: what the scales weigh."""
        values = self._values(aggregate, own)
        if self.router is None or self.shared:
            return [value / len(values) for value in values]
        shares = self.router(aggregate)
        return [per_image(shares[:, k], value) * value for k, value in enumerate(values)]

    def add(self, values: Sequence[Tensor], shares: Tensor) -> Tensor:
        """Return equation (2) for the branches' outputs ``(n, ...)`` and shares ``(n or 1, N)``.

        The branches are added in their order, by the same multiply-add in all forms: they give the same bits.
        """
        weights = self._weights(shares)
        total = per_image(weights[:, 0], values[0]) * values[0]
        for k, value in enumerate(values[1:], 1):
            total = add_weighted(total, weights[:, k], value)
        return total

    def _of_copies(self, values: Sequence[Tensor], ran: Tensor) -> list[Tensor]:
        """Return for each branch the outputs ``(n, ...)`` of that of its copies that ran, by ``(n, N)``."""
        assert self.router is not None
        count = self.router.executed
        found = [*values[:count]]
        for k, value in enumerate(values[count:], count):
            found[k % count] = torch.where(per_image(ran[:, k], value), value, found[k % count])
        return [found[k % count] for k in range(len(values))]

    def _weights(self, shares: Tensor) -> Tensor:
        return shares if self.scale is None else shares * self.scale[: shares.shape[1]]

    def _values(self, aggregate: Tensor, own: Sequence[Tensor | Rows]) -> list[Tensor]:
        running = self.router.executed if self.router is not None and self.shared else len(self.bodies)
        inputs = self._inputs(aggregate, own[:running])[:running]
        return [body(x) for body, x in zip([*self.bodies][:running], inputs, strict=True)]

    @torch.no_grad()
    def split(self) -> None:
        """Give each branch beyond the first K that a router chooses the values of branch k mod K; `shared` ends."""
        assert self.router is not None
        self.shared = False
        count = self.router.executed
        for k in range(count, len(self.bodies)):
            for mine, theirs in zip(self.bodies[k].modules(), self.bodies[k % count].modules(), strict=True):
                if isinstance(mine, BinaryLayer) and isinstance(theirs, BinaryLayer) and theirs.bias is not None:
                    mine.ensure_bias()
                if isinstance(mine, BinaryActivation) and isinstance(theirs, BinaryActivation):
                    mine.fitted = theirs.fitted
                for key, value in [*theirs.named_parameters(recurse=False), *theirs.named_buffers(recurse=False)]:
                    getattr(mine, key).data = value.detach().clone()
            for values in (self.scale, None if self.gate is None else self.gate.theta):
                if values is not None and len(values) > 1:
                    values[k] = values[k % count]

    def _inputs(self, aggregate: Tensor, own: Sequence[Tensor | Rows]) -> list[Tensor]:
        if self.gate is None:
            return [aggregate] * len(self.bodies)
        made: list[Tensor] = self.gate(aggregate, [_batch(h) for h in own])
        return made

    def _run_chosen(
        self, shares: Tensor, aggregate: Tensor, own: Sequence[Tensor | Rows]
    ) -> Tensor | tuple[Tensor | Rows, ...]:
        gather = partial(_take, aggregate) if self.gate is None else self.gate.gather(aggregate, own)
        bodies = [*self.bodies]
        total, rows = run_chosen(bodies, gather, self._weights(shares), shares != 0, hands_on=self._handed())
        return (total, *rows) if self.hands_on else total

    def _train_chosen(
        self, shares: Tensor, aggregate: Tensor, own: Sequence[Tensor | Rows]
    ) -> Tensor | tuple[Tensor, ...]:
        gate, values = self.gate, [_batch(h) for h in own]

        def gather(k: int, images: Tensor) -> Tensor:
            x = some(aggregate, images)
            return x if gate is None else gate.mix(k, x, some(values[k], images))

        return train_chosen([*self.bodies], gather, self._weights(shares), shares != 0, hands_on=self._handed())

    def _handed(self) -> int:
        """Return how many outputs are handed on: the copies of a branch share one."""
        return self.router.executed if self.hands_on and self.router is not None else 0

    def extra_repr(self) -> str:
        """Name the layers that each branch copies."""
        return f"copies of {', '.join(self.origin.values())}"


def mean_features(aggregate: Tensor) -> Tensor:
    """Map ``(n, c, ...)`` to what a router looks at, ``(n, c)``."""
    return aggregate.flatten(2).mean(2) if aggregate.dim() > 2 else aggregate


def branch_groups(net: nn.Module) -> list[tuple[str, Branches]]:
    """Return every `Branches` of ``net`` with its module path, each once."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, Branches)]


def routed_groups(net: nn.Module) -> list[Branches]:
    """Return the `Branches` of ``net`` that have a router."""
    return [group for _, group in branch_groups(net) if group.router is not None]


@contextlib.contextmanager
def sharing(net: nn.Module) -> Iterator[None]:
    """Run the first K branches of every routed group for all images while open."""
    groups = [group for group in routed_groups(net) if not group.shared]
    for group in groups:
        group.shared = True
    try:
        yield
    finally:
        for group in groups:
            group.shared = False


def _batch(own: Tensor | Rows) -> Tensor:
    return own if isinstance(own, Tensor) else torch.stack(own)


def _take(x: Tensor, _: int, images: Sequence[int]) -> Tensor:
    return take(x, images)
