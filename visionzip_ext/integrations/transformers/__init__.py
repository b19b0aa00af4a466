"""VisionZip for the models of Hugging Face transformers (4.57 and 5.x).

api.py               what users call: compress, restore, last_zip, mark_tuned, supported_models
released.py          visionzip(model, ...): the released package's call
encoders.py          VisionZipEncoder: the same for bare encoders and for the original LLaVA's vision towers
dual_encoder.py      VisionZipDualEncoder: for a pair of encoders
original_llava.py    models of the original LLaVA repositories
registry.py          which families of models are supported, one row each
families/            one file a family
adapter.py           what a family's file fills in
settings.py          what compress was asked for, and its form in the model's config
sequence_positions.py  positions="kept", for models that count tokens
image_features.py    puts the features where the model looks for them
towers/              vision towers that hand out the queries and keys of their select layer
processors/          make a processor write as many placeholders as there are visual tokens
weak_link.py         how model, adapter and processor know of each other

What is left is the same for every engine: budgets, tiles, decisions, in visionzip_ext/tokens.
"""

from visionzip_ext.integrations.transformers.api import (
    compress,
    compress_as_configured,
    last_zip,
    mark_tuned,
    restore,
    supported_models,
)
from visionzip_ext.integrations.transformers.dual_encoder import VisionZipDualEncoder, ZippedPairs
from visionzip_ext.integrations.transformers.encoders import VisionZipEncoder, ZippedImages
from visionzip_ext.integrations.transformers.released import visionzip
from visionzip_ext.tokens.decision import ZipDecision

__all__ = [
    "VisionZipDualEncoder",
    "VisionZipEncoder",
    "ZipDecision",
    "ZippedImages",
    "ZippedPairs",
    "compress",
    "compress_as_configured",
    "last_zip",
    "mark_tuned",
    "restore",
    "supported_models",
    "visionzip",
]
