"""The tiny CLIP tokenizer: tag words are single tokens, triggers differ, and transformers reads it the same way."""

import random

import pytest

from lora_atelier.pico import tokenizer, world

VOCABULARY = tokenizer.build()


def test_every_tag_word_is_one_token():
    for word in tokenizer.tag_words():
        assert len(tokenizer.tokenize(word, VOCABULARY)) == 1, word


def test_any_text_can_be_read_back():
    letters = {symbol: byte for byte, symbol in tokenizer.byte_symbols().items()}
    names = {i: token for token, i in VOCABULARY.vocab.items()}
    for text in ("ohwx", "zizik netust", "日本", "naïve", "lumo kest"):
        joined = "".join(names[i] for i in tokenizer.tokenize(text, VOCABULARY)).replace("</w>", "\u0120")
        assert bytes(letters[c] for c in joined).decode("utf-8").strip() == text


def test_triggers_are_told_apart_and_unknown():
    ids = [tuple(tokenizer.tokenize(c.trigger, VOCABULARY)) for c in world.CONCEPTS.values()]
    assert len(set(ids)) == len(ids)
    for concept in world.CONCEPTS.values():
        assert len(tokenizer.tokenize(concept.trigger, VOCABULARY)) > len(concept.trigger.split())


def test_padding_is_the_end_mark():
    rows = tokenizer.encode(["", "red " * 200], VOCABULARY)
    start, end = VOCABULARY.vocab[tokenizer.START], VOCABULARY.vocab[tokenizer.END]
    assert rows.shape == (2, 77)
    assert rows[0].tolist() == [start] + [end] * 76
    assert rows[1, 0] == start
    assert rows[1, -1] == end


def test_json_round_trip():
    assert tokenizer.Vocabulary.from_json(VOCABULARY.to_json()) == VOCABULARY


def test_transformers_reads_the_same_tokens(tmp_path):
    pytest.importorskip("transformers")
    library = tokenizer.library_tokenizer(VOCABULARY, tmp_path)
    rng = random.Random(1)
    texts = ["", "lumo kest", "A Red  CIRCLE,white background", "3shapes don't (a_b:1.2) ~ ohwx 42"]
    texts += [world.caption(world.random_scene(rng), rng, nonsense_rate=0.5) for _ in range(60)]
    theirs = library(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert theirs.tolist() == tokenizer.encode(texts, VOCABULARY).tolist()
