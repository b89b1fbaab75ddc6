import pytest
import torch

from lora_atelier.core.errors import FormatError
from lora_atelier.networks._apply import lora_delta, split_file

STEM = "lora_unet_mid_block_attentions_0_proj_in"


def pair(rank: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rank, 6, generator=generator), torch.randn(8, rank, generator=generator)


@pytest.mark.parametrize(
    ("down_name", "up_name"),
    [
        (f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"),
        ("unet.mid.attn1.to_q.lora_A.weight", "unet.mid.attn1.to_q.lora_B.weight"),
        ("base.mid.to_q.lora_A.default.weight", "base.mid.to_q.lora_B.default.weight"),
        ("mid.to_q.lora_A", "mid.to_q.lora_B"),
        ("unet.mid.to_q.lora.down.weight", "unet.mid.to_q.lora.up.weight"),
        ("unet.mid.processor.to_q_lora.down.weight", "unet.mid.processor.to_q_lora.up.weight"),
        ("te.q_proj.lora_linear_layer.down.weight", "te.q_proj.lora_linear_layer.up.weight"),
    ],
)
def test_every_dialect_gives_one_module_with_the_same_delta(down_name: str, up_name: str) -> None:
    down, up = pair()
    [(stem, parts)] = split_file({down_name: down, up_name: up}).items()
    assert set(parts) == {"lora_down.weight", "lora_up.weight"}
    assert down_name.startswith(stem)
    torch.testing.assert_close(lora_delta(parts), up @ down)


def test_alpha_scales_and_stems_do_not_mix() -> None:
    down, up = pair()
    tensors = {}
    for stem, alpha in (("a", 1.0), ("a.b", 4.0)):
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    modules = split_file(tensors)
    assert list(modules) == ["a", "a.b"]
    torch.testing.assert_close(lora_delta(modules["a"]), up @ down * 0.5)
    torch.testing.assert_close(lora_delta(modules["a.b"]), up @ down * 2.0)


def test_unknown_tensors_and_networks_are_named() -> None:
    with pytest.raises(FormatError, match="a.mystery"):
        split_file({"a.mystery": torch.zeros(1)})
    with pytest.raises(FormatError, match="the module 'a' .* lora_up"):
        lora_delta({"lora_up.weight": torch.zeros(2, 2)}, stem="a")


def test_a_convolution_weight_keeps_its_shape() -> None:
    down, up = pair()
    change = lora_delta({"lora_down.weight": down, "lora_up.weight": up}, weight_shape=(8, 6, 1, 1))
    torch.testing.assert_close(change, (up @ down).reshape(8, 6, 1, 1))
