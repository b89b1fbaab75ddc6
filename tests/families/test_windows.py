"""Captions of more than 75 tokens, weights on hidden states, and a clip skip for each encoder."""

from typing import Any

import pytest
import torch

from atelier_tests.helpers.full_size import TINY_SDXL, write_tiny_checkpoint
from lora_atelier.core.errors import InputError
from lora_atelier.families._spec import Components, Family, TextOptions, get_family
from lora_atelier.families._windows import (
    SpecialTokens,
    fixed_windows,
    same_length,
    token_windows,
    weighted_states,
    without_inner_marks,
)

SPECIAL = SpecialTokens(start=1, end=2, pad=0, window_tokens=6)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text if letter != " "]


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Components:
    path = write_tiny_checkpoint(tmp_path_factory.mktemp("xl") / "xl.safetensors", family="sdxl", sizes=TINY_SDXL)
    return get_family("sdxl").load(path, parts=("text_encoder",))


def ids(windows: list[list[tuple[int, float]]]) -> list[list[int]]:
    return [[token for token, _ in window] for window in windows]


def test_windows_by_hand() -> None:
    a, b, c, d, e = letters("abcde")
    text = [("abcde", 1.0)]
    big = [("abcdefghij", 1.0)]
    assert [len(window) for window in token_windows(big, letters, SPECIAL)] == [6, 6, 6]
    assert ids(token_windows(big, letters, SPECIAL))[0] == [1, a, b, c, d, 2]
    assert ids(token_windows(big, letters, SPECIAL))[2] == [1, *letters("ij"), 2, 0, 0]
    assert len(token_windows(big, letters, SPECIAL, max_tokens=8)) == 2
    # kohya's: always as many as asked for, the empty ones framed like the others
    assert ids(fixed_windows(text, letters, SPECIAL, max_tokens=12)) == [
        [1, a, b, c, d, 2],
        [1, e, 2, 0, 0, 0],
        [1, 2, 0, 0, 0, 0],
    ]
    assert ids(fixed_windows([("abcd", 1.0)], letters, SPECIAL, max_tokens=8)) == [
        [1, a, b, c, d, 2],
        [1, 2, 0, 0, 0, 0],
    ]
    weights = fixed_windows([("ab", 1.0), ("c", 1.5)], letters, SPECIAL, max_tokens=4)[0]
    assert [weight for _, weight in weights] == [1.0, 1.0, 1.0, 1.5, 1.0, 1.0]


def test_joining_by_hand() -> None:
    hidden = torch.arange(12.0).reshape(2, 6, 1)
    assert without_inner_marks(hidden).flatten().tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]
    one, two = torch.ones(2, 3), torch.full((3, 3), 2.0)
    assert same_length([one, two]).shape == (2, 6, 3)
    assert torch.equal(same_length([one]), one[None])


def test_weights_keep_the_mean() -> None:
    hidden = torch.tensor([[1.0, 3.0], [2.0, -1.0], [4.0, 3.0]])
    got = weighted_states(hidden, torch.tensor([1.0, 2.0, 0.5]))
    plain = torch.tensor([[1.0, 3.0], [4.0, -2.0], [2.0, 1.5]])
    torch.testing.assert_close(got, plain * (12.0 / 9.5))
    assert got.mean().item() == pytest.approx(hidden.mean().item())
    balanced = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    torch.testing.assert_close(
        weighted_states(balanced, torch.tensor([2.0, 1.0])), balanced * torch.tensor([[2.0], [1.0]])
    )


def test_a_repeated_set_of_keys_is_answered_as_one() -> None:
    draw = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 4, 8, generator=draw), torch.randn(1, 7, 8, generator=draw)
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, keys.repeat(1, 3, 1), keys.repeat(1, 3, 1)), attend(query, keys, keys))


LONG = "lumo kest, " * 20  # many more than 75 tokens of the tests' byte tokenizer


def test_short_captions_are_as_before(tiny: Components, family: Family) -> None:
    captions = ["red circle", ""]
    plain = family.encode_text(tiny, captions, clip_skip=2)
    more = TextOptions(clip_skip=2, max_tokens=225, weighted=True)
    assert torch.equal(family.encode_text(tiny, captions, options=more).hidden, plain.hidden)
    assert torch.equal(family.encode_text(tiny, captions, options=TextOptions(clip_skip=2)).hidden, plain.hidden)


@pytest.mark.parametrize("max_tokens", [75, 150, 225])
def test_lengths(tiny: Components, family: Family, max_tokens: int) -> None:
    long, short = (
        family.encode_text(tiny, [text], options=TextOptions(max_tokens=max_tokens)).hidden for text in (LONG, "red")
    )
    assert long.shape[1] == 77 * (max_tokens // 75)
    assert short.shape[1] == 77
    both = family.encode_text(tiny, [LONG, "red"], options=TextOptions(max_tokens=max_tokens)).hidden
    torch.testing.assert_close(both[:1], long)
    torch.testing.assert_close(both[1:, :77], short)
    kohya = TextOptions(max_tokens=max_tokens, long_captions="kohya")
    assert family.encode_text(tiny, [LONG, "red"], options=kohya).hidden.shape[1] == max_tokens + 2


def test_windows_of_a_text_are_encoded_by_themselves(tiny: Components, family: Family) -> None:
    """Each window is what the encoder says of its 75 tokens alone; kohya's rule drops the inner marks."""
    letters = [chr(ord("a") + number % 7) for number in range(100)]
    whole, first, second = (" ".join(part) for part in (letters, letters[:75], letters[75:]))
    options = TextOptions(max_tokens=150)
    state = family.encode_text(tiny, [whole], options=options).hidden
    parts = [family.encode_text(tiny, [text]).hidden for text in (first, second)]
    torch.testing.assert_close(state, torch.cat(parts, dim=1))
    kohya = family.encode_text(tiny, [whole], options=TextOptions(max_tokens=150, long_captions="kohya")).hidden
    torch.testing.assert_close(kohya, torch.cat((parts[0][:, :76], parts[1][:, 1:]), dim=1))


def test_both_encoders_of_sdxl(xl: Components) -> None:
    sdxl = get_family("sdxl")
    letters = " ".join(chr(ord("a") + number % 7) for number in range(200))
    state = sdxl.encode_text(xl, [letters, "a b"], options=TextOptions(max_tokens=225))
    first = sdxl.encode_text(xl, [" ".join(letters.split()[:75]), "a b"])
    assert state.hidden.shape == (2, 231, 112)
    torch.testing.assert_close(state.hidden[:, :77], first.hidden)
    assert state.pooled is not None
    assert first.pooled is not None
    torch.testing.assert_close(state.pooled, first.pooled)  # of the first window


def test_weights_reach_the_hidden_states_of_their_tokens(tiny: Components, family: Family) -> None:
    options = TextOptions(weighted=True)
    plain = family.encode_text(tiny, ["red hat"], options=options).hidden[0]
    got = family.encode_text(tiny, ["red (hat:1.5)"], options=options).hidden[0]
    tokens = len(tiny.tokenizers[0]("red", add_special_tokens=False)["input_ids"])
    more = len(tiny.tokenizers[0]("hat", add_special_tokens=False)["input_ids"])
    weights = torch.ones(77)
    weights[1 + tokens : 1 + tokens + more] = 1.5
    torch.testing.assert_close(got, weighted_states(plain, weights))
    literal = family.encode_text(tiny, [r"red \(hat\)"], options=options).hidden
    torch.testing.assert_close(literal, family.encode_text(tiny, ["red (hat)"]).hidden)


def test_a_clip_skip_for_each_encoder(xl: Components) -> None:
    sdxl: Any = get_family("sdxl")
    both = sdxl.encode_text(xl, ["star"], options=TextOptions(clip_skip=2, clip_skip_2=3)).hidden
    second, third = (sdxl.encode_text(xl, ["star"], clip_skip=skip).hidden for skip in (2, 3))
    width = 64
    assert torch.equal(both[..., :width], second[..., :width])
    assert torch.equal(both[..., width:], third[..., width:])
    same = sdxl.encode_text(xl, ["star"], options=TextOptions(clip_skip=3)).hidden
    assert torch.equal(same, third)
    with pytest.raises(InputError, match="allowed is 1 to 3"):
        sdxl.encode_text(xl, ["star"], options=TextOptions(clip_skip_2=4))


def test_gradients_go_through_windows_and_weights(tiny: Components, family: Family) -> None:
    model = tiny.text_encoders[0]
    weight = next(iter(model.parameters()))
    weight.requires_grad_(True)
    options = TextOptions(max_tokens=150, weighted=True)
    family.encode_text(tiny, [LONG, "(red:1.3)"], options=options).hidden.square().sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.abs().sum() > 0)
    weight.grad = None
    weight.requires_grad_(False)


def test_a_key_for_caches() -> None:
    keys = {TextOptions().key(), TextOptions(max_tokens=150).key(), TextOptions(weighted=True).key()}
    assert len(keys) == 3
