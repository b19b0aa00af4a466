"""Where tokens that are left stand among all of them, in prompts that are written out here."""

from __future__ import annotations

import torch

from visionzip_ext.tokens.full_places import FullPlaces, pooled_places

# Two prompts, "t" is text; three runs of 9, 4 and 9 tokens, of which 3, 1 and 2 are left.
PROMPTS = ["tt###t#tt", "t##tttttt"]
PLACES = FullPlaces(torch.tensor([2, 5, 0, 3, 4, 8]), [3, 1, 2], [9, 4, 9])
POSITIONS = [[0, 1, 4, 7, 2, 11, 15, 16, 17], [0, 5, 9, 10, 11, 12, 13, 14, 15]]
AFTER = [[0, 0, 0, 0, 6, 6, 9, 9, 9], [0, 0, 7, 7, 7, 7, 7, 7, 7]]


def placeholders(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[token == "#" for token in prompt] for prompt in prompts])


def test_every_token_stands_where_it_would():
    shifts, after = PLACES.shifts(placeholders(PROMPTS))
    assert (torch.arange(9) + shifts).tolist() == POSITIONS
    assert after.tolist() == AFTER


def test_each_prompt_several_times():
    """As beam search makes it of features that were made once."""
    twice = placeholders([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]])
    shifts, after = PLACES.shifts(twice)
    assert (torch.arange(9) + shifts).tolist() == [POSITIONS[0], POSITIONS[0], POSITIONS[1], POSITIONS[1]]
    assert after[::2].tolist() == AFTER == after[1::2].tolist()


def test_no_images_at_all():
    shifts, after = FullPlaces(torch.empty(0, dtype=torch.int64), [], []).shifts(placeholders(["ttt"]))
    assert shifts.tolist() == after.tolist() == [[0, 0, 0]]


def test_patches_that_are_pooled_stand_at_their_token():
    """Also where the side is odd, and pooling rounds up or leaves the last patches out."""
    assert pooled_places(torch.arange(16), 4, 2).tolist() == [0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2
    assert pooled_places(torch.arange(25), 5, 3).view(5, 5)[2].tolist() == [3, 3, 4, 4, 5]
    assert pooled_places(torch.arange(25), 5, 2).max() == 3
