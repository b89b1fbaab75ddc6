import pytest

from lora_atelier.core.errors import AtelierError, InputError, UnknownNameError, missing_library, unknown_name


def test_nearest_names_come_first_whatever_their_case():
    error = unknown_name("optimizer", "ADAMv", ["adamw", "lion", "prodigy"])
    assert isinstance(error, UnknownNameError)
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert "optimizer 'ADAMv'" in str(error)
    assert "did you mean 'adamw'" in str(error)
    assert "lion" in str(error)


def test_long_lists_are_cut_short():
    text = str(unknown_name("block", "zzz", [f"name{index}" for index in range(100)]))
    assert "and 88 more" in text
    assert len(text) < 300


def test_empty_list_says_so():
    assert "none to choose from" in str(unknown_name("LoRA", "a", []))


def test_missing_library_names_the_command():
    error = missing_library("onnxruntime", "running a tagger", "pip install onnxruntime")
    assert "pip install onnxruntime" in str(error)
    with pytest.raises(AtelierError):
        raise error
