"""PaliGemma and PaliGemma 2: one image, one tile, seen by all of the prompt that comes before the answer."""

from __future__ import annotations

from typing import Any

from visionzip_ext.integrations.transformers.families.grouped_like import GroupedAdapter
from visionzip_ext.integrations.transformers.processors.checks import check_size, check_token


class PaliGemmaAdapter(GroupedAdapter):
    """`PaliGemmaForConditionalGeneration` and `PaliGemmaModel`: patches are zipped before the projector."""

    processor_class = "PaliGemmaProcessor"
    one_tile = True

    @property
    def side(self) -> int:
        """See `GroupedAdapter`: a token is a patch."""
        return 1

    def check_processor(self, processor: Any) -> None:
        """See `GroupedAdapter`."""
        config = self.base_model.config
        check_size(processor, config.vision_config)
        check_token(processor, config, "image")
