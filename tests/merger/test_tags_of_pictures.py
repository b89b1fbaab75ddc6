"""The tag that a picture's parameters hold gives the same block weights when it is read again."""

import pytest

from atelier_tests.helpers.lora_stub import stub_lora
from lora_atelier.evaluator.infotext import lora_tag
from lora_atelier.merger.lora.dialects import parse_weights
from lora_atelier.merger.lora.prompt import parse_prompt, weights_of


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ALL",
        "NIN",
        "1, 0 ,0.5 " * 5 + "1,1",
        "NIN MID=0.5 NOT IN04-05=0.25",
        "AOUT A=0.5",
        "ROUT seed=3",
        "lbw=NIN:x=0.5",
        "NIN:lbwe=IN05-OUT05:attn:0,:proj:0.5:step=5-10",
        "lbwe=ATTNDEEPOFF",
        "start=3",
        "in=0:mid=1:out=0.5",
        "%default=1, in1-4=0.5, out=0",
        "ZYX=NIN",
        "te=0.5 NIN",
    ],
)
def test_the_tag_of_a_picture_is_read_as_it_was(text):
    tag = lora_tag(stub_lora("my.safetensors", strength_model=0.8, strength_clip=0.5, block_weights=text))
    left, (found,) = parse_prompt(f"a cat {tag}")
    assert (left, found.name, found.strength_clip, found.strength_model) == ("a cat", "my", 0.5, 0.8)
    weights, warning = weights_of(found, lambda name: True)
    assert not warning
    assert parse_weights(weights) == parse_weights(text)
