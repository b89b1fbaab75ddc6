"""Recipes: a published log's lines to the letter, sd-mecha's files, the web UI's and SuperMerger's metadata."""

import json
from pathlib import Path

import pytest

from lora_atelier.core.errors import AtelierError, FormatError, InputError, UnknownNameError
from lora_atelier.merger.block_curves import CURVES, curve_values
from lora_atelier.merger.block_rows import block_names, row_of_key
from lora_atelier.merger.block_weights import BlockWeights
from lora_atelier.merger.expression import Merge, Model, walk
from lora_atelier.merger.recipe.board import parse_board
from lora_atelier.merger.recipe.names import find_model
from lora_atelier.merger.recipe.read import read_recipe
from lora_atelier.merger.shares import shares

NAMES = ["a.safetensors", "b.safetensors", "sub/c.safetensors", "d+e.safetensors", "SD15.safetensors"]


def open_model(name):
    found = find_model(name, NAMES)
    return Model(path=Path(found), name=found)


def read(text, **variables):
    return read_recipe(text, open_model, variables)


def shown(node):
    """The tree as a formula."""
    if isinstance(node, Model):
        return node.name.rpartition("/")[2].removesuffix(".safetensors")
    inside = ", ".join("-" if child is None else shown(child) for child in node.inputs)
    return f"{node.method}({inside}; {getattr(node.params, 'alpha', '')})"


# --- lines ---------------------------------------------------------------------------------------------------------


def test_the_forms_of_a_line():
    recipe = read(
        """
        # a comment
        one = a + b, 0.5
        two = a.safetensors + b [1a2b3c4d] + sub/c, 0.25, fp16   # tail comment
        three = d+e + b, 0.1, fp16, ckpt
        four = a+b, 0.3, safetensors
        """
    )
    assert [shown(result.node) for result in recipe.results] == [
        "weighted_sum(a, b; 0.5)",
        "add_difference(a, b, c; 0.25)",
        "weighted_sum(d+e, b; 0.1)",
        "weighted_sum(a, b; 0.3)",
    ]
    assert [result.name for result in recipe.results] == ["one", "two", "three", "four"]
    assert [result.dtype for result in recipe.results] == ["as the first model", "fp16", "fp16", "as the first model"]
    assert len(recipe.notes) == 1
    assert "three.safetensors is written instead" in recipe.notes[0]


def test_references_by_number_by_name_and_variables():
    recipe = read(
        """
        __BASE__, put SD 1.5 here
        x = a + b, 0.5, safetensors
        y = __O1__ + sub/c + __BASE__, 1.0
        z = x.ckpt + y, 0.25
        """,
        BASE="sd15",
    )
    last = recipe.results[-1].node
    assert (
        shown(last)
        == "weighted_sum(weighted_sum(a, b; 0.5), add_difference(weighted_sum(a, b; 0.5), c, SD15; 1.0); 0.25)"
    )
    merges = [node for node in walk(last) if isinstance(node, Merge)]
    assert len(merges) == 3, "a result used twice is one branch"
    assert {share.name: round(share.least, 6) for share in shares(last)} == {
        "a.safetensors": 0.5, "b.safetensors": 0.5, "sub/c.safetensors": 0.25, "SD15.safetensors": -0.25,
    }  # fmt: skip
    board = parse_board("__BASE__, put SD 1.5 here\nx = a + __BASE__, 0.5")
    assert board.documented == {"__BASE__": "put SD 1.5 here"}
    assert board.variables == ("__BASE__",)


def test_names_are_made_safe_or_composed():
    recipe = read('x:y?"z" = a + b, 0.5\n = a + b, 0.3\nq.ckpt = a + b, 0.1')
    assert [result.name for result in recipe.results] == ["x-y--z-", "a_0.7-b_0.3-Weighted_sum-merged", "q"]


def test_record_003_equal_shares():
    lines = ["m2 = a + b, 0.5", "m3 = m2 + sub/c, 0.333", "m4 = m3 + d+e, 0.25", "m5 = __O3__ + SD15, 0.2, fp16, ckpt"]
    found = shares(read("\n".join(lines)).results[-1].node)
    assert all(abs(share.least - 0.2) < 1e-3 for share in found)


WRONG_LINES = [
    ("", InputError, "recipe is empty"),
    ("# nothing", InputError, "no line that makes a model"),
    ("x = a + b", InputError, "line 1 of the recipe is not of the form"),
    ("x: a + b, 0.5", InputError, "not of the form"),
    ("x = a, 0.5", InputError, "names 1 models"),
    ("x = a + , 0.5", InputError, "names 1 models"),
    ("x = a + b + sub/c + SD15, 0.5", InputError, "names 4 models"),
    ("x = a + b, half", InputError, "'half' where the number M belongs"),
    ("x = a + b, nan", InputError, "alpha is nan"),
    ("x = a + b, 7", InputError, "line 1 of the recipe: M of alpha is 7.0, allowed is -2 to 2"),
    ("x = a + b, 0.5, fp8", InputError, "option 'fp8'; allowed are fp16, ckpt, safetensors"),
    ("x = __O1__ + b, 0.5", InputError, "refers with __O1__ to itself"),
    ("x = a + b, 0.5\ny = __O3__ + b, 0.5", InputError, "to line 3, which does not come before it"),
    ("x = a + __O0__, 0.5", InputError, "does not come before it"),
    ("x = y + a, 0.5\ny = x + b, 0.5", InputError, "the result of line 2, a later one"),
    ("x = x + a, 0.5", InputError, "refers to itself"),
    ("x = a + __WHAT__, 0.5", InputError, "variable __WHAT__, which has no value"),
    ("__WHAT__, your base\nx = a + __WHAT__, 0.5", InputError, r"__WHAT__ \(your base\), which has no value"),
    ("__WHAT__\nx = a + b, 0.5", InputError, "begins with '_'"),
    ("x = a + bee, 0.5", UnknownNameError, "unknown model in the recipe 'bee'"),
    ("x = a + old.ckpt, 0.5", InputError, "Convert Checkpoint"),
    ("{", FormatError, "not valid JSON"),
    ("{}", UnknownNameError, "kind of recipe"),
    ('{"nodes": [], "version": 1}', FormatError, "list of 1 to"),
    ('{"nodes": [{"model": "a"}], "version": 9}', FormatError, "must have version 1"),
    ('{"version": 1, "nodes": [{"merge": "slerp", "inputs": [1, 0]}, {"model": "a"}]}', InputError, "refers to node 1"),
    ('{"version": 1, "nodes": [{"model": "a"}, {"merge": "slurp", "inputs": [0, 0]}]}', UnknownNameError, "'slerp'"),
    ('{"version": 1, "nodes": [{"model": "a"}, {"merge": "slerp"}]}', FormatError, "node 1 of the recipe is malformed"),
    ("version 9", FormatError, "only 'version 0.1.0' is known"),
    ("version 0.1.0", FormatError, "does not end with a model"),
    ('version 0.1.0\nmerge "weighted_sum" &0 &1', InputError, "&0 refers to an instruction"),
    ('version 0.1.0\nmodel "a"\nmerge "rotate" &0 &0', UnknownNameError, "counterpart here"),
    ('version 0.1.0\nmodel "a', FormatError, "quote is not closed"),
    ('version 0.1.0\nfetch "a"', FormatError, "'fetch' is no instruction"),
]


@pytest.mark.parametrize(("text", "kind", "message"), WRONG_LINES, ids=[repr(row[0])[:50] for row in WRONG_LINES])
def test_wrong_recipes(text, kind, message):
    with pytest.raises(AtelierError, match=message) as caught:
        read(text)
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value)


def test_names():
    assert find_model("A", NAMES) == "a.safetensors"
    assert find_model("c", NAMES) == "sub/c.safetensors"
    assert find_model("sub\\c.ckpt", NAMES) == "sub/c.safetensors"
    with pytest.raises(InputError, match="could be"):
        find_model("c", [*NAMES, "other/c.safetensors"])


# --- sd-mecha ------------------------------------------------------------------------------------------------------


def test_mecha():
    recipe = read(
        "\n".join(
            [
                "version 0.1.0",
                'model "C:\\\\models\\\\a.safetensors" model_config="sd1-ldm" merge_space="weight"',
                'model "b.safetensors"',
                'model "SD15.safetensors"',
                'merge "subtract" &1 &2',
                "# a comment",
                'merge "add_difference" &0 &3 alpha=0.5',
                'merge "subtract" &0 &2',
                'merge "perpendicular_component" &5 &3',
                'merge "add_difference" &0 &6 alpha=1.0',
                'merge "weighted_sum" &4 &7 alpha=0.25',
            ]
        )
    )
    assert recipe.kind == "sd-mecha"
    assert shown(recipe.results[0].node) == (
        "weighted_sum(add_delta(a, difference(b, SD15; ); 0.5), perpendicular_add(a, b, SD15; 1.0); 0.25)"
    )


def test_mecha_masks_blocks_and_what_is_passed_over():
    head = 'version 0.1.0\nmodel "a"\nmodel "b"\nmodel "SD15"\n'
    recipe = read(
        head
        + 'merge "train_difference_mask" &0 &1 &2 alpha=0.7\nmerge "subtract" &1 &2\n'
        + 'merge "add_difference" &0 &4 alpha=&3'
    )
    assert shown(recipe.results[0].node) == "train_difference(a, b, SD15; 0.7)"
    recipe = read(head + 'dict BASE=0.1 IN00=0.3 M00=1.0 VAE=0.5\nmerge "weighted_sum" &0 &1 alpha=&3')
    ((_, weights),) = recipe.results[0].node.weights
    rows = weights.resolve("sd15", 0.1).weights
    assert (rows["TE"], rows["IN00"], rows["MID"], rows["VAE"], rows["OUT03"]) == (0.1, 0.3, 1.0, 0.5, 0.1)
    recipe = read(head + 'merge "cast" &0 dtype="fp32"\nmerge "fallback" &3 &1\nmerge "n_average" &4 &1 &2')
    assert shown(recipe.results[0].node) == "n_average(a, b, SD15; )"
    assert len(recipe.notes) == 2
    recipe = read(head + 'merge "subtract" &0 &2\nmerge "subtract" &1 &2\nmerge "ties_sum" &3 &4 k=0.5')
    assert recipe.results[0].node.params.keep == 0.5
    assert recipe.results[0].node.params.vote == "count"


def test_what_mecha_writes_is_read(tmp_path):
    sd_mecha = pytest.importorskip("sd_mecha")
    a, b = (sd_mecha.model(str(tmp_path / f"{name}.safetensors"), "sd1-ldm") for name in "ab")
    text = sd_mecha.serialize(sd_mecha.weighted_sum(a, b, alpha=0.3), finalize=False)
    assert shown(read(text).results[0].node) == "weighted_sum(a, b; 0.3)"


# --- the web UI ----------------------------------------------------------------------------------------------------

MODELS = {"f" * 64: {"name": "a.safetensors [ffffffffff]"}, "e" * 64: {"name": "b.ckpt"}, "d" * 64: {"name": "SD15"}}


def webui(**recipe):
    return json.dumps({"sd_merge_recipe": json.dumps(recipe), "sd_merge_models": json.dumps(MODELS)})


def test_webui():
    text = webui(
        type="webui", primary_model_hash="f" * 64, secondary_model_hash="e" * 64, tertiary_model_hash="d" * 64,
        interp_method="Add difference", multiplier=0.7, save_as_half=True, custom_name="mine", bake_in_vae="x.vae.pt",
    )  # fmt: skip
    recipe = read(text)
    assert shown(recipe.results[0].node) == "add_difference(a, b, SD15; 0.7)"
    assert (recipe.results[0].name, recipe.results[0].dtype) == ("mine", "fp16")
    assert "x.vae.pt" in recipe.notes[0]
    with pytest.raises(InputError, match="mixes nothing"):
        read(webui(type="webui", interp_method="No interpolation"))
    with pytest.raises(FormatError, match="names no secondary_model_hash"):
        read(webui(type="webui", interp_method="Weighted sum", primary_model_hash="f" * 64, multiplier=0.5))


def test_supermerger():
    vector = ",".join(["0.5"] * 12 + ["1"] + ["0.25"] * 12)
    text = webui(
        type="sd-webui-supermerger", weights_alpha=vector, weights_beta=None, model_a="f" * 64, model_b="e" * 64,
        model_c=None, base_alpha=0.1, base_beta=0.0, mode="Weight sum:A*(1-alpha)+B*alpha", mbw=True,
        elemental_merge="IN05-OUT05:attn:0", calcmode="normal",
    )  # fmt: skip
    node = read(text).results[0].node
    ((name, weights),) = node.weights
    rows = weights.resolve("sd15", node.params.alpha)
    assert (name, rows.weights["TE"], rows.weights["IN03"], rows.weights["MID"], rows.weights["OUT11"]) == (
        "alpha", 0.1, 0.5, 1.0, 0.25,
    )  # fmt: skip
    assert rows.weights["VAE"] == 0.0
    assert len(rows.rules) == 1
    cosine = read(
        webui(type="sd-webui-supermerger", model_a="f" * 64, model_b="e" * 64, base_alpha=0.4, base_beta=0, mbw=False,
              mode="Weight sum:A*(1-alpha)+B*alpha", calcmode="cosineA")
    )  # fmt: skip
    assert shown(cosine.results[0].node) == "cosine_a(a, b; 0.4)"
    with pytest.raises(InputError, match="not known"):
        read(webui(type="sd-webui-supermerger", mode="Weight sum", calcmode="extract"))


# --- block weights -------------------------------------------------------------------------------------------------

SHARED = {
    "SMOOTHSTEP*2": {1: 0.0101273148148148, 12: 1.0, 20: 0.148148148148148, 24: 0.0},
    "R_SMOOTHSTEP*3": {1: 0.984809027777778, 9: 0.05078125, 24: 0.0},
    "SMOOTHSTEP*4": {9: 0.734375, 12: 0.0, 23: 0.0202546296296307},
    "SMOOTHSTEP/2": {1: 0.0196759259259259, 12: 1.0, 13: 0.980324074074074},
    "SMOOTHSTEP/3": {1: 0.04296875, 8: 1.0, 16: 0.0, 24: 1.0},
    "R_SMOOTHSTEP/4": {1: 0.925925925925926, 6: 0.0, 24: 1.0},
    "COSINE": {0: 1.0, 1: 0.995722430686905, 12: 0.5},
    "TRUE_CUBIC_HERMITE": {0: 0.0, 1: 0.199031876929012, 12: 0.520833333333333, 23: 0.842634789737655, 24: 1.0},
    "TRUE_REVERSE_CUBIC_HERMITE": {0: 1.0, 1: 0.800968123070988, 24: 0.0},
    "FAKE_CUBIC_HERMITE": {0: 0.0, 1: 0.157576195987654, 12: 0.5, 23: 0.842423804012347},
    "GRAD_V": {0: 1.0, 1: 0.9166666667, 12: 0.0, 24: 1.0},
    "RING08_SOFT": {4: 0.0, 5: 0.5, 6: 1.0, 8: 1.0, 9: 0.5, 10: 0.0, 15: 0.5, 19: 0.5, 20: 0.0},
    "RING10_3": {5: 0.0, 6: 1.0, 10: 1.0, 11: 0.0, 14: 1.0, 18: 1.0, 19: 0.0},
    "MID12_50": {4: 0.0, 5: 0.5, 18: 0.5, 19: 0.0},
    "WRAP14": {6: 1.0, 7: 0.0, 17: 0.0, 18: 1.0},
    "OUT12_5": {11: 0.0, 12: 0.5, 13: 1.0},
    "OUT07": {17: 0.0, 18: 1.0},
}
"""Digits of the shared preset list at some of its 25 places."""


@pytest.mark.parametrize("name", SHARED)
def test_curves_are_the_shared_presets(name):
    values = curve_values(name, 25)
    for place, digit in SHARED[name].items():
        assert values[place] == pytest.approx(digit, abs=1e-9), (name, place)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_curve_fits_every_family(name, family):
    rows = BlockWeights(text=name).resolve(family, 0.5).weights
    assert set(block_names(family)) < set(rows)
    assert all(-1e-9 <= value <= 1 + 1e-9 for value in rows.values())
    assert rows["VAE"] == 0.0


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        ("", "sd15", {"TE": 0.5, "IN00": 0.5, "OUT11": 0.5, "VAE": 0.0, "TIME": 0.5, "END": 0.5}),
        ("ALL_B VAE=1", "sd15", {"TE": 1.0, "VAE": 1.0, "TIME": 1.0}),
        ("GRAD_V", "sdxl", {"TE": 0.5, "IN00": 1.0, "MID": 0.0, "OUT08": 1.0, "LABEL": 1.0, "TE1": 0.5}),
        ("TE=0.3 TE2=0.9 out=0.1", "sdxl", {"TE1": 0.3, "TE2": 0.9, "END": 0.1, "OUT08": 0.5}),
        (",".join(map(str, range(4))) + ",0" * 22, "sd15", {"TE": 0.0, "IN00": 1.0, "IN02": 3.0, "TIME": 1.0}),
        ("0 " * 25 + "base=0.7 in4-5=1", "sd15", {"TE": 0.7, "IN04": 1.0, "IN05": 1.0, "IN06": 0.0}),
        ("reverse-smoothstep", "sd15", {"IN00": 1.0, "OUT11": 0.0}),
    ],
)
def test_rows(text, family, expected):
    rows = BlockWeights(text=text).resolve(family, 0.5).weights
    assert {name: rows[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "elements", "family", "message"),
    [
        ("0 " * 17, "", "sd15", "17 numbers; a merge of these models takes 25 .* or 26"),
        ("0 " * 26, "", "sdxl", "26 numbers; a merge of these models takes 19 .* or 20"),
        ("GRAD_X", "", "sd15", "did you mean 'GRAD_"),
        ("0.5 huge 1", "", "sd15", "'huge' in the block weights is not a number"),
        ("IN12=1", "", "sd15", "IN12"),
        ("IN04=much", "", "sd15", "not a number"),
        ("MID=9", "", "sd15", "allowed is -4 to 4"),
        ("LABEL=1", "", "sd15", "LABEL"),
        ("", "IN04:attn", "sd15", "BLOCKS:ELEMENTS:WEIGHT"),
        ("", "IN44:attn:1", "sd15", "IN44"),
    ],
)
def test_wrong_block_weights(text, elements, family, message):
    with pytest.raises(InputError, match=message):
        BlockWeights(text=text, elements=elements).resolve(family, 0.5)


def test_rules_spare_the_vae_unless_it_is_named():
    rows = BlockWeights(text="ALL_A", elements=":to_k:1\nNOT IN MID:to_q:0.5\nVAE::0.25").resolve("sd15", 0.5)
    unet = "model.diffusion_model."
    assert rows.of(f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight") == 1.0
    assert rows.of(f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight") == 0.0
    assert rows.of(f"{unet}output_blocks.4.1.transformer_blocks.0.attn1.to_q.weight") == 0.5
    assert rows.of("first_stage_model.decoder.conv_in.weight") == 0.25
    assert rows.of("model_ema.decay") == 0.0
    assert row_of_key("betas") is None
