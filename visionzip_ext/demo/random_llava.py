"""A LLaVA-1.5 for machines without a checkpoint: the real vision tower, random weights, a small language model."""

from __future__ import annotations

import importlib

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

DESCRIPTION = (
    "LLaVA-1.5's vision tower (CLIP ViT-L/14-336, 24 layers) and a small language model (8 layers x 1024), "
    "both with RANDOM WEIGHTS: times, tokens and memory are real; the text means nothing, and the attention "
    "that tokens are chosen by is nearly uniform. --model shows a real one."
)
CAUTION = "Random weights: with nearly uniform attention, chance decides what is kept. A real checkpoint: --model"

# LLaVA-1.5's own tower: openai/clip-vit-large-patch14-336
_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
# Large enough for the prefill of 576 visual tokens to be felt on a CPU, small enough for two minutes.
_LANGUAGE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
}
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_WORDS = """
a about above across after against all along and animal another any are around as at away back be because before
behind below between big bird black blue book both box bright brown building but by can car cat chair child city
clear close cloud coffee cold colour dark day deep dog door down each early earth evening every eye face far field
fire fish floor flower food for forest from front full garden glass good grass great green grey ground hair hand has
head heart here high hill home horse house how ice in inside into is it its just kind lake large last leaf left
light like line little long look made many may metal moon more morning mountain much near new next night no not now
of old on one only open or orange other our out over paper part people picture place plant quiet rain red right
river road rock room round same sand sea shadow sharp she side sign silver sky small snow so some something sound
space star stone street summer sun table tall than that the their then there these thing this through time to top
town tree two under up very wall warm was water we white wide wild wind window winter with wood word world yellow
young
"""
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def random_llava(question: str, dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The model and a processor whose vocabulary has a few hundred words and those of the question."""
    tokenizer = _tokenizer(question)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(
            **_LANGUAGE,
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = None  # random weights do not know when to stop, so both answers are as long
    processor = LlavaProcessor(
        image_processor=_image_processor(),
        tokenizer=tokenizer,
        patch_size=_VISION["patch_size"],
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=_CHAT_TEMPLATE,
    )
    return model, processor


def _tokenizer(question: str) -> PreTrainedTokenizerFast:
    vocabulary = dict.fromkeys([*_SPECIAL, "USER:", "ASSISTANT:", *_WORDS.split(), *question.split()])
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_input_names=["input_ids", "attention_mask"],
    )


def _image_processor():
    """CLIP's image processor on Pillow, under the name that this version of transformers gives it."""
    size = _VISION["image_size"]
    for module, name in (
        ("image_processing_pil_clip", "CLIPImageProcessorPil"),
        ("image_processing_clip", "CLIPImageProcessor"),
    ):
        try:
            cls = getattr(importlib.import_module(f"transformers.models.clip.{module}"), name)
        except ImportError:
            continue
        return cls(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    raise ImportError("this version of transformers has no CLIP image processor for Pillow")
