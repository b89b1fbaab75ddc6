"""Block weights: presets by name and kind of file, vectors, and the cases where other tools fail silently."""

import json
from pathlib import Path

import pytest

from lora_atelier.core.errors import FormatError, InputError, UnknownNameError
from lora_atelier.families.sd15 import FAMILY
from lora_atelier.merger.lora.blocks import explain_weights, resolve_weights
from lora_atelier.merger.lora.forms import FORMS, KNOWN_LENGTHS
from lora_atelier.merger.lora.handle import stem_of_key
from lora_atelier.merger.lora.presets import USER_PRESETS_NAME, load_presets, parse_presets

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
SHORT, LONG = FORMS["sd15"][:2]


def stems_of(fixture: str) -> tuple[str, ...]:
    keys = json.loads((FIXTURES / f"{fixture}.json").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(stem for stem in map(stem_of_key, keys) if stem))


LORA = stems_of("kohya_sd15_lora_rank4")
LOCON = stems_of("kohya_sd15_locon_rank4_conv4")


def weights(text, stems=LORA, **kwargs):
    return resolve_weights(text, family="sd15", stems=stems, **kwargs)


def factors(text, stems=LORA, family="sd15", **kwargs):
    return explain_weights(text, family=family, stems=stems, **kwargs).factors


def test_fixture_keys_have_stems():
    assert len(LORA) == 264
    assert len(LOCON) == 350


def test_short_form_is_exactly_the_blocks_of_an_attention_only_file():
    assert {FAMILY.block_of_stem(stem) for stem in LORA} == set(SHORT.blocks)
    assert {FAMILY.block_of_stem(stem) for stem in LOCON} <= set(LONG.blocks)


@pytest.mark.parametrize("text", ["ALL", "", "LC-ALL", "lbw=ALL", ",".join("1" * 26)])
@pytest.mark.parametrize("stems", [LORA, LOCON])
def test_all_is_exactly_one_for_every_stem(text, stems):
    found = factors(text, stems)
    assert list(found) == list(stems)
    assert set(found.values()) == {1.0}


def test_nin_is_resolved_by_the_kind_of_file():
    short, long = weights("NIN"), weights("NIN", LOCON)
    assert short["MID"] == 0.0
    assert long["MID"] == 1.0
    assert short["TE"] == long["TE"] == 1.0
    assert [short[f"OUT{i:02d}"] for i in range(3, 12)] == [1.0] * 9
    assert all(long[f"IN{i:02d}"] == 0.0 for i in range(12))
    assert all(long[f"OUT{i:02d}"] == 1.0 for i in range(12))


def test_ncnf_turns_off_colour_and_face_blocks():
    found = weights("NCNF")
    assert [block for block, weight in found.items() if weight == 0.0] == ["OUT03", "OUT04", "OUT05", "OUT10", "OUT11"]


def test_short_vector_on_a_locon_file_reports_the_blocks_it_zeroes():
    resolved = explain_weights("OUTALL", family="sd15", stems=LOCON)
    assert resolved.length == 17
    assert resolved.weights["OUT00"] == 0.0
    assert resolved.weights["OUT03"] == 1.0
    assert "OUT00" in resolved.report[1]
    assert "IN03" in resolved.report[1]
    assert "26 numbers" in resolved.report[1]
    assert len(explain_weights("OUTALL", family="sd15", stems=LORA).report) == 1


def test_blocks_missing_in_the_file_do_not_shift_the_others():
    row = [round(0.1 * index, 1) for index in range(17)]
    few = [stem for stem in LORA if FAMILY.block_of_stem(stem) in ("IN05", "OUT07")]
    strengths = factors(",".join(map(str, row)), few)
    assert {FAMILY.block_of_stem(stem): value for stem, value in strengths.items()} == {
        "IN05": row[SHORT.blocks.index("IN05")],
        "OUT07": row[SHORT.blocks.index("OUT07")],
    }


@pytest.mark.parametrize("length", [1, 2, 16, 18, 12, 20, 24, 28, 61, 110])
def test_wrong_length_names_the_right_ones(length):
    with pytest.raises(InputError, match=rf"{length} numbers; a LoRA of family sd15 takes 17 .*or 26 "):
        weights(",".join("1" * length))


def test_numbers_may_be_separated_by_spaces_and_line_breaks():
    assert weights("0 " * 16 + "\n0.5")["OUT11"] == 0.5
    assert weights("1, 0.5,\n" + "0," * 15)["IN01"] == 0.5


def test_preset_of_another_architecture_is_refused():
    with pytest.raises(InputError, match=r"ArtStyle has 12 .* takes 17 .* or 26 "):
        weights("ArtStyle")


def test_defective_preset_of_a_person_is_refused_at_use_with_its_place():
    presets = parse_presets("OLD:" + ",".join("1" * 24), origin="my.txt")
    with pytest.raises(InputError, match=r"OLD has 24 \(my.txt line 1\) numbers"):
        weights("OLD", presets=presets)


def test_the_vector_that_is_shared_with_a_number_missing_is_refused():
    shared = "1,1,1,1,1,1,1,1,1,0.2,0.2,0.5,1,1,0,0,0,0.2,0,0,0.8,1,1,1,1"
    for text in (shared, "LYCOBODY0.5"):
        with pytest.raises(InputError, match="25 numbers where 26"):
            weights(text, LOCON, presets=parse_presets(f"LYCOBODY0.5:{shared}", origin="my.txt"))


def test_unknown_name_lists_the_nearest():
    with pytest.raises(UnknownNameError, match="OUTALL"):
        weights("OUTAL")


def test_a_word_among_numbers_is_named():
    with pytest.raises(InputError, match="'one'"):
        weights("1,1,one," + ",".join("1" * 14))
    with pytest.raises(InputError, match="'nan'"):
        weights("nan," + ",".join("1" * 16))


def test_names_match_exactly_first_then_without_case():
    assert weights("nin") == weights("NIN")
    with pytest.raises(InputError, match="Pose has 12"):  # POSE and Pose are two presets
        weights("Pose")


def test_letters_need_values_and_random_ones_repeat():
    with pytest.raises(InputError, match="AOUT holds the letter A"):
        weights("AOUT")
    found = weights("AOUT A=0.25")
    assert (found["TE"], found["IN01"], found["OUT11"]) == (0.25, 1.0, 0.25)
    assert weights("ROUT") == weights("ROUT")
    assert weights("ROUT seed=1") != weights("ROUT seed=2")
    drawn = weights("ROUT seed=1")
    assert all(0.0 <= drawn[f"OUT{i:02d}"] <= 1.0 for i in range(3, 12))
    with pytest.raises(InputError, match="'Z'"):
        weights("ROUT Z=1")


def test_every_shipped_preset_fits_a_form_and_is_finite():
    presets = load_presets()
    for preset in presets.values():
        assert set(preset.vectors) <= KNOWN_LENGTHS, preset.name
    for name in [
        "NONE",
        "ALL",
        "ALL0.5",
        "INS",
        "IND",
        "INALL",
        "MIDD",
        "OUTD",
        "OUTS",
        "OUTALL",
        "NIN",
        "NCNF",
        "NF",
        "F",
        "NC",
        "NINALL",
        "CHARA",
        "BG",
        "BODY",
        "BODY0.5",
        "FACE",
        "FACE0.5",
        "FACE0.2",
        "HAND",
        "CLOTHING",
        "POSE",
        "PALETTE",
        "KEEPCHAR",
        "KEEPBG",
        "REDUCEFIT",
        "MIDD0.2",
        "MIDD0.8",
        "MOUT",
    ]:
        assert 17 in presets[name].vectors, name
        assert set(weights(name)) >= set(SHORT.blocks)
    for name in [
        "LC-NIN",
        "LC-NCNF",
        "LC-NF",
        "LC-NC",
        "LC-NP",
        "LC-NPNBASE",
        "LC-CT",
        "LC-Face",
        "LC-ALL",
        "LC-BCE",
        "LC-IN00",
        "LC-MID",
        "LC-OUT11",
    ]:
        assert 26 in presets[name].vectors, name
        assert set(weights(name, LOCON)) == set(LONG.blocks)


def test_projected_presets_agree_with_their_long_form():
    for name in ("NCNF", "NF", "NC"):
        long, short = weights(name, LOCON), weights(name)
        assert {block: long[block] for block in SHORT.blocks} == short


def test_one_off_presets_turn_off_their_own_block():
    found = weights("LC-OUT05", LOCON)
    assert [block for block, weight in found.items() if weight == 0.0] == ["OUT05"]


def test_own_presets_lie_on_top(tmp_path):
    (tmp_path / USER_PRESETS_NAME).write_text(
        "\ufeff# mine\r\nOUTALL:" + ",".join("0" * 17) + "\nNEW:" + ",".join("1" * 17) + "\n", encoding="utf-8"
    )
    presets = load_presets(tmp_path)
    assert set(weights("OUTALL", presets=presets).values()) == {0.0}
    assert 12 in presets["OUTALL"].vectors
    assert weights("NEW", presets=presets)["MID"] == 1.0
    assert load_presets(tmp_path / "absent") == load_presets()
    load_presets().clear()  # a caller's own copy
    assert load_presets()


def test_bad_line_in_own_presets_is_named(tmp_path):
    (tmp_path / USER_PRESETS_NAME).write_text("\nA:1,2\nBROKEN 1,2,3\n", encoding="utf-8")
    with pytest.raises(FormatError, match=rf"{USER_PRESETS_NAME} line 3"):
        load_presets(tmp_path)


def test_sdxl_rows_are_ready_for_its_names():
    presets = load_presets()
    assert {12, 20} <= set(presets["ALL"].vectors)
    found = resolve_weights("OUTD", family="sdxl", stems=["a"], presets=presets, places=lambda stem: ("OUT01",))
    assert (found["OUT00"], found["OUT01"], found["OUT02"], found["OUT03"]) == (1.0, 1.0, 1.0, 0.0)


def test_stem_of_another_model_is_an_error():
    with pytest.raises(FormatError):
        weights("NIN", ["lora_unet_double_blocks_0_img_attn_qkv"])
