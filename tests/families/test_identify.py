import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.full_size import FULL, FULL_OF, checkpoint_shapes
from lora_atelier.core.errors import AtelierError, FormatError
from lora_atelier.core.tensors import Header, write_tensors
from lora_atelier.families._identify import describe, identify
from lora_atelier.families._spec import families, get_family

UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CONTEXT_XL = f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
CONV_IN = f"{UNET}input_blocks.0.0.weight"


def header(shapes: dict[str, tuple[int, ...]], **metadata: str) -> Header:
    return Header(shapes=shapes, dtypes={}, metadata=metadata, offsets={})


KINDS: list[tuple[str, dict[str, tuple[int, ...]]]] = [
    ("LoRA", {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320, 1, 1)}),
    ("LoRA", {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 320)}),
    ("LyCORIS", {"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": (4, 4)}),
    ("LyCORIS", {"lora_unet_mid_block_attentions_0_proj_in.lokr_w1": (4, 4)}),
    ("embedding", {"emb_params": (8, 768)}),
    ("embedding", {"clip_l": (8, 768), "clip_g": (8, 1280)}),
    ("embedding", {"<cat>": (768,)}),
    ("ControlNet", {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}),
    ("SD3", {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (8, 8)}),
    ("Flux", {"double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    ("Flux", {f"{UNET}double_blocks.0.img_attn.qkv.weight": (8, 8)}),
    ("SDXL refiner", {f"{UNET}label_emb.0.0.weight": (8, 8), CONV_IN: (384, 4, 3, 3), CONTEXT_XL: (768, 1280)}),
    ("distilled SDXL", {f"{UNET}label_emb.0.0.weight": (8, 8), CONV_IN: (320, 4, 3, 3), CONTEXT_XL: (640, 2048)}),
    ("SDXL inpainting", {f"{UNET}label_emb.0.0.weight": (8, 8), CONV_IN: (320, 9, 3, 3), CONTEXT_XL: (640, 2048)}),
    ("SD2 checkpoint", {CONV_IN: (320, 4, 3, 3), CONTEXT: (320, 1024)}),
    ("SD2.1 unCLIP", {f"{UNET}label_emb.0.0.weight": (8, 8), CONV_IN: (320, 4, 3, 3), CONTEXT: (320, 1024)}),
    ("Video Diffusion", {CONV_IN: (320, 8, 3, 3), CONTEXT: (320, 1024), f"{UNET}out.time_stack.0.weight": (8, 8)}),
    ("Chroma", {"double_blocks.0.x": (8, 8), "distilled_guidance_layer.in_proj.weight": (8, 8)}),
    ("Wan video", {f"{UNET}head.modulation": (1, 2, 8), f"{UNET}blocks.0.self_attn.q.weight": (8, 8)}),
    ("Qwen-Image", {"transformer_blocks.0.attn.to_q.weight": (8, 8), "txt_norm.weight": (8,)}),
    ("PixArt", {f"{UNET}t_block.1.weight": (8, 8)}),
    ("Stable Cascade", {"clip_txt_mapper.weight": (8, 8)}),
    ("SD2 inpainting", {CONV_IN: (320, 9, 3, 3), CONTEXT: (320, 1024)}),
    ("SD1.x inpainting", {CONV_IN: (320, 9, 3, 3), CONTEXT: (320, 768)}),
    ("SD1.x instruct-pix2pix", {CONV_IN: (320, 8, 3, 3), CONTEXT: (320, 768)}),
    ("VAE alone", {"first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3)}),
    ("VAE alone", {"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}),
    (
        "VAE alone",
        {"encoder.down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3), "decoder.conv_in.weight": (4, 4, 3, 3)},
    ),
    ("diffusers layout", {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)}),
    ("text encoder alone", {"text_model.embeddings.token_embedding.weight": (49408, 768)}),
    ("text encoder alone", {"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8), "shared.weight": (8, 8)}),
    ("does not know", {f"{UNET}blocks.0.self_attn.q.weight": (8, 8)}),
    ("first keys are foo.weight", {"foo.weight": (2, 2)}),
    ("without any tensor", {}),
]


@pytest.mark.parametrize(("words", "shapes"), KINDS, ids=[f"{i}-{kind[0]}" for i, kind in enumerate(KINDS)])
def test_everything_else_is_named(words: str, shapes: dict[str, tuple[int, ...]]) -> None:
    assert words in describe(header(shapes))
    assert not any(family.detect(header(shapes)) for family in families().values())


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_full_size_checkpoints_are_of_their_family_alone(family: str) -> None:
    shapes = checkpoint_shapes(FULL_OF[family], family)
    assert [name for name, other in families().items() if other.detect(header(shapes))] == [family]


def test_sdxl_with_another_noise_schedule_or_fewer_transformers_is_named() -> None:
    shapes = checkpoint_shapes(FULL_OF["sdxl"], "sdxl")
    for marker in ("edm_mean", "edm_vpred.sigma_max"):
        assert "EDM" in describe(header({**shapes, marker: ()}))
        assert not any(family.detect(header({**shapes, marker: ()})) for family in families().values())
    shallow = {key: shape for key, shape in shapes.items() if ".transformer_blocks.9." not in key}
    assert "distilled SDXL" in describe(header(shallow))
    inpainting = {**shapes, CONV_IN: (320, 9, 3, 3)}
    assert "inpainting" in describe(header(inpainting))
    assert not any(family.detect(header(inpainting)) for family in families().values())


def test_the_full_layout_and_the_tiny_one_are_sd15(tiny_path: Path) -> None:
    shapes = checkpoint_shapes(FULL)
    assert get_family("sd15").detect(header(shapes))
    identity = identify(tiny_path)
    assert (identity.family, identity.title, identity.is_pico) == ("sd15", "Stable Diffusion 1.x", True)


def test_the_error_names_file_kind_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    write_tensors(path, {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(FormatError, match=r"style\.safetensors is a LoRA .* full checkpoint of Stable Diffusion 1\.x"):
        identify(path)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("old.ckpt", zipped(), "lora-atelier convert"),
        ("old.pt", b"\x80\x02}", "lora-atelier convert"),
        ("renamed.safetensors", zipped(), "lora-atelier convert"),
        ("empty.safetensors", b"", "empty"),
        ("page.safetensors", b"<!doctype html><html>" * 9, "web page"),
        ("noise.safetensors", struct.pack("<Q", 20) + b"\xff" * 20, "safetensors"),
        ("cut.safetensors", struct.pack("<Q", 1000) + b"{", "truncated"),
    ],
)
def test_damaged_and_old_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        identify(path)


def test_a_truncated_checkpoint_is_named(tmp_path: Path, tiny_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_path.read_bytes()[:-1000])
    with pytest.raises(FormatError, match="truncated"):
        identify(path)


def test_a_folder_and_an_absent_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="folder"):
        identify(tmp_path)
    with pytest.raises(AtelierError, match=r"absent\.safetensors"):
        identify(tmp_path / "absent.safetensors")
