"""A host for tests of the node layer: real folders, made-up models that remember what was asked of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_atelier.core.errors import InputError
from lora_atelier.core.files import Roots
from lora_atelier.core.index import Index
from lora_atelier.core.progress import SilentProgress
from lora_atelier.nodes.host import OWN_VAE, PICO_NAME, PICO_XL_NAME
from lora_atelier.nodes.host.shared import find_detector, open_index


class FakeHost:
    """Draws pictures whose colour depends on every input, and counts calls."""

    name = "fake"

    def __init__(self, base: Path) -> None:
        self.base = base
        self.calls: list[str] = []
        self.without_metadata = False
        for name in ("input", "output", "temp", "loras", "checkpoints"):
            (base / name).mkdir(exist_ok=True)

    def roots(self) -> Roots:
        return Roots(
            folders={
                "input": (self.base / "input",),
                "output": (self.base / "output",),
                "datasets": (),
                "models": (self.base / "checkpoints", self.base / "loras"),
                "extra": (),
            }
        )

    def output_dir(self) -> Path:
        return self.base / "output"

    def input_dir(self) -> Path:
        return self.base / "input"

    def temp_dir(self) -> Path:
        return self.base / "temp"

    def user_dir(self) -> Path:
        return self.base / "user"

    def cache_dir(self) -> Path:
        return self.base / "cache"

    def index(self) -> Index:
        return open_index(self.user_dir())

    def loras_dir(self) -> Path:
        return self.base / "loras"

    def checkpoints_dir(self) -> Path:
        return self.base / "checkpoints"

    def checkpoint_names(self) -> list[str]:
        return [*self._files("checkpoints"), PICO_NAME, PICO_XL_NAME]

    def checkpoint_path(self, name: str) -> Path:
        if name not in self.checkpoint_names():
            raise InputError(f"unknown base model {name!r} (allowed: {', '.join(self.checkpoint_names())})")
        return self.base / "checkpoints" / name

    def vae_names(self) -> list[str]:
        return [OWN_VAE, *self._files("vae")]

    def vae_path(self, name: str) -> Path | None:
        if name not in self.vae_names():
            raise InputError(f"unknown VAE {name!r} (allowed: {', '.join(self.vae_names())})")
        return None if name == OWN_VAE else self.base / "vae" / name

    def lora_names(self) -> list[str]:
        return self._files("loras")

    def lora_path(self, name: str) -> Path:
        if name not in self.lora_names():
            raise InputError(f"unknown LoRA {name!r} (allowed: {', '.join(self.lora_names())})")
        return self.base / "loras" / name

    def tagger_names(self) -> list[str]:
        return [PICO_NAME]

    def tagger_path(self, name: str) -> Path:
        if name != PICO_NAME:
            raise InputError(f"unknown tagger {name!r} (allowed: {PICO_NAME})")
        return self.base / "tagger"

    def detector_names(self) -> list[str]:
        return [*(path.name for path in sorted((self.base / "detectors").glob("*.onnx"))), PICO_NAME]

    def detector_path(self, name: str) -> Path:
        return find_detector(name, (self.base / "detectors",))

    def tokenizer_dirs(self) -> list[Path]:
        return []

    def device(self) -> torch.device:
        return torch.device("cpu")

    def progress(self, total_hint: int = 0) -> SilentProgress:
        return SilentProgress()

    @contextmanager
    def training(self) -> Iterator[None]:
        self.calls.append("training")
        with torch.inference_mode(False), torch.enable_grad():
            yield

    def load_base(self, base: Any) -> tuple[Any, Any, Any]:
        return "model", "clip", "vae"

    def load_tensors(self, source: Any, *, family: str, variant: Any, identity: str) -> tuple[Any, Any, Any]:
        self.calls.append("load_tensors")
        return f"model of {len(source.keys())} tensors", "clip", "vae"

    def apply_lora(
        self,
        model: Any,
        clip: Any,
        tensors: Mapping[str, torch.Tensor],
        *,
        strength_model: float,
        strength_clip: float,
        stem_strengths: Mapping[str, float],
    ) -> tuple[Any, Any]:
        self.calls.append("apply_lora")
        factors = sorted(set(stem_strengths.values()))
        return f"{model}+{strength_model}*{factors}", f"{clip}+{strength_clip}*{factors}"

    def schedule_lora(self, model: Any, clip: Any, tensors: Any, *, start: Any, stop: Any, **given: Any) -> Any:
        self.calls.append("schedule_lora")
        factors = sorted(set(given["stem_strengths"].values()))
        return model, f"{clip}+{given['strength_model']}*{factors}@{start}-{stop}"

    def fingerprint(self, *objects: Any) -> str:
        return str(objects)

    def encode_prompt(self, clip: Any, text: str) -> str:
        self.calls.append("encode_prompt")
        return f"{clip}:{text}"

    def sample(self, model: Any, positive: Any, negative: Any, **settings: Any) -> Any:
        self.calls.append("sample")
        return {"samples": (model, positive, negative, settings)}

    def decode(self, vae: Any, latent: Any) -> torch.Tensor:
        settings = latent["samples"][3]
        colour = torch.tensor([hash(repr(latent["samples"])) // 7**k % 256 / 255 for k in range(3)])
        return colour.expand(1, settings["height_px"], settings["width_px"], 3)

    def samplers(self) -> list[str]:
        return ["euler", "ddim"]

    def schedulers(self) -> list[str]:
        return ["normal", "karras"]

    def metadata_disabled(self) -> bool:
        return self.without_metadata

    def _files(self, folder: str) -> list[str]:
        root = self.base / folder
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.safetensors"))
