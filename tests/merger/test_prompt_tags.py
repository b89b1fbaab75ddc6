"""LoRA tags in prompts: every form that people share, what is left of the prompt, and names that may not be used."""

import pytest

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.merger.lora.dialects import parse_weights
from lora_atelier.merger.lora.presets import load_presets
from lora_atelier.merger.lora.prompt import find_lora, parse_prompt, weights_of

PRESETS = load_presets()


def read(text, **kwargs):
    """(name, text encoder, UNet, block weights) of the one tag of a text."""
    _, (tag,) = parse_prompt(text)
    weights, warning = weights_of(tag, PRESETS.__contains__, **kwargs)
    assert not warning
    return tag.name, tag.strength_clip, tag.strength_model, weights


@pytest.mark.parametrize(
    ("tag", "read_as"),
    [
        ("<lora:m4_carbine:0.8:NCNF>", ("m4_carbine", 0.8, 0.8, "NCNF")),
        ("<lora:a>", ("a", 1.0, 1.0, "")),
        ("<lyco:a:0.5>", ("a", 0.5, 0.5, "")),
        ("<LoRA:a:.5>", ("a", 0.5, 0.5, "")),
        ("<lora:a:0.5:0.7>", ("a", 0.5, 0.7, "")),
        ("<lora:a:0.5:0.7:NIN>", ("a", 0.5, 0.7, "NIN")),
        ("<lora:a:-1:0>", ("a", -1.0, 0.0, "")),
        ("<lora:a:te=0.3:unet=0.9>", ("a", 0.3, 0.9, "")),
        ("<lora:a:0.8:te=0.3>", ("a", 0.3, 0.8, "")),
        ("<lora:a:0.8:unet=0.3>", ("a", 0.8, 0.3, "")),
        ("<lora:a:unet=0.9>", ("a", 0.9, 0.9, "")),
        ("<lora:a:te=0.4>", ("a", 0.4, 0.4, "")),
        ("<lora:a:1:lbw=OUTALL>", ("a", 1.0, 1.0, "lbw=OUTALL")),
        ("<lora:a:1:w=OUTALL>", ("a", 1.0, 1.0, "w=OUTALL")),
        ("<lora:a:lbw=NIN:0.5>", ("a", 1.0, 1.0, "lbw=NIN:x=0.5")),
        ("<lora:a:1:1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1>", ("a", 1.0, 1.0, "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1")),
        ("<lora:a:1:1:AOUT:x=0.5>", ("a", 1.0, 1.0, "AOUT:x=0.5")),
        ("<lora:a:1:1:NIN:ATTNDEEPOFF>", ("a", 1.0, 1.0, "NIN:lbwe=ATTNDEEPOFF")),
        ("<lora:a:1:lbw=ALL:lbwe=IN05-OUT05:attn:0>", ("a", 1.0, 1.0, "lbw=ALL:lbwe=IN05-OUT05:attn:0")),
        ("<lora:a:1:start=3:stop=9>", ("a", 1.0, 1.0, "start=3:stop=9")),
        ("<lora:a:1:NIN:step=5-10>", ("a", 1.0, 1.0, "NIN:step=5-10")),
        ("<lora:a:1.0:in=0:mid=1:out=0>", ("a", 1.0, 1.0, "in=0:mid=1:out=0")),
        ("<lora:a:1:XYZ>", ("a", 1.0, 1.0, "XYZ")),
        ("<lora: a b (v2) : 0.5 >", ("a b (v2)", 0.5, 0.5, "")),
        ("<lora:folder/a.safetensors:1>", ("folder/a.safetensors", 1.0, 1.0, "")),
    ],
)
def test_tags(tag, read_as):
    if tag.endswith("XYZ>"):
        _, (found,) = parse_prompt(tag)
        assert weights_of(found, lambda name: name in PRESETS or name == "XYZ") == ("XYZ", "")
        return
    assert read(tag) == read_as


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("a cat, <lora:x:1>, red", "a cat, red"),
        ("<lora:x:1>, a cat", "a cat"),
        ("<lora:x:1> a cat", "a cat"),
        ("a cat <lora:x:1>", "a cat"),
        ("a cat, <lora:x:1>", "a cat,"),
        ("a <lora:x:1> cat", "a cat"),
        ("a cat<lora:x:1>, red", "a cat, red"),
        ("a cat <lora:x:1>, red", "a cat, red"),
        ("a, <lora:x:1> <lora:y:1>, b", "a, b"),
        ("a, <lora:x:1>, <lora:y:1>, b", "a, b"),
        ("one\n<lora:x:1>\ntwo", "one\n\ntwo"),
        ("a,, b <hypernet:z:1> (c:1.2)", "a,, b <hypernet:z:1> (c:1.2)"),
        ("  kept as it is,  ", "  kept as it is,  "),
        ("a < b and c > d", "a < b and c > d"),
        ("", ""),
    ],
)
def test_what_is_left_of_the_prompt(prompt, left):
    assert parse_prompt(prompt)[0] == left


def test_several_tags_keep_their_order():
    _, tags = parse_prompt("<lora:b:1> x <lyco:a:0.5> <lora:b:0.2>")
    assert [(tag.name, tag.strength_model) for tag in tags] == [("b", 1.0), ("a", 0.5), ("b", 0.2)]


def test_an_unknown_third_item_warns_and_does_not_switch_the_lora_off():
    _, (tag,) = parse_prompt("<lora:a:0.8:NOPRESET>")
    weights, warning = weights_of(tag, PRESETS.__contains__)
    assert weights == ""
    assert "NOPRESET" in warning
    assert tag.strength_model == 0.8
    _, (tag,) = parse_prompt("<lora:a:0.8:NOPRESET:step=2-4>")
    assert weights_of(tag, PRESETS.__contains__)[0] == "step=2-4"


def test_the_seed_reaches_random_letters_only():
    assert read("<lora:a:1:ROUT>", seed=5)[3] == "ROUT seed=5"
    assert parse_weights(read("<lora:a:1:ROUT:step=2-4>", seed=5)[3]).seed == 5
    assert read("<lora:a:1:lbw=ROUT seed=2>", seed=5)[3] == "lbw=ROUT seed=2"
    assert read("<lora:a:1:step=2-4>", seed=5)[3] == "step=2-4"


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:>", "names no file"),
        ("<lora::1>", "names no file"),
        ("a <lora:x:1", "not closed"),
        ("a <lora:x:1 <lora:y:1>", "not closed"),
        ("<lora:x:nan>", "not a number"),
        ("<lora:x:te=high>", "not a number"),
        ("<lora:x:unet=>", "not a number"),
        ("<lora:x:te=0.1@1,0.6@6>", "step to step"),
        ("<lora:x:1>" * 65, "65 LoRA tags"),
    ],
)
def test_malformed_tags(prompt, said):
    with pytest.raises(InputError, match=said):
        parse_prompt(prompt)


NAMES = ["a.safetensors", "chars/a b.safetensors", "chars/deep/c.safetensors", "styles/c.safetensors", "D.sft"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a", "a.safetensors"),
        ("a.safetensors", "a.safetensors"),
        ("A", "a.safetensors"),
        ("a b", "chars/a b.safetensors"),
        ("chars\\a b", "chars/a b.safetensors"),
        ("styles/c", "styles/c.safetensors"),
        ("d", "D.sft"),
    ],
)
def test_names_are_found_as_people_write_them(name, file):
    assert find_lora(name, NAMES) == file


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "C:\\x", "chars", "", "a.safetensors/..", "deep/c", "~/a", "ab"]
)
def test_a_name_is_never_a_path(name):
    with pytest.raises(UnknownNameError):
        find_lora(name, NAMES)


def test_a_name_in_two_folders_is_refused():
    with pytest.raises(InputError, match=r"chars/deep/c\.safetensors, styles/c\.safetensors"):
        find_lora("c", NAMES)
