import hashlib
import os
from pathlib import Path

import pytest
import torch

from lora_atelier.core import files
from lora_atelier.core.errors import UnknownNameError
from lora_atelier.families._base import base_hash, open_base
from lora_atelier.families._spec import get_family


def test_a_handle_is_small_frozen_and_knows_its_family(tiny_path: Path) -> None:
    base = open_base(tiny_path, name="tiny", dtype="bf16")
    assert (base.family, base.name, base.torch_dtype) == ("sd15", "tiny", torch.bfloat16)
    assert base.open_family() is get_family("sd15")
    assert base == open_base(tiny_path, name="tiny", dtype="bf16")
    assert hash(base) == hash(open_base(tiny_path, name="tiny", dtype="bf16"))


def test_an_unknown_dtype_or_family_lists_the_known_ones(tiny_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="fp16"):
        open_base(tiny_path, name="tiny", dtype="f16")
    with pytest.raises(UnknownNameError, match="sd15"):
        get_family("sd1.5")


def test_the_hash_is_of_the_bytes_read_once_and_again_when_they_change(
    tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(tiny_path.read_bytes())
    base = open_base(path, name="base", dtype="fp32")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert base_hash(base) == expected
    with monkeypatch.context() as patch:
        patch.setattr(files, "sha256_file", lambda *args: "read again")
        assert base_hash(base) == expected
    os.utime(path, ns=(1, 1))
    monkeypatch.setattr(files, "sha256_file", lambda *args: "read again")
    assert base_hash(base) == "read again"
