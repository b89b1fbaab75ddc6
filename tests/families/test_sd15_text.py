import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.full_size import byte_tokenizer
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.params import Choice
from lora_atelier.families import _spec, _tokenizer
from lora_atelier.families._spec import Components, Family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams

START, END = 512, 513
SPECIAL = "<|endoftext|>"


@pytest.fixture
def no_tokenizer_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_spec, "_tokenizer_dirs", ())
    monkeypatch.setattr(_tokenizer, "_HUB_NAME", str(tmp_path / "no-such-model"))


def write_tokenizer(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(data["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *data["merges"], ""]), encoding="utf-8")
    return folder


def test_ids_are_start_text_end_and_end_to_77(tiny: Components, family: Family) -> None:
    (ids,) = family.tokenize(tiny.tokenizers, ["Ab", "", "x" * 200])
    vocab = byte_tokenizer()["vocab"]
    assert ids.dtype == torch.int64
    assert ids.shape == (3, 77)
    assert ids[0].tolist() == [START, vocab["a"], vocab["b</w>"], *[END] * 74]
    assert ids[1].tolist() == [START, *[END] * 76]
    assert ids[2].tolist() == [START, *[vocab["x"]] * 75, END]


def test_commas_digits_apostrophes_and_unicode_split_as_clip_does(tiny: Components, family: Family) -> None:
    tokenizer = tiny.tokenizers[0]
    ids = family.tokenize([tokenizer], ["it's 12, caf\u00e9  \n x"])[0][0].tolist()
    inverse = {index: token for token, index in byte_tokenizer()["vocab"].items()}
    words = "".join(inverse[index] for index in ids[1 : ids.index(END)]).split("</w>")
    assert words == ["it", "'s", "1", "2", ",", "caf\u00c3\u00a9", "x", ""]


def test_merges_are_applied(tmp_path: Path, family: Family, no_tokenizer_anywhere: None) -> None:
    data = byte_tokenizer(["lumo", "kest"])
    tokenizer = _tokenizer.find_tokenizer({"atelier.tokenizer": json.dumps(data)}, tmp_path / "x.safetensors")
    vocab = data["vocab"]
    assert family.tokenize([tokenizer], ["Lumo kest"])[0][0, :4].tolist() == [
        vocab["<|startoftext|>"],
        vocab["lumo</w>"],
        vocab["kest</w>"],
        vocab[SPECIAL],
    ]


def test_lookup_goes_from_the_metadata_to_the_folders_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Family, no_tokenizer_anywhere: None
) -> None:
    base = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"metadata.*ComfyUI's copy.*Hugging Face cache"):
        _tokenizer.find_tokenizer({}, base)
    cache = write_tokenizer(tmp_path / "cache", byte_tokenizer(["zz"]))
    monkeypatch.setattr(_tokenizer, "_HUB_NAME", str(cache))
    assert len(_tokenizer.find_tokenizer({}, base)) == 515
    folder = write_tokenizer(tmp_path / "comfy", byte_tokenizer(["yy", "xx"]))
    _spec.set_tokenizer_dirs([tmp_path / "absent", folder])
    assert len(_tokenizer.find_tokenizer({}, base)) == 516
    metadata = {"atelier.tokenizer": json.dumps(byte_tokenizer())}
    assert len(_tokenizer.find_tokenizer(metadata, base)) == 514


@pytest.mark.parametrize(
    "text", ["no json", "{}", "[]", '{"vocab": {"a": "b"}, "merges": []}', '{"vocab": {"a": 1}, "merges": []}']
)
def test_a_broken_tokenizer_in_the_metadata_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors: the tokenizer in its metadata"):
        _tokenizer.find_tokenizer({"atelier.tokenizer": text}, Path("x.safetensors"))


@pytest.mark.comfyui
@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no ComfyUI checkout")
def test_ids_equal_those_of_comfyuis_own_tokenizer(family: Family) -> None:
    folder = Path(os.environ["COMFYUI_DIR"]) / "comfy" / "sd1_tokenizer"
    tokenizer = _tokenizer._from_folder(str(folder))
    transformers = pytest.importorskip("transformers")
    oracle = transformers.CLIPTokenizer.from_pretrained(str(folder))
    for text in ("1girl, red_hair, it's 100% (really)", "", "\u7f8e\u3057\u3044 \u00c9t\u00e9\n x  y", "a " * 90):
        plain = oracle(text)["input_ids"][1:-1][:75]
        expected = [49406, *plain, *[49407] * (76 - len(plain))]
        assert family.tokenize([tokenizer], [text])[0][0].tolist() == expected


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_equals_an_encoder_without_its_last_layers(tiny: Components, family: Family, clip_skip: int) -> None:
    captions = ["red circle, hat", "", "blue star"]
    hidden = family.encode_text(tiny, captions, clip_skip=clip_skip).hidden
    short = copy.deepcopy(tiny)
    inner = getattr(short.text_encoders[0], "text_model", short.text_encoders[0])
    inner.encoder.layers = inner.encoder.layers[: len(inner.encoder.layers) - clip_skip + 1]
    expected = short.text_encoders[0](input_ids=family.tokenize(short.tokenizers, captions)[0]).last_hidden_state
    assert hidden.shape == (3, 77, 64)
    torch.testing.assert_close(hidden, expected)


def test_a_clip_skip_beyond_the_encoder_is_refused(tiny: Components, family: Family) -> None:
    for clip_skip in (0, 4):
        with pytest.raises(InputError, match="allowed is 1 to 3"):
            family.encode_text(tiny, ["x"], clip_skip=clip_skip)


def test_later_tokens_do_not_change_earlier_states(tiny: Components, family: Family) -> None:
    one, two = family.encode_text(tiny, ["red circle", "red star"], clip_skip=1).hidden
    torch.testing.assert_close(one[:4], two[:4])
    assert not torch.allclose(one[4:], two[4:])


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_gradients_reach_the_adapter_of_the_text_encoder(tiny: Components, family: Family, clip_skip: int) -> None:
    targets = family.targets(tiny, unet=False)
    adapters = AdapterSet.attach(
        targets, Choice(kind="network", name="lora", params=LoraParams(rank=2, alpha=1.0)), seed=0
    )
    family.encode_text(tiny, ["red circle"], clip_skip=clip_skip).hidden.square().sum().backward()
    for target in targets:
        used = f"layers_{3 - clip_skip + 1}" not in target.stem
        gradient = adapters.parts_of(target.stem)["lora_up.weight"].grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == used, target.stem
