"""VisionZip for the models of Hugging Face transformers (4.57 and 5.x).

api.py                    what users call: compress, restore, last_zip, supported_models
encoders.py               VisionZipEncoder: the same for bare encoders and for the original LLaVA's vision towers
dual_encoder.py           VisionZipDualEncoder: for a pair of encoders
released.py               visionzip(model, ...): the released package's call
registry.py               which model classes are supported, one row each
llava.py                  a family is one such file; also llava_next.py, llava_onevision.py, video_llava.py
adapter.py                what every family's file fills in
zip_tower.py              a vision tower that hands out the queries and keys of its select layer
kinds.py                    which vision models are supported, one row each
attention_recorder.py       takes them out of attention, whatever its implementation
layer_stack.py              runs a tower only as far as the select layer
shapes.py                   takes apart images of different shapes that went through a tower together
tile_zip.py               zips the features of tiles, each to its budget
tiled_images.py           how a large image becomes tiles, and zipped tiles a sequence
image_features.py         puts the features where the model looks for them
placeholders.py           makes the processor write as many placeholders, by its own settings
counted_placeholders.py     or by counting them for each image and video
processor_checks.py       whether a processor belongs to a model
weak_link.py              how model and processor know of each other
budget.py                 how many tokens to keep and to merge
"""

from visionzip_ext.integrations.transformers.api import (
    compress,
    compress_as_configured,
    last_zip,
    restore,
    supported_models,
)
from visionzip_ext.integrations.transformers.dual_encoder import VisionZipDualEncoder, ZippedPairs
from visionzip_ext.integrations.transformers.encoders import VisionZipEncoder, ZippedImages
from visionzip_ext.integrations.transformers.released import visionzip
from visionzip_ext.tokens.zip_tiles import ZipDecision

__all__ = [
    "VisionZipDualEncoder",
    "VisionZipEncoder",
    "ZipDecision",
    "ZippedImages",
    "ZippedPairs",
    "compress",
    "compress_as_configured",
    "last_zip",
    "restore",
    "supported_models",
    "visionzip",
]
