import pytest
import torch

from lora_atelier.core.errors import FormatError
from lora_atelier.networks._apply import add_deltas, lora_delta, lora_deltas, split_file

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
    torch.testing.assert_close(lora_deltas({down_name: down, up_name: up}, stem), up @ down)


def test_alpha_scales_and_stems_do_not_mix() -> None:
    down, up = pair()
    tensors = {}
    for stem, alpha in (("a", 1.0), ("a.b", 4.0)):
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    assert list(split_file(tensors)) == ["a", "a.b"]
    torch.testing.assert_close(lora_deltas(tensors, "a"), up @ down * 0.5)
    torch.testing.assert_close(lora_deltas(tensors, "a.b"), up @ down * 2.0)


def test_unknown_tensors_and_networks_are_named() -> None:
    with pytest.raises(FormatError, match="a.mystery"):
        split_file({"a.mystery": torch.zeros(1)})
    with pytest.raises(FormatError, match="the module 'a' .* lora_up"):
        lora_delta({"lora_up.weight": torch.zeros(2, 2)}, stem="a")
    with pytest.raises(FormatError, match="no module 'b'"):
        lora_deltas({}, "b")


def test_add_deltas_adds_in_fp32_by_stem_and_leaves_the_old_weights() -> None:
    down, up = pair()
    lora = {f"{stem}.{name}": value for stem in "abc" for name, value in
            (("lora_down.weight", down), ("lora_up.weight", up), ("alpha", torch.tensor(2.0)))}  # fmt: skip
    base = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).half()
    weights = {"a": base, "b": base}
    assert add_deltas(weights, lora, strength={"a": 0.5}) == ["c"]
    assert weights["b"] is base
    assert weights["a"].dtype == torch.float16
    assert torch.equal(weights["a"], (base.float() + 0.5 * (up @ down)).half())
    assert add_deltas(weights, lora, strength=1.0) == ["c"]
    assert torch.equal(weights["b"], (base.float() + up @ down).half())


def test_a_convolution_weight_keeps_its_shape() -> None:
    down, up = pair()
    weights = {"a": torch.zeros(8, 6, 1, 1)}
    add_deltas(weights, {"a.lora_down.weight": down, "a.lora_up.weight": up})
    torch.testing.assert_close(weights["a"], (up @ down).reshape(8, 6, 1, 1))
