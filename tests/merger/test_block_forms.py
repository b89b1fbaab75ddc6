"""Vectors of other tools, dialects of the text, elemental rules; golden numbers and properties."""

import json
import random
from pathlib import Path

import pytest

from lora_atelier.core.errors import FormatError, InputError, UnknownNameError
from lora_atelier.families._spec import get_family
from lora_atelier.merger.lora.blocks import explain_weights
from lora_atelier.merger.lora.dialects import parse_weights, split_items
from lora_atelier.merger.lora.elements import USER_ELEMENTS_NAME, load_elements, parse_sets
from lora_atelier.merger.lora.forms import FORMS, places_of
from lora_atelier.merger.lora.handle import stem_of_key
from lora_atelier.merger.lora.presets import clashes, load_presets, parse_presets

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def stems_of(fixture):
    keys = json.loads((FIXTURES / f"{fixture}.json").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(stem for stem in map(stem_of_key, keys) if stem))


FILES = {
    ("sd15", "lora"): stems_of("kohya_sd15_lora_rank4"),
    ("sd15", "locon"): stems_of("kohya_sd15_locon_rank4_conv4"),
    ("sdxl", "lora"): stems_of("kohya_sdxl_lora_rank4"),
    ("sdxl", "locon"): stems_of("kohya_sdxl_locon_rank4_conv4"),
}


def explained(text, family="sd15", kind="lora", **kwargs):
    return explain_weights(text, family=family, stems=FILES[family, kind], **kwargs)


def by_block(text, family="sd15", kind="lora", **kwargs):
    """The set of factors per block."""
    found = {}
    for stem, factor in explained(text, family, kind, **kwargs).factors.items():
        found.setdefault(get_family(family).block_of_stem(stem), set()).add(factor)
    return {block: factors.pop() if len(factors) == 1 else factors for block, factors in found.items()}


def numbered(length):
    return ",".join(f"{0.01 * (index + 1):.2f}" for index in range(length))


# --- golden vectors: what everybody shares, by the lists they were read from ---------------------------------------


def spelled(text):
    """``1,0x12,1`` -> the numbers."""
    numbers = []
    for item in text.split(","):
        value, _, times = item.partition("x")
        numbers += [float(value)] * int(times or 1)
    return tuple(numbers)


GOLDEN = [
    ("NONE", "0x17"), ("ALL", "1x17"), ("ALL0.5", "0.5x17"), ("INS", "1x4,0x13"), ("IND", "1,0x3,1x3,0x10"),
    ("INALL", "1x7,0x10"), ("MIDD", "1,0x3,1x8,0x5"), ("OUTD", "1,0x7,1x4,0x5"), ("OUTS", "1,0x11,1x5"),
    ("OUTALL", "1,0x7,1x9"), ("NIN", "1,0x7,1x9"), ("LC-NIN", "1,0x12,1,1x12"),
    ("LC-NCNF", "1,1x12,1,0,1,1,0,0,0,1,1,1,1,0,0"), ("NCNF", "1x8,0x3,1x4,0x2"),
    ("LC-NF", "1,1x12,1,0,1,1,0,0,0,1,1,1,1,1,1"), ("NF", "1x8,0x3,1x6"), ("F", "0x8,1x3,0x6"),
    ("LC-NC", "1,1x12,1,1x10,0x2"), ("NC", "1x15,0x2"), ("LC-NP", "1x8,0x6,1x10,0x2"),
    ("LC-NPNBASE", "0,1x7,0x6,1x10,0x2"), ("LC-CT", "0x9,1x17"), ("LC-Face", "0x16,1x3,0,1x3,0x2,1"),
    ("NINALL", "0x7,1x10"), ("CHARA", "1x5,0x3,1x7,0x2"), ("BG", "1x6,0.2,1,0.2,0,0,0.8,1x3,0x2"),
    ("BODY", "1x8,0x3,1x6"), ("BODY0.5", "1x6,0.2,1,0.2,0,0,0.8,1x5"), ("FACE", "1,0x7,1x3,0x6"),
    ("FACE0.5", "1,0x7,0.8,1,1,0.2,0x5"), ("FACE0.2", "1,0x7,0.2,0.6,0.8,0.2,0x5"), ("HAND", "1,0,1,1,0.2,0x12"),
    ("CLOTHING", "1x5,0,0.2,0,0.8,1,1,0.2,0x5"), ("POSE", "1,0x5,0.2,1x3,0x7"), ("PALETTE", "1,0x10,0.8,1x5"),
    ("KEEPCHAR", "1x5,0x3,1x7,0x2"), ("KEEPBG", "1x6,0.2,1,0.2,0,0,0.8,1x3,0x2"), ("REDUCEFIT", "1,0x7,1x9"),
    ("BODY", "1x13,0x5,1x8"), ("FACE", "1,0x13,1x7,0x5"), ("FACE0.5", "1,0x13,0.2,0.5,0.8,1x3,0.2,0x5"),
    ("CLOTH", "1x8,0,0.2x3,0x4,0.5,0.8,1,1,0.2,0x5"), ("POSE", "1,0x8,0.2,1x9,0x7"),
    ("KEEPBG", "1x9,0.2,0.4,0.8,1,1,0.8,0.4,0.2,0.2,0,0,0.8,1x3,0x2"), ("PALETTE", "1,0x19,0.8,1x5"),
    ("MIDD0.2", "1,0x5,0.2,0.4,0.4,0.2,0x7"), ("MIDD0.8", "1,0x4,0.5,0.8,0.8,0.4,0x8"),
    ("MOUT", "1,0x5,1x8,0.5,0x2"), ("FLUXALL", "1x61"),
    ("INS", "1x3,0x9"), ("IND", "1,0x2,1x2,0x7"), ("INALL", "1x5,0x7"), ("MIDD", "1,0x2,1x6,0x3"),
    ("MID", "1,0x4,1,0x6"), ("OUTD", "1,0x5,1x3,0x3"), ("OUTS", "1,0x8,1x3"), ("OUTALL", "1,0x5,1x6"),
    ("Face-1", "1,0x5,1x3,0x3"), ("Face-2", "1,0,1,0,1,0,0.8,1,1,0.6,0,1"), ("Noface", "1x4,0,1,0x3,1x3"),
    ("Face-3", "1,0x3,1,0.3,1x3,0.8,0,0.4"), ("Wear", "1x3,0x3,1x3,0x3"), ("Pose", "1,0x4,1x3,0x4"),
    ("ArtStyle", "1,0x8,1x3"), ("Char", "1x3,0x3,1x6"), ("BG", "1x4,0,1,0x3,1x3"), ("Soft", "1,0x5,1x6"),
    ("SD-LyC-MIDALL", "1,0x11,1x3,0x12"), ("SDXL-LyC-INALL", "1x10,0x10"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "numbers"), GOLDEN)
def test_shipped_numbers_are_those_that_everybody_shares(name, numbers):
    wanted = spelled(numbers)
    assert load_presets()[name].vectors[len(wanted)] == wanted


def test_letters_of_shipped_presets():
    presets = load_presets()
    assert presets["ROUT"].vectors[17] == (*(1.0,) * 8, *("R",) * 9)
    assert presets["AOUT"].vectors[17] == ("A", *(1.0,) * 11, *("A",) * 5)
    assert presets["AB"].vectors[17] == ("A", *("B",) * 11, *("A",) * 5)


def test_no_shipped_preset_clashes():
    assert clashes(load_presets()) == []


# --- forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "kind"), FILES)
def test_every_module_has_a_place_that_ends_in_its_block(family, kind):
    found = get_family(family)
    for stem in FILES[family, kind]:
        places = places_of(found, stem)
        assert places[-1] == found.block_of_stem(stem)
        assert len(set(places)) == len(places)


@pytest.mark.parametrize("form", [form for forms in FORMS.values() for form in forms], ids=lambda form: form.summary)
def test_a_vector_of_ones_is_the_plain_loader_where_it_names_all(form):
    family = "sdxl" if form in FORMS["sdxl"] else "sd15"
    kind = "lora" if form is FORMS[family][0] else "locon"
    assert set(explained(f"{','.join('1' * form.length)} form={form.dialect}", family, kind).factors.values()) == {1.0}


def test_forms_without_base_leave_the_text_encoder_at_one():
    found = by_block(numbered(25), "sd15", "locon")
    assert (found["TE"], found["IN01"], found["MID"], found["OUT11"]) == (1.0, 0.02, 0.13, 0.25)
    found = by_block(numbered(19), "sdxl", "locon")
    assert (found["TE"], found["IN08"], found["MID"], found["OUT08"]) == (1.0, 0.09, 0.10, 0.19)


def test_the_middle_may_have_three_numbers():
    found = by_block(numbered(27), "sd15", "locon")
    assert (found["TE"], found["IN01"], found["MID"], found["OUT00"]) == (0.01, 0.02, {0.13, 0.14, 0.15}, 0.16)
    found = by_block(numbered(23), "sdxl", "locon")
    assert (found["TE"], found["IN01"], found["MID"], found["OUT08"]) == (1.0, 0.03, {0.11, 0.12, 0.13}, 0.22)


def test_21_numbers_are_of_two_tools_and_must_be_told_apart():
    with pytest.raises(InputError, match="two tools read differently.*form=supermerger.*form=inspire"):
        explained(numbered(21), "sdxl", "locon")
    one = by_block(f"{numbered(21)} form=supermerger", "sdxl", "locon")
    other = by_block(f"form=inspire {numbered(21)}", "sdxl", "locon")
    assert (one["IN01"], one["MID"], one["OUT08"]) == (0.03, 0.11, 0.20)
    assert (other["IN01"], other["MID"], other["OUT08"]) == (0.02, {0.10, 0.11, 0.12}, 0.21)


def test_110_numbers_name_every_transformer_block():
    stems = FILES["sdxl", "locon"]
    found = explained(numbered(110), "sdxl", "locon").factors
    place = FORMS["sdxl"][6].blocks.index
    for stem, row in (
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "TE1"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "TE2"),
        ("lora_unet_input_blocks_4_1_proj_in", "IN04.1"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "IN04.1.1"),
        ("lora_unet_middle_block_1_transformer_blocks_9_ff_net_2", "MID.1.9"),
        ("lora_unet_output_blocks_2_2_conv", "OUT02.2"),
    ):
        assert stem in stems
        assert found[stem] == pytest.approx(0.01 * (place(row) + 1)), row
    assert explained(numbered(109), "sdxl", "locon").factors["lora_te1_text_model_encoder_layers_0_mlp_fc1"] == 1.0


def test_time_size_and_output_layers_have_rows_of_their_own_where_a_form_has_them():
    family = get_family("sdxl")
    assert places_of(family, "lora_unet_time_embed_0") == ("TIME", "EMB", "IN00")
    assert places_of(family, "lora_unet_label_emb_0_0") == ("LABEL", "EMB", "IN00")
    assert places_of(family, "lora_unet_out_2") == ("END", "OUT08")
    assert places_of(family, "lora_unet_conv_in") == ("IN00.0", "IN00")
    stems = ("lora_unet_time_embed_0", "lora_unet_out_2", "lora_unet_input_blocks_4_1_proj_in")
    kohya = explain_weights(numbered(23), family="sdxl", stems=stems).factors
    assert list(kohya.values()) == [0.01, 0.23, 0.06]
    inspire = explain_weights(f"{numbered(21)} form=inspire", family="sdxl", stems=stems).factors
    assert list(inspire.values()) == [0.01, 0.01, 0.05]


@pytest.mark.parametrize(
    ("family", "stem", "places"),
    [
        ("sd15", "lora_unet_down_blocks_1_attentions_0_proj_in", ("IN04.1", "IN04")),
        ("sd15", "unet.down_blocks.1.resnets.0.conv1", ("IN04.0", "IN04")),
        ("sd15", "lora_unet_up_blocks_0_upsamplers_0_conv", ("OUT02.1", "OUT02")),
        ("sd15", "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2", ("MID.1.0", "MID.1", "MID")),
        ("sdxl", "lora_unet_mid_block_attentions_0_transformer_blocks_3_ff_net_2", ("MID.1.3", "MID.1", "MID")),
        ("sdxl", "text_encoder_2.text_model.encoder.layers.0.mlp.fc1", ("TE2", "TE")),
        ("sdxl", "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1", ("TE2", "TE")),
        ("sdxl", "lora_te1_text_model_encoder_layers_0_mlp_fc1", ("TE1", "TE")),
    ],
)
def test_places_in_every_naming(family, stem, places):
    assert places_of(get_family(family), stem) == places


@pytest.mark.parametrize("name", ["ALL", "NONE", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL"])
@pytest.mark.parametrize(("family", "kind"), FILES)
def test_the_usual_names_work_for_every_kind_of_file(name, family, kind):
    found = by_block(name, family, kind)
    assert set(found.values()) <= {0.0, 1.0}
    assert found["TE"] == (0.0 if name == "NONE" else 1.0)
    if name.startswith("OUT"):
        assert not any(value for block, value in found.items() if block.startswith("IN"))


def test_numbers_of_another_family_are_named():
    with pytest.raises(InputError, match="17 numbers; a LoRA of family sdxl takes 12 .*17 are for sd15 and sd2"):
        explained(numbered(17), "sdxl")
    with pytest.raises(InputError, match="61 are for Flux"):
        explained("FLUXALL")


def test_names_with_the_inspire_packs_prefix():
    assert by_block("SD-BODY") == by_block("BODY")
    assert by_block("SD-LyCOFACE", kind="locon") == by_block("FACE", kind="locon")
    assert by_block("SDXL-INALL", "sdxl") == by_block("INALL", "sdxl")


def test_random_vectors_land_on_their_own_blocks():
    """Property: whatever the numbers and whatever the file lacks, a module has the number of its own block."""
    chance = random.Random(7)
    for (family, _kind), stems in FILES.items():
        block_of = get_family(family).block_of_stem
        for form in FORMS[family]:
            if form.dialect not in ("lbw", "mbw"):
                continue
            numbers = [round(chance.uniform(-2, 2), 4) for _ in range(form.length)]
            some = chance.sample(stems, 40)
            found = explain_weights(" ".join(map(str, numbers)), family=family, stems=some).factors
            table = dict(zip(form.blocks, numbers, strict=True))
            for stem in some:
                default = 1.0 if form.dialect == "mbw" and block_of(stem) == "TE" else 0.0
                assert found[stem] == table.get(block_of(stem), default)


# --- dialects ----------------------------------------------------------------------------------------------------


def test_items_keep_the_colons_of_rules():
    assert split_items("lbw=NIN:lbwe=IN05-OUT05:attn:0,:proj:0.5:start=3") == [
        "lbw=NIN", "lbwe=IN05-OUT05:attn:0,:proj:0.5", "start=3",
    ]  # fmt: skip


def test_items_of_the_extension():
    found = parse_weights("lbw=AOUT:x=0.5:lbwe=ATTNDEEPOFF:step=5-10")
    assert (found.preset, found.elements, found.start, found.stop, found.letters["X"]) == (
        "AOUT", "ATTNDEEPOFF", 5, 10, 0.5,
    )  # fmt: skip
    assert parse_weights("w=1,0,1").slots == (1.0, 0.0, 1.0)
    assert parse_weights("NIN:start=3").start == 3
    assert parse_weights("stop=8").stop == 8
    assert parse_weights("NIN:start=0").start == 1


def test_sd_next_items():
    found = by_block("in=0:mid=1:out=0.5", kind="locon")
    assert {value for block, value in found.items() if block.startswith("IN")} == {0.0}
    assert {value for block, value in found.items() if block.startswith("OUT")} == {0.5}
    assert (found["MID"], found["TE"]) == (1.0, 1.0)


def test_blocks_by_name_lie_on_top():
    found = by_block("NIN MID=0.5 IN04-05=0.25")
    assert (found["MID"], found["IN04"], found["IN05"], found["IN07"], found["OUT03"]) == (0.5, 0.25, 0.25, 0.0, 1.0)
    found = by_block("ALL NOT OUT03-06 TE=0")
    assert [block for block, value in found.items() if value] == ["TE", "OUT03", "OUT04", "OUT05", "OUT06"]
    assert by_block("TE1=0.5 TE2=0.25", "sdxl")["TE"] == {0.5, 0.25}
    assert by_block(f"{numbered(27)} MID=0.9", kind="locon")["MID"] == 0.9


def test_inspires_percent_form_counts_what_the_file_has():
    found = by_block("%default=1, base=0.5, in1-2=0.25, in3=0.125, out=0")
    assert (found["TE"], found["IN01"], found["IN02"], found["IN04"], found["IN05"]) == (0.5, 0.25, 0.25, 0.125, 1.0)
    assert {value for block, value in found.items() if block.startswith("OUT")} == {0.0}
    assert by_block("%default=0.5")["TE"] == 0.5
    assert by_block("%mid2=0", kind="locon")["MID"] == {0.0, 1.0}
    with pytest.raises(InputError, match="6 IN blocks"):
        explained("%in7=0")
    with pytest.raises(InputError, match="Flux"):
        explained("%double1=0")
    with pytest.raises(InputError, match="'on=1'"):
        explained("%on=1")


def test_letters_halves_and_offsets():
    presets = parse_presets("P:A,a,B,b,X,X+0.2,X-0.2," + ",".join("0" * 10), origin="x")
    found = explained("P A=1 B=0.5 X=0.3", presets=presets).weights
    values = [found[row] for row in ("TE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08")]
    assert values == pytest.approx([1.0, 0.5, 0.5, 0.25, 0.3, 0.5, 0.1])
    drawn = explained(",".join("U" * 17) + " seed=4").weights
    assert all(-0.5 <= value <= 1.5 for value in drawn.values())
    assert len(set(drawn.values())) > 10
    assert drawn == explained(",".join("U" * 17) + " seed=4").weights


def test_the_cells_words():
    one, other = explained("XYZ=NIN").factors, explained("ZYX=NIN").factors
    assert one == explained("NIN").factors
    assert all(one[stem] + other[stem] == 1.0 for stem in one)
    with pytest.raises(InputError, match="grid"):
        explained("XYZ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start=2.5", "sampler step"),
        ("step=5", "step=5-10"),
        ("start=7:stop=7", "never on"),
        ("NIN:OUTALL", "second vector"),
        ("IN04=x", "gives no number"),
        ("x=", "gives no number"),
        ("IN44=0.5", "IN44"),
        ("NIN form=best", "form=best"),
        ("double_blocks[0-10]", "Flux"),
        ("lbwe=NOSUCHSET", "NOSUCHSET"),
        ("lbwe=IN05:attn:much", "elemental rule"),
        ("lbwe=:NOT:0", "after NOT"),
        ("IN04=inf", "gives no number"),
    ],
)
def test_wrong_texts(text, said):
    with pytest.raises(InputError, match=said):
        explained(text)


def test_steps_are_told():
    resolved = explained("NIN:step=5-10")
    assert (resolved.start, resolved.stop) == (5, 10)
    assert "step 5 to step 9" in resolved.report[-1]


# --- elemental rules ---------------------------------------------------------------------------------------------


def test_attention_off_in_the_deep_blocks():
    resolved = explained("lbwe=ATTNDEEPOFF")
    deep = {"IN05", "IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05"}
    block_of = get_family("sd15").block_of_stem
    for stem, factor in resolved.factors.items():
        assert factor == (0.0 if block_of(stem) in deep and "attn" in stem else 1.0)
    assert any("modules" in line and "attn" in line for line in resolved.report)


def test_later_rules_win_over_earlier_ones_and_over_the_vector():
    found = explained("NONE:lbwe=:attn:1,OUT:attn2:0.5\nMID::0.25").factors
    assert found["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"] == 1.0
    assert found["lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"] == 0.5
    assert found["lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k"] == 1.0
    assert found["lora_unet_mid_block_attentions_0_proj_in"] == 0.25
    assert found["lora_unet_up_blocks_1_attentions_0_proj_in"] == 0.0


def test_not_in_either_field():
    found = explained("lbwe=NOT IN OUT TE:NOT attn proj:0").factors
    off = {stem for stem, factor in found.items() if factor == 0.0}
    assert off
    assert all("mid_block" in stem and "attn" not in stem and "proj" not in stem for stem in off)


def test_elements_are_found_in_either_naming():
    found = explained("lbwe=:in_layers:0", kind="locon").factors
    assert {stem for stem, factor in found.items() if not factor} == {
        stem for stem in found if stem.endswith(("_conv1",)) and "resnets" in stem
    }


def test_sets_of_a_file(tmp_path):
    text = "MINE:IN:attn:0\nOUT:attn:0.5\n\n# a comment\nALL0:::0\n"
    (tmp_path / USER_ELEMENTS_NAME).write_text(text, encoding="utf-8")
    sets = load_elements(tmp_path)
    assert [rule.written() for rule in sets["MINE"]] == ["IN:attn:0", "OUT:attn:0.5"]
    assert "ATTNDEEPON" in sets
    assert set(explained("lbwe=all0", elements=sets).factors.values()) == {0.0}
    with pytest.raises(FormatError, match="line 1"):
        parse_sets("IN:attn:0", origin="x.txt")
    with pytest.raises(FormatError, match="line 1.*no elemental rule"):
        parse_sets("A:IN:attn:x", origin="x.txt")
    with pytest.raises(UnknownNameError, match="ATTNDEEPON"):
        explained("lbwe=ATTNDEEP")


def test_clashes_are_named(tmp_path):
    mine = "NEW:" + ",".join("1" * 17) + "\nNEW:" + ",".join("0" * 17) + "\nOUTALL:" + ",".join("0" * 17)
    (tmp_path / "block_presets.txt").write_text(mine, encoding="utf-8")
    presets = load_presets(tmp_path)
    assert [line.split(" of ")[0] for line in clashes(presets)] == [
        "Preset OUTALL with 17 numbers", "Preset NEW with 17 numbers",
    ]  # fmt: skip
    report = explained("NEW", presets=presets).report
    assert "line 2" in report[1]
    assert "line 1" in report[1]


def test_numbers_for_blocks_that_the_file_lacks_are_named():
    few = tuple(stem for stem in FILES["sd15", "lora"] if "up_blocks_1" in stem)
    report = explain_weights("NIN", family="sd15", stems=few).report
    assert "nothing in IN01" in report[1]
