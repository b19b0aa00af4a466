"""VisionZip for the models of Hugging Face transformers (4.57 and 5.x).

api.py            what users call: compress, restore, last_zip, supported_models
registry.py       which model classes are supported, one row a family
llava.py          LLaVA-1.5, the first family: a family is one such file and one row
adapter.py        what every family's file fills in
zip_tower.py      a vision tower that answers with zipped tokens
attention_tap.py    takes one layer's queries and keys out of attention, whatever its implementation
early_exit.py       runs a tower only as far as the select layer
image_features.py puts the zipped features where the model looks for them
placeholders.py   makes the processor write as many image tokens as the model makes
budget.py         how many tokens to keep and to merge
"""

from visionzip_ext.integrations.transformers.api import compress, last_zip, restore, supported_models
from visionzip_ext.integrations.transformers.zip_tower import ZipDecision

__all__ = ["ZipDecision", "compress", "last_zip", "restore", "supported_models"]
