"""Gemma 3: an image is one tile; with pan and scan, its crops are tiles of their own."""

from __future__ import annotations

import math
from typing import Any

from visionzip_ext.integrations.transformers.families.grouped_like import GroupedAdapter
from visionzip_ext.integrations.transformers.processors.checks import check_size, check_token
from visionzip_ext.integrations.transformers.processors.placeholders import TokensOfTile


class TokensOfSequence(TokensOfTile):
    """Writes the sequence of an image's tokens anew, which the processor's constructor makes of their number."""

    def write(self, processor: Any, tokens: int) -> None:
        """See `TokensOfTile`."""
        super().write(processor, tokens)
        words = processor.tokenizer
        image = f"{words.boi_token}{words.image_token * tokens}{words.eoi_token}"
        processor.full_image_sequence = f"\n\n{image}\n\n"


class Gemma3Adapter(GroupedAdapter):
    """`Gemma3ForConditionalGeneration` and `Gemma3Model`: the tokens that average pooling makes are zipped."""

    processor_class = "Gemma3Processor"
    change = TokensOfSequence
    # The first module of the projector that sees tokens: pooling is part of it.
    projector = "multi_modal_projector.mm_soft_emb_norm"

    @property
    def side(self) -> int:
        """See `GroupedAdapter`."""
        return self.tower.patches // math.isqrt(self.base_model.config.mm_tokens_per_image)

    def check_processor(self, processor: Any) -> None:
        """See `GroupedAdapter`."""
        config = self.base_model.config
        check_size(processor, config.vision_config)
        # The processor's own image token is the one that a prompt is written with, which begins an image.
        check_token(processor.tokenizer, config, "image")
