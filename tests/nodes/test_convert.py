"""The conversion node: the name it gives can be chosen as a base, and nothing else is replaced."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.families._identify import identify
from lora_atelier.nodes.host import set_host


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    yield host
    set_host(None)


def test_the_result_is_a_name_below_the_models_folder(host: FakeHost) -> None:
    (host.base / "checkpoints" / "sub").mkdir()
    torch.save({"a": torch.ones(2)}, host.base / "checkpoints" / "sub" / "old.ckpt")
    node = NODE_CLASS_MAPPINGS["AtelierConvertCheckpoint"]()
    made = node.convert("sub/old.ckpt")
    assert made["result"] == ("sub/old.safetensors",)
    assert made == node.convert("sub/old.ckpt")
    (host.base / "checkpoints" / "sub" / "old.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="already"):
        node.convert("sub/old.ckpt")


def test_the_refusal_of_an_old_file_names_this_node(host: FakeHost) -> None:
    torch.save({"a": torch.ones(2)}, host.base / "old.ckpt")
    with pytest.raises(FormatError) as caught:
        identify(host.base / "old.ckpt")
    assert NODE_DISPLAY_NAME_MAPPINGS["AtelierConvertCheckpoint"] in str(caught.value)
