from pathlib import Path

import pytest

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.families._spec import Components, Family, get_family


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def family() -> Family:
    return get_family("sd15")


@pytest.fixture
def tiny(tiny_path: Path, family: Family) -> Components:
    return family.load(tiny_path, parts=("unet", "text_encoder"))
