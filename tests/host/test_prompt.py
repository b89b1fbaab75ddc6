"""Prompt weights and windows."""

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.families._windows import SpecialTokens
from lora_atelier.nodes.host.local_prompt import encode_windows, parse_weights, prompt_windows

SPECIAL = SpecialTokens(start=1, end=2, pad=2, window_tokens=12)


def word_ids(text):
    return [100 + len(word) for word in text.split()]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red circle", [("a red circle", 1.0)]),
        ("", []),
        ("a (red) circle", [("a ", 1.0), ("red", 1.1), (" circle", 1.0)]),
        ("a (red:1.5) circle", [("a ", 1.0), ("red", 1.5), (" circle", 1.0)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("((red:1.5) hat)", [("red", 1.5), (" hat", 1.1)]),
        ("(a (red:0.5):2)", [("a ", 2.0), ("red", 0.5)]),
        ("(red:high)", [("red:high", 1.1)]),
        ("(:1.3)", [(":1.3", 1.1)]),
        (r"\(not weighted\)", [("(not weighted)", 1.0)]),
        (r"(lumo kest \(ring\):1.2)", [("lumo kest (ring)", 1.2)]),
        ("open (left", [("open ", 1.0), ("(left", 1.0)]),
        ("closed) right", [("closed) right", 1.0)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("a:1.5", [("a:1.5", 1.0)]),
    ],
)
def test_brackets(prompt, expected):
    got = parse_weights(prompt)
    assert [text for text, _ in got] == [text for text, _ in expected]
    assert [weight for _, weight in got] == pytest.approx([weight for _, weight in expected])


def test_short_prompt_fills_one_window():
    assert prompt_windows([("aa b", 1.0)], word_ids, SPECIAL) == [
        [(1, 1.0), (102, 1.0), (101, 1.0), (2, 1.0)] + [(2, 1.0)] * 8
    ]
    assert prompt_windows([], word_ids, SPECIAL) == [[(1, 1.0)] + [(2, 1.0)] * 11]


def test_long_segment_is_torn_at_the_window_end():
    windows = prompt_windows([("a " * 25, 1.0)], word_ids, SPECIAL)
    assert [len(window) for window in windows] == [12, 12, 12]
    assert [sum(token == 101 for token, _ in window) for window in windows] == [10, 10, 5]


def test_small_segment_moves_whole_to_the_next_window():
    windows = prompt_windows([("a " * 7, 1.0), ("bb " * 5, 1.2)], word_ids, SPECIAL)
    assert [sum(token == 101 for token, _ in window) for window in windows] == [7, 0]
    assert [sum(weight == 1.2 for _, weight in window) for window in windows] == [0, 5]


def test_weights_are_relative_to_the_empty_prompt():
    table = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))

    def encode(ids):
        # Depends on the whole window, so that the empty prompt differs at every place.
        hidden = table[ids] + torch.arange(ids.shape[1])[None, :, None] * ids.float().mean(1)[:, None, None]
        return hidden, hidden[:, -1]

    segments = [("a ", 1.0), ("bb", 1.5)]
    windows = prompt_windows(segments, word_ids, SPECIAL)
    got, pooled = encode_windows(windows, encode, SPECIAL)
    plain, _ = encode(torch.tensor([[token for token, _ in windows[0]]]))
    empty, _ = encode(torch.tensor([[1] + [2] * 11]))
    expected = plain.clone()
    expected[0, 2] = empty[0, 2] + 1.5 * (plain[0, 2] - empty[0, 2])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(pooled, plain[:, -1])
    unweighted, _ = encode_windows([[(t, 1.0) for t, _ in windows[0]]], encode, SPECIAL)
    assert torch.equal(unweighted, plain)


def test_windows_are_joined_along_the_tokens():
    windows = prompt_windows([("a " * 25, 1.0)], word_ids, SPECIAL)
    hidden, _ = encode_windows(windows, lambda ids: (ids.float()[..., None], None), SPECIAL)
    assert hidden.shape == (1, 36, 1)


def test_embeddings_are_refused_clearly():
    with pytest.raises(InputError, match="textual-inversion"):
        prompt_windows([("a embedding:bad", 1.0)], word_ids, SPECIAL)
