import json
from pathlib import Path

import pytest
import torch

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.core.params import Choice
from lora_atelier.families._spec import Components, Family, get_family
from lora_atelier.families._targets import GROUPS, every_target
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._kohya_lists import KOHYA_LISTS, index_of
from lora_atelier.networks._spec import get_network
from lora_atelier.networks._targeting import GROUP_NAMES, Targeting, parse_targeting
from lora_atelier.networks.full import FullParams
from lora_atelier.networks.loha import LohaParams
from lora_atelier.networks.lora import LoraParams

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SD15 = get_family("sd15").blocks
SDXL = (*(f"IN{i:02d}" for i in range(9)), "MID", *(f"OUT{i:02d}" for i in range(9)))


def choose(text: str, tiny: Components, family: Family, params: object = None, network: str = "lora") -> dict:
    params = LoraParams(rank=16, alpha=8.0) if params is None else params
    chosen = parse_targeting(text, family.blocks).choose(every_target(family, tiny), get_network(network), params)
    return {target.stem: (target, settings) for target, settings in chosen}


def sizes(text: str, tiny: Components, family: Family, params: object = None) -> dict[str, tuple[int, float]]:
    params = LoraParams(rank=16, alpha=8.0) if params is None else params
    found = choose(text, tiny, family, params)
    choice = Choice(kind="network", name="lora", params=params)
    adapters = AdapterSet.attach(
        [target for target, _ in found.values()], choice, seed=0,
        settings={stem: settings for stem, (_, settings) in found.items()},
    )  # fmt: skip
    adapters.detach_from_model()
    return {stem: (adapters.size_of(stem).rank, adapters.size_of(stem).alpha) for stem in adapters.stems}


def test_both_lists_of_groups_are_one() -> None:
    assert GROUP_NAMES == GROUPS


def test_nothing_said_is_kohyas_default(tiny: Components, family: Family) -> None:
    assert list(choose("", tiny, family)) == [target.stem for target in family.targets(tiny)]


def test_a_rank_for_convolutions_adds_the_resnets(tiny: Components, family: Family) -> None:
    found = choose("", tiny, family, LoraParams(conv_rank=4))
    added = {target.group for target, _ in found.values()} - {
        target.group for target, _ in choose("", tiny, family).values()
    }
    assert added == {"resnets", "samplers"}
    stems = {stem: rank for stem, (rank, _) in sizes("", tiny, family, LoraParams(rank=8, conv_rank=4)).items()}
    assert stems["lora_unet_down_blocks_0_resnets_0_conv1"] == 4
    assert stems["lora_unet_down_blocks_0_resnets_0_time_emb_proj"] == 8
    assert stems["lora_unet_up_blocks_0_resnets_0_conv_shortcut"] == 8


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("groups: cross-attention", {"cross-attention"}),
        ("groups: attn2, ff", {"cross-attention", "feed-forward", "text-mlp"}),
        ("groups: attention", {"text-attention", "self-attention", "cross-attention"}),
        ("UNET\ngroups: attention", {"self-attention", "cross-attention"}),
        ("groups = projections | groups: time", {"projections", "time"}),
        ("groups: full", {*GROUP_NAMES} - {"norms"}),
        ("groups: ends", {"ends"}),
    ],
)
def test_groups(text: str, groups: set[str], tiny: Components, family: Family) -> None:
    assert {target.group for target, _ in choose(text, tiny, family).values()} == groups


@pytest.mark.parametrize(
    ("text", "needed", "absent"),
    [
        ("include: *attn2*", "attn2", "attn1"),
        ("include: attn2.to_k", "attn2_to_k", "attn2_to_v"),
        ("include: /attn[12].to_(k|v)$/", "attn1_to_k", "to_q"),
        ("exclude: *to_out*", "to_q", "to_out"),
        ("include: *attn*\nexclude: *attn1*, *text_model*", "attn2", "attn1"),
    ],
)
def test_patterns(text: str, needed: str, absent: str, tiny: Components, family: Family) -> None:
    stems = list(choose(text, tiny, family))
    assert any(needed in stem for stem in stems)
    assert not any(absent in stem for stem in stems)


def test_blocks_with_settings_of_their_own(tiny: Components, family: Family) -> None:
    text = "IN04-07, OUT03-06, TE  # where\nOUT03-06: rank 8, alpha 4, lr 0.5\nOUT03 attn2: dim 2\nTE: lr 0"
    found = choose(text, tiny, family)
    assert {target.block for target, _ in found.values()} == {
        "IN04", "IN05", "IN07", "OUT03", "OUT04", "OUT05", "OUT06",
    }  # fmt: skip
    for target, settings in found.values():
        out = target.block.startswith("OUT")
        assert settings.lr_factor == (0.5 if out else 1.0)
        rank = 2 if target.block == "OUT03" and target.group == "cross-attention" else 8 if out else None
        assert settings.rank == rank
    given = sizes(text, tiny, family)
    assert given["lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q"] == (2, 4.0)
    assert given["lora_unet_up_blocks_1_attentions_0_proj_in"] == (8, 4.0)
    assert given["lora_unet_down_blocks_1_attentions_0_proj_in"] == (16, 8.0)


def test_convolutions_keep_their_own_rank(tiny: Components, family: Family) -> None:
    params = LoraParams(rank=16, conv_rank=4, conv_alpha=2.0)
    given = sizes("OUT03-06: rank 8\nOUT06: conv_rank 2, conv_alpha 0.5", tiny, family, params)
    assert given["lora_unet_up_blocks_1_resnets_0_conv1"] == (4, 2.0)
    assert given["lora_unet_up_blocks_2_resnets_0_conv1"] == (2, 0.5)
    assert given["lora_unet_up_blocks_1_resnets_0_time_emb_proj"][0] == 8
    plain = sizes("groups: resnets\nOUT03: rank 8", tiny, family)
    assert plain["lora_unet_up_blocks_1_resnets_0_conv1"][0] == 8


def test_rank_0_leaves_modules_out(tiny: Components, family: Family) -> None:
    blocks = {target.block for target, _ in choose("IN: rank 0", tiny, family).values()}
    assert blocks == {"TE", "MID", *(f"OUT{i:02d}" for i in range(3, 12))}


def test_kohyas_block_dims(tiny: Components, family: Family) -> None:
    dims = [0] * 25
    dims[4], dims[12], dims[13 + 3] = 2, 4, 6
    alphas = [1.0] * 25
    alphas[12] = 3.0
    text = f"block_dims: {','.join(map(str, dims))}\nblock_alphas={','.join(map(str, alphas))}"
    given = sizes(text, tiny, family)
    by_block = {get_family("sd15").block_of_stem(stem): size for stem, size in given.items()}
    assert by_block == {"TE": (16, 8.0), "IN04": (2, 1.0), "MID": (4, 3.0), "OUT03": (6, 1.0)}


def test_kohyas_conv_block_dims(tiny: Components, family: Family) -> None:
    conv = ",".join(["0"] * 12 + ["3"] + ["0"] * 12)
    given = sizes(f"UNET\nconv_block_dims: {conv}", tiny, family, LoraParams(rank=8, conv_rank=4))
    assert given["lora_unet_mid_block_resnets_0_conv1"][0] == 3
    assert "lora_unet_up_blocks_1_resnets_0_conv1" not in given
    assert given["lora_unet_up_blocks_1_resnets_0_time_emb_proj"][0] == 8


def lr_factors(text: str, tiny: Components, family: Family) -> dict[str, float]:
    found = choose(text, tiny, family, LoraParams(conv_rank=4))
    return {target.block: settings.lr_factor for target, settings in found.values()}


def test_kohyas_learning_rate_weights(tiny: Components, family: Family) -> None:
    down = ",".join(str(number / 10) for number in range(12))
    factors = lr_factors(f"down_lr_weight: {down}\nmid_lr_weight: 2\nup_lr_weight: linear+.25", tiny, family)
    assert factors["TE"] == 1.0
    assert "IN00" not in factors  # nothing there by default, and 0 would leave it out
    assert factors["IN04"] == pytest.approx(0.4)
    assert factors["MID"] == 2.0
    assert factors["OUT00"] == pytest.approx(0.25)
    assert factors["OUT11"] == pytest.approx(1.25)
    assert lr_factors("up_lr_weight: cosine", tiny, family)["OUT00"] == pytest.approx(1.0)
    assert "OUT11" not in lr_factors("up_lr_weight: cosine", tiny, family)
    assert lr_factors("up_lr_weight: sine", tiny, family)["OUT11"] == pytest.approx(1.0)
    assert lr_factors("up_lr_weight: reverse_linear", tiny, family)["OUT01"] == pytest.approx(10 / 11)
    assert not any(block.startswith("IN") for block in lr_factors("down_lr_weight: zeros", tiny, family))
    cut = lr_factors("up_lr_weight: linear | block_lr_zero_threshold: 0.5", tiny, family)
    assert min(value for block, value in cut.items() if block.startswith("OUT")) == pytest.approx(6 / 11)


def test_places_of_sdxl() -> None:
    assert index_of("IN00", "time_embedding.linear_1", SDXL) == 0
    assert index_of("IN00", "conv_in", SDXL) == 1
    assert index_of("IN08", "down_blocks.2.attentions.1.proj_in", SDXL) == 9
    assert index_of("MID", "mid_block.resnets.0.conv1", SDXL) == 10
    assert index_of("MID", "mid_block.attentions.0.proj_in", SDXL) == 11
    assert index_of("MID", "mid_block.resnets.1.conv1", SDXL) == 12
    assert index_of("OUT00", "up_blocks.0.resnets.0.conv1", SDXL) == 13
    assert index_of("OUT08", "up_blocks.2.resnets.2.conv1", SDXL) == 21
    assert index_of("OUT08", "conv_out", SDXL) == 22
    assert index_of("TE", "text_model.encoder.layers.0.mlp.fc1", SDXL) is None
    lists = parse_targeting("mid_lr_weight: 1,2,3\nup_lr_weight: " + ",".join(map(str, range(9))), SDXL).lists
    assert [lists.settings_of(place, spatial=False).lr_factor for place in (10, 11, 12, 13, 20, 21, 22)] == [
        1.0, 2.0, 3.0, 0.0, 7.0, 8.0, 1.0,
    ]  # fmt: skip
    assert lists.settings_of(None, spatial=False).lr_factor == 1.0


def test_later_lines_win_and_rules_stand_over_lists(tiny: Components, family: Family) -> None:
    text = f"MID: rank 3\nMID: rank 5\nblock_dims: {','.join(['2'] * 25)}"
    given = sizes(text, tiny, family)
    assert given["lora_unet_mid_block_attentions_0_proj_in"][0] == 5
    assert given["lora_unet_down_blocks_0_attentions_0_proj_in"][0] == 2


def test_the_same_choice_has_one_canonical_form() -> None:
    assert parse_targeting("in04 - 07", SD15).canonical() == ("IN04", "IN05", "IN06", "IN07")
    assert parse_targeting("ALL", SD15).canonical() == parse_targeting("", SD15).canonical()
    one = parse_targeting("OUT03: rank 8,alpha 4 # x", SD15)
    other = parse_targeting("ALL\nOUT03 : alpha 4; dim 8", SD15)
    assert one.canonical() == other.canonical()
    assert one.canonical() != parse_targeting("OUT03: rank 9, alpha 4", SD15).canonical()
    assert not one.is_plain
    assert parse_targeting("IN\nMID", SD15).is_plain


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("groups:", "gives nothing"),
        ("OUT03: rank", "rank 8"),
        ("OUT03: rank 2.5", "whole number"),
        ("OUT03: rank 5000", "whole number"),
        ("OUT03: alpha 0", "nothing could be learned"),
        ("OUT03: lr -1", "number from 0"),
        ("OUT03: lr nan", "number from 0"),
        ("OUT03: ,", "sets nothing"),
        ("include: /(/", "not a regular expression"),
        ("block_dims: 1,2,3", "has 3 numbers; this model takes 25"),
        ("down_lr_weight: 1,2", "takes 12"),
        ("mid_lr_weight: 1,2,3", "takes 1"),
        ("block_dims: " + ",".join(["1.5"] * 25), "not whole"),
        ("up_lr_weight: 1,a", "is not a number"),
        ("OUT07-03: rank 1", "backwards"),
    ],
)
def test_lines_without_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_targeting(text, SD15)


@pytest.mark.parametrize(
    "text", ["groups: attenion", "OUT99: rank 1", "OUT03: rnk 1", "up_lr_weight: cosin", "gruops: ff", "block_dim: 1"]
)
def test_misspelt_words_are_named_with_the_nearest(text: str) -> None:
    with pytest.raises(UnknownNameError):
        parse_targeting(text, SD15)


def test_settings_that_contradict_the_network_are_refused(tiny: Components, family: Family) -> None:
    with pytest.raises(InputError, match="full has none"):
        choose("OUT03: rank 8", tiny, family, FullParams(), "full")
    with pytest.raises(InputError, match="conv_rank of the network is 0"):
        choose(f"conv_block_dims: {','.join(['1'] * 25)}", tiny, family)
    with pytest.raises(InputError, match="hold no module that lora trains"):
        choose("IN00", tiny, family)
    with pytest.raises(InputError, match="hold no module"):
        choose("UNET: rank 0 | TE: lr 0", tiny, family)
    with pytest.raises(InputError, match="hold no module"):
        choose("groups: norms", tiny, family)
    assert choose("OUT03: rank 8", tiny, family, LohaParams(), "loha")


def test_which_parts_are_trained() -> None:
    def parts(text: str, network: str = "lora") -> tuple[bool, bool]:
        found = get_network(network)
        return parse_targeting(text, SD15).parts(found, found.params())

    assert parts("") == (True, True)
    assert parts("TE") == (False, True)
    assert parts("UNET") == (True, False)
    assert parts("groups: cross-attention") == (True, False)
    assert parts("groups: text") == (False, True)
    assert parts("", "norm") == (True, False)


@pytest.mark.parametrize(
    ("params", "fixture"),
    [
        (LoraParams(rank=4, alpha=1.0), "kohya_sd15_lora_rank4.json"),
        (LoraParams(rank=4, alpha=1.0, conv_rank=4, conv_alpha=1.0), "kohya_sd15_locon_rank4_conv4.json"),
    ],
)
def test_key_lists_equal_kohyas(params: LoraParams, fixture: str) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from lora_atelier.families.sd15 import FULL_SIZES

    family = get_family("sd15")
    with torch.device("meta"):
        components = Components(
            unet=UNet2DConditionModel(**FULL_SIZES["unet"]),
            text_encoders=(CLIPTextModel(CLIPTextConfig(**FULL_SIZES["text_encoder"])),),
        )
    chosen = parse_targeting("", family.blocks).choose(every_target(family, components), get_network("lora"), params)
    choice = Choice(kind="network", name="lora", params=params)
    adapter = AdapterSet.attach([target for target, _ in chosen], choice, seed=0, device="meta")
    expected = json.loads((FIXTURES / fixture).read_text(encoding="utf-8"))
    assert {key: list(value.shape) for key, value in adapter.file_tensors().items()} == expected


@pytest.mark.parametrize(
    ("params", "fixture"),
    [
        (LoraParams(rank=4, alpha=1.0), "kohya_sdxl_lora_rank4.json"),
        (LoraParams(rank=4, alpha=1.0, conv_rank=4, conv_alpha=1.0), "kohya_sdxl_locon_rank4_conv4.json"),
    ],
)
def test_key_lists_of_sdxl_equal_kohyas(params: LoraParams, fixture: str) -> None:
    """The UNet's; those of the text encoders are the same for every network of linear layers."""
    from diffusers import UNet2DConditionModel

    from lora_atelier.families.sdxl import FULL_SIZES

    family = get_family("sdxl")
    with torch.device("meta"):
        components = Components(unet=UNet2DConditionModel(**FULL_SIZES["unet"]))
    targets = every_target(family, components, text_encoder=False)
    chosen = parse_targeting("", family.blocks).choose(targets, get_network("lora"), params)
    choice = Choice(kind="network", name="lora", params=params)
    adapter = AdapterSet.attach([target for target, _ in chosen], choice, seed=0, device="meta")
    expected = json.loads((FIXTURES / fixture).read_text(encoding="utf-8"))
    unet = {key: shape for key, shape in expected.items() if key.startswith("lora_unet_")}
    assert {key: list(value.shape) for key, value in adapter.file_tensors().items()} == unet
    assert {target.stem for target in targets} <= family.accepted_stems(components)


def test_every_target_has_a_name_that_comfyui_knows(tiny: Components, family: Family) -> None:
    accepted = family.accepted_stems(tiny)
    assert all(target.stem in accepted for target in every_target(family, tiny))
    assert isinstance(parse_targeting("", family.blocks), Targeting)
    assert "block_dims" in KOHYA_LISTS
