"""Merging whole files: numbers, types, block weights, repairs, refusals; the file and the live result are the same."""

import json

import pytest
import torch

from atelier_tests.helpers.full_size import TINY, write_tiny_checkpoint
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.merger.block_weights import BlockWeights
from lora_atelier.merger.engine import MergedTensors
from lora_atelier.merger.expression import Merge, Model, from_json, to_json
from lora_atelier.merger.merge import dry_run, merge_to_file
from lora_atelier.merger.metadata import RECIPE_KEY
from lora_atelier.merger.methods._spec import get_method
from lora_atelier.merger.plan import OutputParams, planned
from lora_atelier.merger.shares import LIMIT, overshoot, share_report, shares

SMALL = {
    **TINY,
    "unet": {"block_out_channels": [32, 32, 32, 32], "cross_attention_dim": 32},
    "text_encoder": {**TINY["text_encoder"], "num_hidden_layers": 1, "vocab_size": 514, "hidden_size": 32},
}
UNET = "model.diffusion_model."
IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    for number, name in enumerate("abcdefg"):
        write_tiny_checkpoint(made / f"{name}.safetensors", sizes=SMALL, seed=number)
    return made


@pytest.fixture(scope="module")
def numbers(folder):
    return {name: read_tensors(folder / f"{name}.safetensors") for name in "abcdefg"}


def model(folder, name):
    return Model(path=folder / f"{name}.safetensors", name=name)


def merge(method, *inputs, weights=(), label="", **params):
    return Merge(
        method=method, inputs=inputs, params=get_method(method).params(**params), weights=tuple(weights), label=label
    )


def change(folder, name, target, edit, metadata=None):
    tensors = read_tensors(folder / f"{name}.safetensors")
    edit(tensors)
    header = read_header(folder / f"{name}.safetensors")
    write_tensors(target, tensors, {**header.metadata, **(metadata or {})})
    return Model(path=target, name=target.stem)


def result_of(root, tmp_path, **output):
    done = merge_to_file(root, tmp_path / "out.safetensors", OutputParams(**output), replace=True)
    return read_tensors(done.path), done


def test_weighted_sum_of_every_tensor(folder, numbers, tmp_path):
    tensors, done = result_of(merge("weighted_sum", model(folder, "a"), model(folder, "b"), alpha=0.3), tmp_path)
    assert list(tensors) == list(numbers["a"])
    for key, value in numbers["a"].items():
        if value.is_floating_point():
            expected = torch.lerp(value.float(), numbers["b"][key].float(), 0.3).to(value.dtype)
            assert torch.equal(tensors[key], expected), key
    assert torch.equal(tensors[IDS], torch.arange(77).unsqueeze(0))
    assert done.written
    header = read_header(done.path)
    assert header.metadata["atelier.sizes"] == read_header(folder / "a.safetensors").metadata["atelier.sizes"]
    assert header.metadata["modelspec.merged_from"] == "a, b"
    assert json.loads(header.metadata["sd_merge_recipe"])["type"] == "lora-atelier"


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_and_pieces_change_nothing(folder, tmp_path, threads, monkeypatch):
    from lora_atelier.core.stream import run_jobs
    from lora_atelier.merger import engine

    root = merge("dare", *(model(folder, name) for name in "abc"), drop=0.5)
    wanted, _ = result_of(root, tmp_path, dtype="bf16", stochastic_rounding=True)
    monkeypatch.setattr(engine, "run_jobs", lambda *args, **kw: run_jobs(*args, **{**kw, "threads": threads}))
    monkeypatch.setattr(engine, "_PART_ELEMENTS", engine.PIECE_ELEMENTS)
    got, _ = result_of(root, tmp_path, dtype="bf16", stochastic_rounding=True)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_live_is_what_the_file_holds(folder, tmp_path):
    root = merge("ties", *(model(folder, name) for name in "abc"), keep=0.5)
    tensors, _ = result_of(root, tmp_path, dtype="fp16")
    with planned(root, OutputParams(dtype="fp16")) as plan:
        live = MergedTensors(plan, {"x": "y"}, "live")
        everything = live.all_tensors()
    assert list(everything) == list(live.keys())
    for key, value in tensors.items():
        assert torch.equal(everything[key], value), key


def test_a_chain_is_one_expression_and_writes_nothing_in_between(folder, numbers, tmp_path):
    a, b, c, d = (model(folder, name) for name in "abcd")
    first = merge("weighted_sum", a, b, alpha=0.5)
    second = merge("add_difference", first, c, d, alpha=0.5)
    third = merge("weighted_sum", second, first, alpha=0.25)
    tensors, _ = result_of(third, tmp_path, dtype="fp32")
    key = f"{UNET}out.2.weight"
    values = {name: numbers[name][key].float() for name in "abcd"}
    ab = (values["a"] + values["b"]) / 2
    expected = 0.75 * (ab + 0.5 * (values["c"] - values["d"])) + 0.25 * ab
    torch.testing.assert_close(tensors[key], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_equal_shares_of_seven_are_the_plain_mean(folder, numbers, tmp_path):
    """The ratios of a published merge log: 0.5, 0.333, 0.25, 0.2, 0.166, 0.142 in a row."""
    root = model(folder, "a")
    for name, alpha in zip("bcdefg", (1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6, 1 / 7), strict=True):
        root = merge("weighted_sum", root, model(folder, name), alpha=alpha)
    tensors, _ = result_of(root, tmp_path, dtype="fp16")
    for key, value in numbers["a"].items():
        if value.is_floating_point():
            mean = torch.stack([numbers[name][key].double() for name in "abcdefg"]).mean(dim=0)
            step = torch.finfo(torch.float16).eps * mean.abs().clamp(min=2**-14)
            assert ((tensors[key].double() - mean).abs() <= 0.51 * step + 1e-7).all(), key
    assert all(abs(share.least - 1 / 7) < 1e-6 for share in shares(root))


def test_recorded_ratios_with_three_digits(folder):
    root = model(folder, "a")
    for name, alpha in zip("bcdefg", (0.5, 0.333, 0.25, 0.2, 0.166, 0.142), strict=True):
        root = merge("weighted_sum", root, model(folder, name), alpha=alpha)
    assert all(abs(share.least - 1 / 7) < 1.5e-3 for share in shares(root))
    assert overshoot(shares(root)) == pytest.approx(1.0)


def test_a_chain_of_differences_is_warned_of(folder):
    def chain(count):
        root = model(folder, "a")
        for name in "bcdefg"[: count - 1]:
            root = merge("add_difference", root, model(folder, name), model(folder, "g"), alpha=0.5)
        return root

    assert overshoot(shares(chain(4))) <= LIMIT
    assert not any("WARNING" in line for line in share_report(chain(4)))
    report = share_report(chain(6))
    assert any("WARNING" in line and "3.50" in line for line in report), report


def test_five_merges_in_a_row_keep_position_ids(folder, tmp_path):
    last = change(
        folder, "a", tmp_path / "broken.safetensors", lambda t: t.update({IDS: (torch.arange(77) * 0.999).half()[None]})
    )
    for number in range(5):
        root = merge("add_difference", last, model(folder, "b"), model(folder, "c"), alpha=0.1)
        done = merge_to_file(root, tmp_path / f"{number}.safetensors", OutputParams(dtype="fp16"))
        if number == 0:
            assert any("the position ids 1, 2, 3" in line and "int64" in line for line in done.report)
        last = Model(path=done.path, name=done.path.stem)
    ids = read_tensors(last.path)[IDS]
    assert ids.dtype == torch.int64
    assert torch.equal(ids, torch.arange(77).unsqueeze(0))


@pytest.mark.parametrize(("dtype", "wanted"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_types(folder, tmp_path, dtype, wanted):
    tensors, _ = result_of(merge("weighted_sum", model(folder, "a"), model(folder, "b")), tmp_path, dtype=dtype)
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {wanted}


@pytest.mark.parametrize("stochastic", [False, True])
def test_eight_bit_is_for_the_matrices_of_the_unet(folder, numbers, tmp_path, stochastic):
    root = merge("weighted_sum", model(folder, "a"), model(folder, "b"))
    tensors, _ = result_of(root, tmp_path, dtype="fp8 e4m3", stochastic_rounding=stochastic)
    for key, value in tensors.items():
        matrix = key.startswith(UNET) and value.ndim > 1
        if value.is_floating_point():
            assert value.dtype == (torch.float8_e4m3fn if matrix else torch.float16), key
    key = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    exact = (numbers["a"][key].float() + numbers["b"][key].float()) / 2
    rounded = tensors[key].float()
    step = torch.ldexp(torch.ones_like(exact), (torch.frexp(exact).exponent - 1).clamp(min=-6) - 3)
    assert ((rounded - exact).abs() <= (1.0 if stochastic else 0.5) * step + 1e-7).all()


def test_stochastic_rounding_keeps_the_mean():
    from lora_atelier.merger.rounding import stochastic

    values = torch.full((200_000,), 1.0 + 2**-10 * 0.3)
    for dtype in ("F16", "BF16", "F8_E4M3", "F8_E5M2"):
        rounded = stochastic(values, dtype, torch.Generator().manual_seed(0))
        assert len(rounded.unique()) <= 2
        assert float(rounded.mean()) == pytest.approx(float(values[0]), abs=6e-4), dtype
    tiny = torch.full((100_000,), 3.3e-8)
    assert float(stochastic(tiny, "F16", torch.Generator().manual_seed(0)).mean()) == pytest.approx(3.3e-8, rel=0.05)


def test_block_weights_vae_and_rows(folder, numbers, tmp_path):
    weights = BlockWeights(text="GRAD_V TE=0.25 OUT=1", elements="IN04-IN05:attn2:0")
    root = merge("weighted_sum", model(folder, "a"), model(folder, "b"), weights=[("alpha", weights)], alpha=0.5)
    tensors, done = result_of(root, tmp_path)
    for key, share in (
        ("first_stage_model.decoder.conv_in.weight", 0.0),
        ("cond_stage_model.transformer.text_model.final_layer_norm.weight", 0.25),
        (f"{UNET}input_blocks.0.0.weight", 1.0),
        (f"{UNET}time_embed.0.weight", 1.0),
        (f"{UNET}middle_block.0.in_layers.2.weight", 0.0),
        (f"{UNET}output_blocks.5.0.in_layers.2.weight", 0.5),
        (f"{UNET}out.2.weight", 1.0),
        (f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", 0.0),
        (f"{UNET}input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight", 1 - 4 / 12),
    ):
        expected = torch.lerp(numbers["a"][key].float(), numbers["b"][key].float(), share).half()
        assert torch.equal(tensors[key], expected), key
    assert any("rule IN04-IN05:attn2:0 hits 10 tensors" in line for line in done.report), done.report
    assert any("by block" in line for line in done.report)


def test_nai_names_ema_and_a_vae_from_elsewhere(folder, numbers, tmp_path):
    nai = write_tiny_checkpoint(tmp_path / "nai.safetensors", sizes=SMALL, seed=1, nai_names=True)

    def edit(tensors):
        for key in [key for key in tensors if key.startswith("first_stage_model.")]:
            del tensors[key]
        for key in [key for key in tensors if key.startswith(UNET)]:
            tensors["model_ema." + key[len("model.") :].replace(".", "")] = tensors[key] * 0 + 2
        tensors["model_ema.decay"] = torch.tensor(0.9999)

    plain = change(folder, "a", tmp_path / "ema.safetensors", edit)
    root = merge("weighted_sum", plain, Model(path=nai, name="nai"), alpha=0.5)
    tensors, done = result_of(root, tmp_path)
    assert set(tensors) == set(numbers["a"])
    report = "\n".join(done.report)
    for said in (
        "21 text-encoder tensors had NovelAI's names",
        "EMA tensors are left out",
        "ema has no VAE; it is that of nai",
    ):
        assert said in report, report
    assert torch.equal(
        tensors["first_stage_model.quant_conv.weight"], numbers["b"]["first_stage_model.quant_conv.weight"]
    )
    used, _ = result_of(merge("weighted_sum", plain, Model(path=nai, name="nai"), alpha=0.0), tmp_path, ema="use")
    assert (used[f"{UNET}out.2.weight"] == 2).all()
    kept, _ = result_of(merge("weighted_sum", plain, Model(path=nai, name="nai")), tmp_path, ema="keep")
    assert "model_ema.decay" in kept


@pytest.mark.parametrize("channels", [8, 9])
def test_inpainting_keeps_its_width(folder, numbers, tmp_path, channels):
    key = f"{UNET}input_blocks.0.0.weight"

    def widen(tensors):
        extra = torch.full((32, channels - 4, 3, 3), 7.0).half()
        tensors[key] = torch.cat([tensors[key], extra], dim=1)

    wide = change(folder, "a", tmp_path / "wide.safetensors", widen)
    b = model(folder, "b")
    tensors, done = result_of(merge("weighted_sum", wide, b, alpha=0.5), tmp_path)
    assert torch.equal(tensors[key][:, 4:], torch.full((32, channels - 4, 3, 3), 7.0).half())
    half = ((numbers["a"][key].float() + numbers["b"][key].float()) / 2).half()
    assert torch.equal(tensors[key][:, :4], half)
    assert any(f"{channels} input channels" in line for line in done.report)
    narrow, _ = result_of(merge("weighted_sum", b, wide, alpha=0.5), tmp_path)
    assert torch.equal(narrow[key], half)


def test_a_file_is_made_again_from_itself(folder, tmp_path):
    weights = BlockWeights(text="MID=1", elements="")
    inner = merge("weighted_sum", model(folder, "a"), model(folder, "b"), weights=[("alpha", weights)], alpha=0.25)
    root = merge("ties", model(folder, "c"), inner, inner, model(folder, "d"), keep=0.5, label="out")
    first = merge_to_file(root, tmp_path / "first.safetensors", OutputParams(dtype="bf16"))
    data = json.loads(read_header(first.path).metadata[RECIPE_KEY])
    again = from_json(data, lambda name, vae: model(folder, name))
    assert to_json(again) == to_json(root)
    second = merge_to_file(again, tmp_path / "second.safetensors", OutputParams.from_json(data["output"]))
    one, two = read_tensors(first.path), read_tensors(second.path)
    assert all(torch.equal(one[key], two[key]) for key in one)
    kept = merge_to_file(again, first.path, OutputParams(dtype="bf16"))
    assert not kept.written
    with pytest.raises(InputError, match="not made by this recipe"):
        merge_to_file(again, first.path, OutputParams(dtype="fp16"))


def test_dry_run(folder, tmp_path):
    root = merge("weighted_sum", model(folder, "a"), model(folder, "b"), alpha=0.3)
    lines = "\n".join(dry_run(root, tmp_path / "x.safetensors", OutputParams(dtype="fp16")))
    for said in ("nothing is written", "a: +0.700", "b: +0.300", "tensors:", "MiB are read", "memory: about", "enough"):
        assert said in lines, lines
    assert not list(tmp_path.iterdir())


def test_refusals(folder, tmp_path):
    a, b = model(folder, "a"), model(folder, "b")
    output = OutputParams()

    def refused(root, kind, message, path=tmp_path / "x.safetensors"):
        with pytest.raises(kind, match=message):
            merge_to_file(root, path, output)
        assert not (tmp_path / "x.safetensors").exists()

    refused(merge("difference", a, b), InputError, "is a difference of two models")
    refused(merge("weighted_sum", a, b), InputError, "the file of b", b.path)

    def nan(tensors):
        tensors[f"{UNET}out.2.weight"][0, 0, 0, 0] = float("nan")

    refused(
        merge("weighted_sum", a, change(folder, "b", tmp_path / "nan.safetensors", nan)), FormatError,
        "nan.safetensors holds NaN or infinite numbers in model.diffusion_model.out.2.weight",
    )  # fmt: skip
    refused(
        merge("slerp", a, Model(path=tmp_path / "nan.safetensors", name="nan")),
        FormatError,
        "nan.safetensors holds NaN",
    )

    def large(tensors):
        tensors[f"{UNET}out.2.weight"] += 60000.0

    big = change(folder, "a", tmp_path / "big.safetensors", large)
    refused(merge("add_difference", big, big, b, alpha=1.0), FormatError, "F16 cannot hold; save as fp32")

    def holes(tensors):
        del tensors[f"{UNET}out.2.weight"], tensors[f"{UNET}out.2.bias"]

    refused(
        merge("weighted_sum", change(folder, "a", tmp_path / "holes.safetensors", holes), b), FormatError,
        "holes lacks 2 tensors of the UNet that others have",
    )  # fmt: skip
    other = write_tiny_checkpoint(tmp_path / "xl.safetensors", family="sdxl")
    refused(
        merge("weighted_sum", a, Model(path=other, name="xl")), InputError, "a is a Stable Diffusion 1.x model and xl"
    )
    wider = write_tiny_checkpoint(tmp_path / "wider.safetensors")
    refused(merge("weighted_sum", a, Model(path=wider, name="wider")), InputError, "not versions of one model")

    class Impatient(SilentProgress):
        def check(self):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        merge_to_file(merge("weighted_sum", a, b), tmp_path / "x.safetensors", output, progress=Impatient())
    assert not list(tmp_path.glob("*.tmp"))


def test_sdxl_rows_and_ids(tmp_path):
    paths = [write_tiny_checkpoint(tmp_path / f"{n}.safetensors", family="sdxl", seed=n) for n in range(2)]
    one, two = (Model(path=path, name=path.stem) for path in paths)
    weights = BlockWeights(text="0 " * 19 + "TE1=1 TE2=0.5 LABEL=1")
    tensors, _ = result_of(merge("weighted_sum", one, two, weights=[("alpha", weights)]), tmp_path)
    a, b = (read_tensors(path) for path in paths)
    for key, share in (
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", 1.0),
        ("conditioner.embedders.1.model.token_embedding.weight", 0.5),
        (f"{UNET}label_emb.0.0.weight", 1.0),
        (f"{UNET}time_embed.0.weight", 0.0),
    ):
        assert torch.equal(tensors[key], torch.lerp(a[key].float(), b[key].float(), share).half()), key
    ids = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
    assert tensors[ids].dtype == torch.int64
