"""Mixture-of-experts feed-forward: group-limited sigmoid routing, grouped expert products.

Which path computes the experts: on CUDA in bfloat16, where torch offers a grouped matrix product
(``torch.nn.functional.grouped_mm``), one launch a projection over tokens sorted by expert; on the CPU, and in
other dtypes, a loop over the experts that have tokens, each gathering its own rows, which then stay in the
cache until they are added up. Both sort the tokens the same way and add a token's experts in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from tide_core.models.gating import apply_gate
from tide_core.models.layers import GatedFeedForward


@dataclass(frozen=True)
class RoutingRule:
    """How experts are chosen: the ``kept_groups`` best of ``groups``, then ``chosen`` experts within them.

    Attributes:
        is_softmax: experts are scored by a softmax over all of them, without a bias of the choice
            (LLaDA-MoE), instead of each by a sigmoid, with one (LLaDA2).
    """

    experts: int
    groups: int
    kept_groups: int
    chosen: int
    scale: float
    is_normalised: bool
    is_softmax: bool = False


class Router(nn.Module):
    """Scores experts in float32 and picks a few for every token (LLaDA2.0, arXiv 2512.15745; LLaDA-MoE, arXiv
    2509.24389).
    """

    expert_bias: nn.Parameter | None

    def __init__(self, hidden_size: int, rule: RoutingRule) -> None:
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.empty(rule.experts, hidden_size))
        # Moved by load balancing, never by a gradient; kept in float32 whatever the model's dtype.
        bias = None if rule.is_softmax else nn.Parameter(torch.empty(rule.experts), requires_grad=False)
        self.register_parameter("expert_bias", bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        # Called by ``to``, ``half``, ``to_empty`` and their like.
        kept = None if self.expert_bias is None else self.expert_bias.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.expert_bias is not None and kept is not None and self.expert_bias.dtype != torch.float32:
            self.expert_bias.data = kept.to(self.expert_bias.device)
        return self

    def forward(
        self, tokens: Float[Tensor, "token hidden"]
    ) -> tuple[Float[Tensor, "token chosen"], Int[Tensor, "token chosen"]]:
        """Weights and indices of the chosen experts.

        ``s = sigmoid(W h)``, or ``softmax(W h)`` and no bias; the choice goes by ``s + expert_bias``, a
        group's score being the sum of its two largest; the weights are the un-biased ``s`` over their sum
        (+1e-20), times the scale.
        """
        wide = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = functional.linear(tokens.to(wide), self.weight.to(wide))
        scores = logits.softmax(-1) if self.rule.is_softmax else logits.sigmoid()
        biased = scores.detach() if self.expert_bias is None else scores.detach() + self.expert_bias
        experts = self._choose(biased)
        weights = scores.gather(1, experts)
        if self.rule.is_normalised and self.rule.chosen > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.rule.scale, experts

    def _choose(self, scores: Float[Tensor, "token expert"]) -> Int[Tensor, "token chosen"]:
        rule = self.rule
        grouped = torch.unflatten(scores, 1, (rule.groups, -1))
        group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = group_scores.topk(rule.kept_groups, dim=-1, sorted=False).indices
        is_kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, kept, True)
        limited = grouped.masked_fill(~is_kept[..., None], float("-inf")).flatten(1)
        chosen: Tensor = limited.topk(rule.chosen, dim=-1, sorted=False).indices
        return chosen


class Experts(nn.Module):
    """All routed experts of a layer, stacked: ``gate_up`` [expert, 2 width, hidden], ``down`` [expert,
    hidden, width].
    """

    def __init__(self, experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.count = experts
        self.width = width
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(experts, hidden_size, width))

    def forward(
        self,
        tokens: Float[Tensor, "token hidden"],
        weights: Float[Tensor, "token chosen"],
        experts: Int[Tensor, "token chosen"],
    ) -> Float[Tensor, "token hidden"]:
        """Weighted sum of each token's chosen experts, accumulated in the weights' precision."""
        flat = experts.flatten()
        # Sorted by expert, and within one by token.
        order = flat.argsort(stable=True)
        # Not bincount, whose shape depends on its input and would break a compiled graph.
        counts = flat.new_zeros(self.count).scatter_add_(0, flat, torch.ones_like(flat))
        mix = self.mix_grouped if uses_grouped_product(tokens) else self.mix_one_by_one
        return mix(tokens, weights.flatten()[order], order // experts.shape[1], counts)

    def mix_one_by_one(
        self,
        tokens: Float[Tensor, "token hidden"],
        weights: Float[Tensor, " row"],
        sources: Int[Tensor, " row"],
        counts: Int[Tensor, " expert"],
    ) -> Float[Tensor, "token hidden"]:
        """One expert after the other, each on its own rows, so that they stay in the cache.

        Args:
            tokens: as in :meth:`forward`.
            weights: of each pair of a token and an expert, sorted by expert.
            sources: the pair's token.
            counts: pairs of each expert.
        """
        sizes = counts.tolist()
        used = [expert for expert, size in enumerate(sizes) if size]
        kept = [sizes[expert] for expert in used]
        mixed = tokens.new_zeros(tokens.shape, dtype=torch.promote_types(tokens.dtype, weights.dtype))
        for rows, share, (gate_up, down) in zip(
            sources.split_with_sizes(kept),
            weights.split_with_sizes(kept),
            self.matrices(used, tokens.dtype),
            strict=True,
        ):
            active = apply_gate(functional.linear(tokens.index_select(0, rows), gate_up))
            # Expert by expert: a token's sum has a fixed order.
            mixed.index_add_(0, rows, functional.linear(active, down) * share[:, None])
        return mixed.to(tokens.dtype)

    def mix_grouped(
        self,
        tokens: Float[Tensor, "token hidden"],
        weights: Float[Tensor, " row"],
        sources: Int[Tensor, " row"],
        counts: Int[Tensor, " expert"],
    ) -> Float[Tensor, "token hidden"]:
        """Two grouped matrix products over all experts at once; arguments as in :meth:`mix_one_by_one`."""
        ends = counts.cumsum(0).to(torch.int32)
        gate_up, down = self.stacks(tokens.dtype)
        active = apply_gate(functional.grouped_mm(tokens[sources], gate_up.transpose(1, 2), offs=ends))
        outputs = functional.grouped_mm(active, down.transpose(1, 2), offs=ends) * weights[:, None]
        # A stable sort brings a token's experts together in their order: summed as in the loop.
        per_token = outputs[sources.argsort(stable=True)].view(len(tokens), -1, tokens.shape[-1])
        mixed: Tensor = per_token.sum(1)
        return mixed.to(tokens.dtype)

    def matrices(self, used: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """``gate_up`` and ``down`` of the experts in ``used``, one after the other."""
        # Taken apart at once: an index into the stack would have a gradient of the whole stack's size, each
        # time. Under autocast the products choose the dtype themselves.
        gate_ups, downs = self.gate_up.unbind(), self.down.unbind()
        return ((gate_ups[expert], downs[expert]) for expert in used)

    def stacks(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``gate_up`` and ``down`` of all experts in ``dtype``."""
        return self.gate_up.to(dtype), self.down.to(dtype)


def uses_grouped_product(rows: Float[Tensor, "row hidden"]) -> bool:
    """Whether the grouped matrix product runs for these rows: on CUDA in bfloat16.

    In other dtypes torch 2.13 has it eagerly at best, and refuses it in a compiled graph.
    """
    return rows.device.type == "cuda" and rows.dtype == torch.bfloat16


class MixtureFeedForward(nn.Module):
    """Routed experts plus the shared ones that see every token, ``shared_width`` wide together."""

    def __init__(self, hidden_size: int, width: int, shared_width: int, rule: RoutingRule) -> None:
        super().__init__()
        self.router = Router(hidden_size, rule)
        self.experts = Experts(rule.experts, hidden_size, width)
        self.shared = GatedFeedForward(hidden_size, shared_width) if shared_width else None

    def forward(self, hidden: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "batch seq hidden"]:
        tokens = hidden.flatten(0, 1)
        weights, experts = self.router(tokens)
        routed: Tensor = self.experts(tokens, weights, experts).view_as(hidden)
        if self.shared is not None:
            routed = routed + self.shared(hidden)
        return routed

    def checkpoint_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of the weights by LLaDA2's names: ``gate``, ``experts.E.*``, ``shared_experts.*``."""
        shared = self.shared.checkpoint_tensors(f"{prefix}shared_experts.") if self.shared is not None else {}
        return {**self.router_tensors(prefix), **self.expert_tensors(prefix), **shared}

    def router_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of the router's weights: ``gate.weight``, and ``gate.expert_bias`` where there is one."""
        bias = self.router.expert_bias
        named = {f"{prefix}gate.weight": self.router.weight, f"{prefix}gate.expert_bias": bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def expert_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of each expert's weights: ``experts.E.{gate,up,down}_proj.weight``."""
        tensors: dict[str, Tensor] = {}
        width = self.experts.width
        for expert in range(self.experts.count):
            name = f"{prefix}experts.{expert}."
            tensors[f"{name}gate_proj.weight"] = self.experts.gate_up[expert, :width]
            tensors[f"{name}up_proj.weight"] = self.experts.gate_up[expert, width:]
            tensors[f"{name}down_proj.weight"] = self.experts.down[expert]
        return tensors

    def stacked_tensors(self, prefix: str) -> dict[str, Tensor]:
        """Views of all experts' weights, stacked: ``experts.{gate,up,down}_proj``."""
        width = self.experts.width
        return {
            f"{prefix}experts.gate_proj": self.experts.gate_up[:, :width],
            f"{prefix}experts.up_proj": self.experts.gate_up[:, width:],
            f"{prefix}experts.down_proj": self.experts.down,
        }
