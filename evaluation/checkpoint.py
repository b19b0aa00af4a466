"""The bench's model as an ordinary checkpoint folder of transformers: LLaVA with a DINOv2 tower and few words."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from evaluation import encoder
from evaluation.questions import WORDS
from evaluation.scenes import SIZE

PATCH = 14
IMAGE_TOKENS = (SIZE // PATCH) ** 2
VOCABULARY = {word: number for number, word in enumerate(["<pad>", "<bos>", "<image>", *WORDS])}

_TOWER = "vision_tower"


def build_processor() -> LlavaProcessor:
    """One token a word; an image is `IMAGE_TOKENS` placeholders."""
    tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", VOCABULARY["<bos>"])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        pad_token="<pad>",
        padding_side="left",
        additional_special_tokens=["<image>"],
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size=SIZE,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A trained encoder under a language model of 0.6 million parameters that knows nothing yet.

    Raises:
        MissingPackageError: there is no encoder.
    """
    torch.manual_seed(seed)
    words = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=VOCABULARY["<bos>"],
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=encoder.config(SIZE),
        text_config=words,
        image_token_index=VOCABULARY["<image>"],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = encoder.load(SIZE)
    return model


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Everything but the encoder, whose package has it."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: x.contiguous() for name, x in model.state_dict().items() if f"{_TOWER}." not in name}
    if own.pop("lm_head.weight", None) is None:
        raise RuntimeError("the model has no lm_head")  # tied: the embedding is saved
    save_file(own, folder / "without_encoder.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A kept model with its encoder put in, and its processor.

    Raises:
        MissingPackageError: there is no encoder.
    """
    model = build_model(seed=0)
    missing, unexpected = model.load_state_dict(load_file(folder / "without_encoder.safetensors"), strict=False)
    if unexpected or any(_TOWER not in name and name != "lm_head.weight" for name in missing):
        raise RuntimeError(f"{folder} does not fit the bench's model: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.eval(), build_processor()
