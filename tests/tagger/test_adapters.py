"""Every published layout: a graph made to its adapter's facts sees red as red; mistakes in a fact would be seen."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.onnx_tagger import ROWS, write_table, write_tagger
from lora_atelier.core import onnx as onnx_module
from lora_atelier.core.errors import FormatError, StorageError, UnknownNameError
from lora_atelier.tagger import runner
from lora_atelier.tagger.adapters import adapters, files_wanted, layouts_of
from lora_atelier.tagger.picking import PickParams
from lora_atelier.tagger.runner import open_tagger, pick

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

HALF = {"mean": (0.5,) * 3, "deviation": (0.5,) * 3, "scale": 1.0, "layout": "NCHW", "sigmoid": False}
NAMES = [name for name, _ in ROWS]
WORDS = {0: "general", 4: "character", 9: "rating"}
CATEGORY = {name: WORDS[number] for name, number in ROWS}


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")


def idx_to_tag():
    return {"idx_to_tag": {str(n): name for n, name in enumerate(NAMES)}, "tag_to_category": CATEGORY}


def wd14(folder):
    return write_tagger(folder / "wd-swinv2-tagger-v3")


def wd14_timm(folder):
    return write_tagger(folder / "wd-eva02-tagger-2026-canary", output="output", **HALF)


def wd14_e621(folder):
    return write_tagger(folder / "eva02_large_E621_FULL_V1")


def animetimm(folder, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225)):
    facts = {
        **HALF, "mean": mean, "deviation": deviation, "channels": "RGB", "sigmoid": True, "output": "prediction",
        "before": ("logits",),
    }  # fmt: skip
    return write_tagger(folder / "caformer_b36.dbv4-full", embedding=True, **facts)


def pixai_v09(folder):
    facts = {**HALF, "channels": "RGB", "sigmoid": True, "output": "prediction", "before": ("logits",)}
    place = write_tagger(folder / "pixai-tagger-v0.9-onnx", embedding=True, **facts)
    lines = ("category,name,threshold", "0,general,0.3", "4,character,0.75")
    (place / "thresholds.csv").write_text("\n".join(lines), encoding="utf-8")
    return place


def pixai_v10(folder):
    place = write_tagger(folder / "pixai-tagger-v1.0", table=False, channels="RGB", output="logits", **HALF)
    order = sorted(range(len(NAMES)), key=lambda n: n)
    names = [f"rating:{NAMES[n][0]}" if n < 4 else NAMES[n] for n in order]
    parts = [["rating", 4], ["general", 7], ["style", 6]]
    write_json(
        place / "config.json", {"tags": names, "tags_split": parts, "category_best_threshold": {"general": 0.25}}
    )
    return place


def cl_tagger(folder):
    place = write_tagger(folder / "cl_tagger_1_02", table=False, output="output", **HALF)
    titled = {str(n): {"tag": name, "category": CATEGORY[name].title()} for n, name in enumerate(NAMES)}
    write_json(place / "tag_mapping.json", titled)
    return place


def cl_tagger_other_form(folder):
    place = write_tagger(folder / "cl_tagger_1_01", table=False, output="output", model="model_optimized.onnx", **HALF)
    write_json(place / "tag_mapping.json", idx_to_tag())
    return place


def cl_tagger_v2(folder):
    place = write_tagger(folder / "cl_tagger_v2", table=False, channels="RGB", output="logits", **HALF)
    write_json(place / "model_vocabulary.json", {"idx_to_tag": NAMES, "tag_to_category": CATEGORY, "num_tags": 17})
    return place


def camie(folder):
    facts = {**HALF, "mean": (0.485, 0.456, 0.406), "deviation": (0.229, 0.224, 0.225), "channels": "RGB"}
    place = write_tagger(
        folder / "camie", table=False, output="refined_predictions", before=("initial_predictions",),
        model="camie-tagger-v2.onnx", **facts,
    )  # fmt: skip
    write_json(place / "camie-tagger-v2-metadata.json", {"dataset_info": {"tag_mapping": idx_to_tag()}})
    return place


def joytag(folder):
    facts = {
        **HALF,
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "deviation": (0.26862954, 0.26130258, 0.27577711),
        "channels": "RGB",
    }
    place = write_tagger(folder / "joytag", table=False, output="output", **facts)
    (place / "top_tags.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return place


def z3d_e621(folder):
    place = write_tagger(folder / "Z3D-E621-Convnext", table=False)
    write_table(place / "tags-selected.csv")
    return place


def deepdanbooru(folder):
    place = write_tagger(folder / "deepdanbooru", table=False, channels="RGB", scale=1.0, model="deepdanbooru.onnx")
    names = [f"rating:{name}" if CATEGORY[name] == "rating" else name for name in NAMES]
    (place / "tags.txt").write_text("\n".join(names), encoding="utf-8")
    (place / "tags-character.txt").write_text("hatsune_miku_(vocaloid)\n", encoding="utf-8")
    return place


def described(folder):
    place = write_tagger(folder / "odd", table=False, channels="RGB", model="odd.onnx", output="out", **HALF)
    (place / "words.csv").write_text(
        "word,kind\n" + "\n".join(f'"{name.replace(chr(34), chr(34) * 2)}",{CATEGORY[name]}' for name in NAMES),
        encoding="utf-8",
    )
    write_json(
        place / "atelier_tagger.json",
        {
            "name": "odd", "layout": "NCHW", "channels": "RGB", "scale": 1.0, "mean": [0.5] * 3, "deviation": [0.5] * 3,
            "pad": "white", "output": "out", "table": "words.csv", "name_column": "word", "category_column": "kind",
            "thresholds": {"general": 0.4, "character": 0.6},
        },
    )  # fmt: skip
    return place


LAYOUTS = {
    "WD14": wd14, "WD14 (timm)": wd14_timm, "WD14 (e621)": wd14_e621, "AnimeTIMM": animetimm, "PixAI v0.9": pixai_v09,
    "PixAI v1.0": pixai_v10,
    "cl_tagger": cl_tagger,
    "cl_tagger, other form": cl_tagger_other_form, "cl_tagger v2": cl_tagger_v2, "Camie": camie, "JoyTag": joytag,
    "Z3D-E621": z3d_e621, "DeepDanbooru": deepdanbooru, "odd": described,
}  # fmt: skip
WITHOUT_RATINGS = {"JoyTag", "Z3D-E621"}
WITHOUT_CHARACTERS = {"JoyTag", "Z3D-E621", "PixAI v1.0"}


def found(tagger, colour, size=(32, 32), **params):
    return {tag.name for tag in pick(tagger.tag_image(Image.new("RGB", size, colour)), PickParams(**params))}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_known_by_its_files_and_sees_colours(tmp_path, kind):
    tagger = open_tagger(LAYOUTS[kind](tmp_path))
    assert tagger.spec.name == kind.partition(",")[0]
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        assert found(tagger, colour) & {"red", "green", "blue"} == {name}
    tags = pick(tagger.tag_image(Image.new("RGB", (32, 32), (255, 0, 0))), PickParams(include_rating=True))
    by_category = {tag.category: tag.name for tag in reversed(tags)}
    assert by_category.get("rating") == (None if kind in WITHOUT_RATINGS else "sensitive")
    if kind not in WITHOUT_CHARACTERS:
        assert by_category["character"] == "hatsune miku (vocaloid)"
    assert tagger.has_embedding is (kind in ("PixAI v0.9", "AnimeTIMM"))
    assert "CPUExecutionProvider" in tagger.describe()


@pytest.mark.parametrize(
    "mistake",
    [
        {"channels": "RGB"},
        {"scale": 1.0},
        {"mean": (127.5, 127.5, 127.5)},
        {"deviation": (127.5, 127.5, 127.5)},
        {"pad": "black"},
        {"pad": "none"},
        {"pad": "edge"},
    ],
    ids=str,
)
def test_a_wrong_fact_is_seen(tmp_path, mistake, monkeypatch):
    """What the other tests look at would fail with any of these mistakes."""
    right = open_tagger(wd14(tmp_path))
    cases = [((255, 0, 0), (32, 32)), ((100, 100, 100), (32, 32)), ((0, 0, 0), (8, 64))]
    expected = [found(right, colour, size) for colour, size in cases]
    monkeypatch.setattr(right, "spec", dataclasses.replace(right.spec, **mistake))
    assert [found(right, colour, size) for colour, size in cases] != expected


def test_mean_and_deviation_are_those_of_the_model_s_own_list_of_stages(tmp_path):
    place = animetimm(tmp_path, mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
    stages = [
        {"type": "pad_to_size", "size": [512, 512], "background_color": "white"},
        {"type": "normalize", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    ]
    usual = open_tagger(place)
    write_json(place / "preprocess.json", {"val": [{"type": "normalize", "mean": 3}], "test": stages})
    tagger = open_tagger(place)
    assert (tagger.spec.mean, tagger.spec.deviation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert tagger.preparation != usual.preparation
    for name, colour in (("red", (255, 0, 0)), ("bright", (250, 250, 250)), ("dark", (5, 5, 5))):
        assert name in found(tagger, colour)
    for wrong, message in (
        ("{", "not valid JSON"),
        ('{"test": [{"type": "normalize", "mean": [1, 2]}]}', r"mean of 'normalize' is \[1, 2\]"),
        ('{"test": [{"type": "normalize", "mean": [0, 0, 0], "std": [1, 0, 1]}]}', "std of 'normalize'"),
    ):
        (place / "preprocess.json").write_text(wrong)
        with pytest.raises(FormatError, match=message):
            open_tagger(place)
    write_json(place / "preprocess.json", {"test": stages[:1]})
    assert open_tagger(place).spec.mean == (0.485, 0.456, 0.406)


def test_category_numbers_mean_what_they_mean_on_the_tagger_s_site(tmp_path):
    """5 is meta on danbooru and species on e621."""
    rows = [(name, 5 if name == "red" else number) for name, number in ROWS]
    words = {}
    for folder in ("wd-swinv2-tagger-v3", "eva02_large_E621_FULL_V1"):
        place = write_tagger(tmp_path / folder, table=False)
        write_table(place / "selected_tags.csv", rows)
        tagger = open_tagger(place)
        words[folder] = dict(zip(tagger.scored.names, tagger.scored.categories, strict=True))["red"]
        assert tagger.thresholds["general"] == (0.2653 if folder.startswith("wd") else 0.6)
    assert list(words.values()) == ["meta", "species"]


def test_squares_are_padded_before_or_after_the_resize(tmp_path):
    """A line of 3 x 300 px: padded first it is blurred away, fitted first it keeps one pixel."""
    line = Image.new("RGB", (3, 300), (0, 0, 0))
    pad_first, fit_first = open_tagger(deepdanbooru(tmp_path)).spec, adapters()["wd14"]
    assert pad_first.fit_first
    assert not fit_first.fit_first
    white = dataclasses.replace(pad_first, pad="white", scale=255.0)
    kept = runner.prepare(line, white, height_px=16, width_px=16)
    blurred = runner.prepare(line, fit_first, height_px=16, width_px=16)
    assert kept.min() == 0.0
    assert blurred.min() > 100.0


def test_camie_is_read_from_its_refined_head(tmp_path):
    tagger = open_tagger(camie(tmp_path))
    first_head = open_tagger(camie(tmp_path / "x"), adapter="camie")
    monochrome = tagger.tag_image(Image.new("RGB", (8, 8), (255, 0, 0))).values
    assert monochrome[NAMES.index("red")] > 0.9  # the first head holds the negated numbers
    first_head._output = 0
    assert first_head.tag_image(Image.new("RGB", (8, 8), (255, 0, 0))).values[NAMES.index("red")] < 0.1


def test_thresholds_beside_the_table_and_in_it_go_before_the_published_ones(tmp_path):
    assert open_tagger(pixai_v09(tmp_path)).thresholds == {"general": 0.3, "character": 0.75}
    told = open_tagger(pixai_v10(tmp_path)).thresholds
    assert (told["general"], told["artist"]) == (0.25, 0.15)
    folder = write_tagger(tmp_path / "own")
    lines = [f'{n},"{name.replace(chr(34), chr(34) * 2)}",{kind},0.9999' for n, (name, kind) in enumerate(ROWS)]
    (folder / "selected_tags.csv").write_text("id,name,category,best_threshold\n" + "\n".join(lines), encoding="utf-8")
    tagger = open_tagger(folder)
    assert "long hair" not in found(tagger, (255, 0, 0))
    assert "long hair" in found(tagger, (255, 0, 0), general_threshold=0.3)
    assert "long hair" in found(tagger, (255, 0, 0), thresholds="long_hair = 0.3")


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ((None, 448, 448, 3), ("NHWC",)),
        ((1, 3, 448, 448), ("NCHW",)),
        ((None, 3, None, None), ("NCHW",)),
        ((None, None, None, None), ("NHWC", "NCHW")),
        ((None, 3, 3, 3), ("NHWC", "NCHW")),
        ((1, 1, 448, 448), ()),
        ((448, 448, 3), ()),
    ],
)
def test_layout_is_told_by_the_three(shape, layouts):
    assert layouts_of(shape) == layouts


def test_logits_are_found_by_trying(tmp_path):
    tagger = open_tagger(write_tagger(tmp_path / "x", sigmoid=False, output="output"))
    plain = open_tagger(write_tagger(tmp_path / "y", output="output"))
    picture = Image.new("RGB", (9, 9), (200, 30, 90))
    np.testing.assert_allclose(tagger.tag_image(picture).values, plain.tag_image(picture).values, atol=1e-6)


def test_files_wanted_names_the_kind_that_the_name_hints_at():
    assert "tag_mapping.json" in files_wanted("taggers/cl_tagger_1_02").partition("Other")[0]
    assert "selected_tags.csv" in files_wanted("taggers/wd-vit-tagger-v3").partition("Other")[0]


def test_a_gpu_that_is_offered_and_not_used_is_said(tmp_path, monkeypatch):
    import onnxruntime

    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    text = open_tagger(write_tagger(tmp_path / "gpu")).describe()
    assert "on CPUExecutionProvider" in text
    assert "! onnxruntime offers CUDAExecutionProvider but could not load it" in text


def test_an_onnxruntime_without_gpu_beside_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(onnx_module, "_torch_sees_cuda", lambda: True)
    assert "onnxruntime-gpu" in onnx_module._fallback([], ["CPUExecutionProvider"])
    assert onnx_module._fallback(["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]) == ""
    monkeypatch.setattr(onnx_module, "_torch_sees_cuda", lambda: False)
    assert onnx_module._fallback([], ["CPUExecutionProvider"]) == ""


def test_an_old_onnxruntime_is_told_the_version_it_needs(tmp_path):
    said = onnx_module._not_a_graph(tmp_path / "m.onnx", "only *guarantees* support up to opset 19", "1.16.0")
    assert "newer onnxruntime than 1.16.0" in said
    assert "1.17" in said


# bad input -----------------------------------------------------------------------------------------------------
def grey_graph(folder):
    return write_shape(folder, [1, 1, 16, 16])


def flat_graph(folder):
    return write_shape(folder, ["N", 768])


def whole_number_graph(folder):
    return write_shape(folder, ["N", 16, 16, 3], kind="UINT8")


def other_layout(folder):
    return write_shape(folder, [1, 3, 16, 16], table="tags-selected.csv")


def write_shape(folder, shape, kind="FLOAT", table="selected_tags.csv"):
    """A graph of one Identity with an input of any shape."""
    from onnx import TensorProto, helper

    folder = folder / "shaped"
    folder.mkdir()
    number = getattr(TensorProto, kind)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["in"], ["out"])],
        "g",
        [helper.make_tensor_value_info("in", number, shape)],
        [helper.make_tensor_value_info("out", number, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_table(folder / table)
    return folder


def with_table(name, text, maker=cl_tagger):
    def make(folder):
        place = maker(folder)
        (place / name).write_text(text, encoding="utf-8")
        return place

    return make


def with_description(**facts):
    def make(folder):
        place = described(folder)
        known = json.loads((place / "atelier_tagger.json").read_text(encoding="utf-8"))
        write_json(place / "atelier_tagger.json", {**known, **facts})
        return place

    return make


BAD = {
    "grey pictures": (grey_graph, FormatError, r"shape \[1, 1, 16, 16\].*NHWC with 3 channels"),
    "no picture": (flat_graph, FormatError, r"shape \[None, 768\]"),
    "whole numbers": (whole_number_graph, FormatError, r"takes tensor\(uint8\)"),
    "another layout than the table's kind": (other_layout, FormatError, r"Z3D-E621 tagger .* order NHWC"),
    "mapping cut short": (with_table("tag_mapping.json", '{"0": {"tag": "re'), FormatError, "not valid JSON"),
    "mapping of something else": (with_table("tag_mapping.json", "[1, 2]"), FormatError, "none of the known tag"),
    "mapping with a gap": (
        with_table("tag_mapping.json", '{"0": {"tag": "a"}, "2": {"tag": "b"}}'), FormatError, "leaves out numbers",
    ),
    "mapping by words": (with_table("tag_mapping.json", '{"a": {"tag": "a"}}'), FormatError, "does not number its"),
    "categories are a list": (
        with_table("tag_mapping.json", '{"idx_to_tag": ["a"], "tag_to_category": []}'), FormatError, "tag_to_category",
    ),
    "split beyond the end": (
        with_table("config.json", '{"tags": ["a"], "tags_split": {"general": 3}}', pixai_v10),
        FormatError,
        "places 0 to 3 of 1",
    ),
    "fewer tags than scores": (
        with_table("top_tags.txt", "red\nblue\n", joytag), FormatError, "17 tags but its table has 2 rows",
    ),
    "an empty list": (with_table("top_tags.txt", "\n", joytag), FormatError, "holds no tag"),
    "threshold of words": (
        with_table("thresholds.csv", "category,threshold\n0,high\n", pixai_v09), FormatError, "threshold 'high'",
    ),
    "threshold of percent": (
        with_table("thresholds.csv", "category,threshold\n0,35\n", pixai_v09), FormatError, "allowed is 0 to 1",
    ),
    "description is no JSON": (with_table("atelier_tagger.json", "{", described), FormatError, "not valid JSON"),
    "description is a list": (with_table("atelier_tagger.json", "[]", described), FormatError, "must hold one object"),
    "unknown key": (with_description(layuot="NCHW"), UnknownNameError, "did you mean 'layout'"),
    "unknown layout": (with_description(layout="CHWN"), FormatError, "layout .* is 'CHWN', allowed is NHWC or NCHW"),
    "unknown padding": (with_description(pad="pink"), FormatError, r"pad .* 'pink', allowed is one of white.*colour"),
    "two means": (with_description(mean=[0.5, 0.5]), FormatError, "mean .* allowed is three numbers"),
    "deviation of nothing": (with_description(deviation=[0.5, 0, 0.5]), FormatError, "deviation .* above 0"),
    "a table elsewhere": (with_description(table="../words.csv"), FormatError, "name of a file beside it"),
    "a table that is not there": (with_description(table="other.csv"), StorageError, r"put other\.csv of the same odd"),
    "thresholds in percent": (with_description(thresholds={"general": 35}), FormatError, "thresholds .* 0 to 1"),
    "too large a side": (with_description(size_px=100_000), FormatError, "size_px .* 8 to 4096"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_reason(tmp_path, case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        open_tagger(make(tmp_path))
