"""LLaDA2 as dFactory trains it: the same model, the experts of a layer stacked in three tensors.

In: a folder that dFactory's trainer wrote. Out: LLaDA2's model. dFactory's own code always
normalises the experts' weights; here ``norm_topk_prob`` decides, which the published configurations set to
true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tide_core.contracts.families import LLADA2_VEOMNI
from tide_core.models.layers import GatedFeedForward
from tide_core.models.mixture import MixtureFeedForward
from tide_core.models.teachers.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModel


@dataclass(frozen=True, kw_only=True)
class LLaDA2VeomniConfig(LLaDA2MoeConfig):
    """Configuration of LLaDA2 in dFactory's layout; the fields are LLaDA2's."""

    own_type: ClassVar[str] = LLADA2_VEOMNI.model_type

    model_type: str = LLADA2_VEOMNI.model_type


class LLaDA2VeomniModel(LLaDA2MoeModel):
    """The model; ``from_pretrained(folder)`` loads dFactory's layout."""

    config_type = LLaDA2VeomniConfig

    def feed_forward_tensors(
        self, feed_forward: GatedFeedForward | MixtureFeedForward, prefix: str
    ) -> dict[str, Tensor]:
        if isinstance(feed_forward, GatedFeedForward):
            return feed_forward.checkpoint_tensors(prefix)
        shared = feed_forward.shared
        return {
            **feed_forward.router_tensors(prefix),
            **feed_forward.stacked_tensors(prefix),
            **(shared.checkpoint_tensors(f"{prefix}shared_experts.") if shared is not None else {}),
        }
