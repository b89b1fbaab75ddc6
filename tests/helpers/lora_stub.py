"""A LoRA handle without a file, for the rooms that must not know the merger's."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class StubLora:
    name: str
    path: Path = Path("x.safetensors")
    sha256: str = ""
    family: str = "sd15"
    strength_model: float = 1.0
    strength_clip: float = 1.0
    block_weights: str = ""
    trigger: str = ""


def stub_lora(name: str, **kwargs) -> StubLora:
    return StubLora(name=name, sha256=(name.encode().hex() * 64)[:64], **kwargs)
