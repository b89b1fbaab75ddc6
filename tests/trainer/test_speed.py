"""What makes a step quick, on a real model: nothing read back, nothing cast twice, no work before what is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atelier_tests.helpers import full_size, training
from atelier_tests.trainer.test_optimizer_maths import Reads
from lora_atelier.core.params import Choice
from lora_atelier.families._checkpointing import ALL, INNER, OUTER, TRANSFORMERS, recompute_activations
from lora_atelier.families._clip import inner_text_model
from lora_atelier.families._spec import Components, TextState, get_family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.train import train_lora

MakeJob = Callable[..., Job]


def reads_of(job: Job, folder: Path) -> int:
    with Reads() as reads:
        train_lora(job, **training.places(folder))
    return reads.count


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("trained", [{}, {"train_text_encoder": False, "precision": "bf16"}], ids=["all", "unet"])
def test_more_steps_read_no_more_back(
    family: str, trained: dict[str, Any], pictures: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """A run of six steps asks for as many values as one of two: those of its beginning and of its end."""
    base = tiny_base
    if family == "sdxl":
        base = full_size.write_tiny_checkpoint(tmp_path / "xl.safetensors", family="sdxl")
    dataset = training.open_pictures(pictures, shuffle_captions=True)
    settings: dict[str, Any] = {"base": base, "ema_decay": 0.9, "accumulation_images": 2, "batch_size": 2, **trained}
    found = []
    for number, steps in enumerate((2, 2, 6)):  # the first one fills the caches
        job = training.make_job(dataset, steps=steps, **settings)
        found.append(reads_of(job, tmp_path / f"run{number}"))
    assert found[2] == found[1]


class Watched(TorchDispatchMode):
    """Counts attention kernels, other ways to attention, and casts of some tensors."""

    def __init__(self, frozen: set[int]) -> None:
        super().__init__()
        self.frozen, self.casts, self.fused, self.plain = frozen, 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_to_copy" and args[0].untyped_storage().data_ptr() in self.frozen:
            self.casts += 1
        self.fused += name.startswith("_scaled_dot_product") and not name.endswith("backward")
        self.plain += name in ("_softmax", "baddbmm")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Components:
    loaded = get_family("sd15").load(tiny_base, parts=("unet", "text_encoder"), dtype=torch.bfloat16)
    for part in (loaded.unet, *loaded.text_encoders):
        part.requires_grad_(False)
    return loaded


def predicted(unet: Any, hidden: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return get_family("sd15").predict(unet, noisy, torch.tensor([500]), TextState(hidden=hidden))


def test_frozen_weights_are_never_cast_and_attention_is_one_kernel(model: Components) -> None:
    family = get_family("sd15")
    adapter = AdapterSet.attach(
        family.targets(model), Choice(kind="network", name="lora", params=LoraParams(rank=2)), seed=0
    )
    parts = [model.unet, *model.text_encoders]
    frozen = {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}
    layers = sum(type(module).__name__ == "Attention" for module in model.unet.modules())
    layers += len(inner_text_model(model.text_encoders[0]).encoder.layers)
    with Watched(frozen) as watched, torch.autocast("cpu", dtype=torch.bfloat16):
        predicted(model.unet, family.encode_text(model, ["a ring"]).hidden)
    adapter.detach_from_model()
    assert watched.casts == 0
    assert watched.fused == layers
    assert watched.plain == 0


def test_no_gradient_before_the_first_trained_module(model: Components) -> None:
    """What comes before is computed without a graph, so the way back ends at the first trained module."""
    family = get_family("sd15")
    targets = [target for target in family.targets(model, text_encoder=False) if target.block == "OUT05"]
    adapter = AdapterSet.attach(targets, Choice(kind="network", name="lora", params=LoraParams(rank=2)), seed=0)
    seen: dict[str, bool] = {}
    hooks = [
        block.register_forward_hook(
            lambda module, given, output, name=name: seen.update(
                {name: (output[0] if isinstance(output, tuple) else output).requires_grad}
            )
        )
        for name, block in (("down", model.unet.down_blocks[-1]), ("middle", model.unet.mid_block),
                            ("first", model.unet.up_blocks[0]), ("last", model.unet.up_blocks[-1]))
    ]  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted(model.unet, torch.zeros(1, 77, int(model.unet.config.cross_attention_dim)))
    for hook in hooks:
        hook.remove()
    adapter.detach_from_model()
    assert seen == {"down": False, "middle": False, "first": False, "last": True}


def kept_bytes_and_gradients(base: Path, part: str | None) -> tuple[int, list[torch.Tensor]]:
    """What the forward pass keeps for the way back, and the gradients."""
    family = get_family("sd15")
    loaded = family.load(base, parts=("unet",))
    unet = loaded.unet.requires_grad_(False)
    if part is not None:
        recompute_activations(unet, part=part)
    adapter = AdapterSet.attach(
        family.targets(loaded, text_encoder=False),
        Choice(kind="network", name="lora", params=LoraParams(rank=2)),
        seed=0,
    )
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = predicted(unet, torch.ones(1, 77, int(unet.config.cross_attention_dim))).square().mean()
    size = sum(kept.values())
    loss.backward()
    return size, [p.grad for p in adapter.parameters_by_part()["unet"] if p.grad is not None]


def test_less_is_kept_the_more_is_recomputed(tiny_base: Path) -> None:
    everything, expected = kept_bytes_and_gradients(tiny_base, None)
    sizes = {}
    for part in (ALL, TRANSFORMERS, OUTER, INNER):
        sizes[part], gradients = kept_bytes_and_gradients(tiny_base, part)
        assert len(gradients) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    assert sizes[ALL] < min(sizes[TRANSFORMERS], sizes[OUTER], sizes[INNER])
    assert max(sizes.values()) < everything
    assert sizes[OUTER] < sizes[INNER]
