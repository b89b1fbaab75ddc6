"""Bad input through the graph runner: every cause ends in one clear sentence, and nothing that was there is lost."""

import json
import math
import os
import re

import pytest

from atelier_tests.helpers import bad_world as bad
from atelier_tests.helpers.api_graphs import convert, core, draw, filled, image, node, train
from atelier_tests.helpers.full_size import TINY, write_tiny_checkpoint
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.files import link_or_copy
from lora_atelier.headless.graph import graph_from_json, read_workflow
from lora_atelier.headless.overrides import apply_overrides
from lora_atelier.headless.runner import check_local, local_specs, run_local
from lora_atelier.headless.terminal import TerminalHost, hosting


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    sizes = {**TINY, "unet": {**TINY["unet"], "block_out_channels": [64, 64, 64, 64]}}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors", sizes=sizes)


@pytest.fixture
def world(tmp_path, tiny_base, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = bad.World(tmp_path)
    link_or_copy(tiny_base, made.checkpoints / "tiny.safetensors")
    with hosting(made.host):
        yield made


nothing = None
CASES = [
    # id, preparation, graph, what the message must say (all of them; letter case does not matter)
    ("empty folder", bad.empty_folder, train(data__folder="empty"), ["empty", "picture"]),
    ("only broken images", bad.broken_pictures, train(data__folder="broken"), ["a.png", "picture"]),
    ("folder outside the roots", nothing, lambda w: train(data__folder=str(w.outside)), ["outside", "settings.json"]),
    ("two dots", nothing, train(data__folder="good/../../outside"), [r"'\.\.'", "without"]),
    ("nul", nothing, train(data__folder="good\0"), ["control character"]),
    ("newline", nothing, train(data__folder="go\nod"), ["control character"]),
    ("reserved name", nothing, train(data__folder="CON"), ["reserved", "rename"]),
    ("reserved name with an ending", nothing, train(data__folder="good/aux.txt"), ["reserved"]),
    ("drive letter", nothing, train(data__folder="Q:\\pictures"), ["pictures", "below the allowed|no data set|drive"]),
    ("network share", nothing, train(data__folder="\\\\server\\share"), ["share", "allowed|below"]),
    ("home", nothing, train(data__folder="~/pictures"), ["~", "whole path"]),
    ("no folder named", nothing, train(data__folder="  "), ["empty", "type the name"]),
    ("missing folder", nothing, train(data__folder="goood"), ["no data set folder", "did you mean 'good'"]),
    ("missing reg folder", nothing, train(data__reg_folder="reg"), ["reg", "no data set folder"]),
    ("folder is a file", bad.folder_is_file, train(data__folder="file"), ["file", "folder"]),
    ("link outside", bad.link_outside, train(data__folder="link"), ["outside", "settings.json"]),
    ("1x10000 picture", bad.thin_picture, train(data__folder="thin"), ["1x10000|1 x 10000", "px"]),
    (
        "picture that claims 60000x60000",
        bad.giant_claim,
        train(data__folder="giant"),
        ["giant|a.png", "178956970 pixels", "scale it down"],
    ),
    ("caption that is a folder", bad.caption_folder, train(data__folder="captioned"), ["a.txt", "folder|directory"]),
    ("caption that is no text", bad.caption_bytes, train(data__folder="bytes"), ["a.txt", "utf-8"]),
    ("repeats 0", nothing, train(data__repeats=0), ["repeats is 0", "from 1"]),
    ("dropout above 1", nothing, train(data__caption_dropout=1.5), ["caption_dropout is 1.5", "from 0"]),
    (
        "truncated checkpoint",
        bad.truncated_base,
        train(base__base_name="cut.safetensors"),
        ["cut.safetensors", "trunc|short|cut off|complete"],
    ),
    (
        "lora as base",
        bad.lora_as_base,
        train(base__base_name="lora.safetensors"),
        ["lora.safetensors is a LoRA", "full checkpoint"],
    ),
    (
        "vae as base",
        bad.vae_as_base,
        train(base__base_name="vae.safetensors"),
        ["vae.safetensors is a VAE", "full checkpoint"],
    ),
    ("sd2 as base", bad.sd2_as_base, train(base__base_name="sd2.safetensors"), ["Stable Diffusion 2|SD ?2", "1.x"]),
    ("sdxl as base", bad.sdxl_as_base, train(base__base_name="sdxl.safetensors"), ["SDXL|Stable Diffusion XL", "1.x"]),
    ("flux as base", bad.flux_as_base, train(base__base_name="flux.safetensors"), ["Flux", "1.x"]),
    (
        "web page as base",
        bad.garbage_base,
        train(base__base_name="text.safetensors"),
        ["text.safetensors", "safetensors"],
    ),
    (
        "empty file as base",
        bad.empty_base,
        train(base__base_name="zero.safetensors"),
        ["zero.safetensors", "empty|trunc|short"],
    ),
    ("base without vae", bad.no_vae_base, train(base__base_name="novae.safetensors"), ["VAE", "novae.safetensors"]),
    (
        "missing base",
        nothing,
        train(base__base_name="tinny.safetensors"),
        ["did you mean 'tiny.safetensors'", "checkpoints"],
    ),
    ("unknown dtype", nothing, train(base__dtype="fp64"), ["dtype", "fp32"]),
    ("nan learning rate", nothing, train(opt__lr_unet=math.nan), ["lr_unet is nan", "finite number"]),
    ("infinite learning rate", nothing, train(opt__lr_text_encoder=math.inf), ["lr_text_encoder is inf", "finite"]),
    ("negative learning rate", nothing, train(opt__lr_unet=-1e-4), ["lr_unet is -0.0001", "from 0"]),
    ("unknown schedule", nothing, train(opt__schedule="cosin"), ["schedule", "did you mean 'cosine'"]),
    ("warmup longer than the run", nothing, train(opt__warmup_steps=50), ["warmup", "50", "2"]),
    ("rank 0", nothing, train(net__rank=0), ["rank is 0", "from 1"]),
    ("rank is a text", nothing, train(net__rank="big"), ["rank is 'big'", "whole number"]),
    ("nan alpha", nothing, train(net__alpha=math.nan), ["alpha is nan", "finite"]),
    ("negative steps", nothing, train(train__steps=-5), ["steps is -5", "from 1"]),
    ("half a step", nothing, train(train__steps=1.5), ["steps is 1.5", "whole number"]),
    ("batch of 0", nothing, train(train__batch_size=0), ["batch_size is 0", "from 1"]),
    ("unknown block name", nothing, train(blocks__blocks="IN04,OUT33"), ["OUT33", "did you mean|allowed"]),
    ("block range backwards", nothing, train(blocks__blocks="IN07-04"), ["IN07-04", "backwards"]),
    ("no block left", nothing, train(blocks__blocks="NOT ALL"), ["NOT ALL", "leaves no block"]),
    ("block without modules", nothing, train(blocks__blocks="IN00"), ["IN00", "block|module"]),
    (
        "only the text encoder, which is off",
        nothing,
        train(blocks__blocks="TE", train__train_text_encoder=False),
        ["TE|text encoder", "train_text_encoder|block"],
    ),
    (
        "nothing to train",
        nothing,
        train(train__train_unet=False, train__train_text_encoder=False),
        ["both off", "switch"],
    ),
    (
        "buckets the wrong way round",
        nothing,
        train(train__bucket_min_px=512, train__bucket_max_px=256),
        ["bucket_min_px is 512", "256"],
    ),
    ("bucket step of 12", nothing, train(train__bucket_step_px=12), ["bucket_step_px is 12", "multiple of 8"]),
    ("resolution of 10", nothing, train(train__resolution_px=10), ["resolution_px is 10", "from 32"]),
    ("clip skip beyond the encoder", nothing, train(train__clip_skip=12), ["clip skip|clip_skip", "12", "1 to 3"]),
    ("unknown precision", nothing, train(train__precision="fp8"), ["precision", "fp16"]),
    (
        "timesteps the wrong way round",
        nothing,
        train(obj=node("AtelierObjectiveEpsilon", min_timestep=900, max_timestep=100), train__objective=["obj", 0]),
        ["min_timestep", "900", "100"],
    ),
    ("disk full", bad.disk_full, train(), ["disk", "free"]),
    ("output not writable", bad.output_blocked, train(), ["atelier", "could not|in the way|not a folder"]),
    ("loras folder not writable", bad.loras_blocked, train(), ["atelier", "could not|in the way|not a folder"]),
    (
        "missing lora",
        nothing,
        draw(lora__lora_name="godo.safetensors"),
        ["lora_name", "did you mean 'good.safetensors'"],
    ),
    (
        "truncated lora",
        bad.cut_lora,
        draw(lora__lora_name="cut.safetensors"),
        ["cut.safetensors", "trunc|short|cut off|complete"],
    ),
    ("checkpoint as lora", bad.base_as_lora, draw(lora__lora_name="base.safetensors"), ["base.safetensors", "LoRA"]),
    (
        "lora of another family",
        bad.foreign_lora,
        core(lora__lora_name="sdxl.safetensors"),
        ["none of the LoRA", "trained for"],
    ),
    (
        "lora of another width",
        bad.narrow_lora,
        core(lora__lora_name="narrow.safetensors"),
        ["another architecture", "32, 32", "64, 64"],
    ),
    ("wrong vector length", nothing, draw(lora__block_weights="1,0,0.5"), ["3", "17", "26"]),
    ("unknown preset", nothing, draw(lora__block_weights="OUTTALL"), ["OUTTALL", "did you mean 'OUTALL'"]),
    ("nan strength", nothing, draw(lora__strength_model=math.nan), ["strength_model is nan", "finite"]),
    ("unknown sampler", nothing, draw(grid__sampler="eulr"), ["sampler", "did you mean 'euler"]),
    ("unknown scheduler", nothing, core(sample__scheduler="kaaras"), ["scheduler", "did you mean 'karras'"]),
    (
        "unknown sampler on an axis",
        nothing,
        draw(x=node("AtelierAxisSampler", samplers="euler, dpm++")),
        ["dpm\\+\\+", "sampler"],
    ),
    ("axis of words", nothing, draw(x__steps="one, two"), ["one", "number|steps"]),
    ("empty axis", nothing, draw(x__steps=" , "), ["steps", "empty|no|one"]),
    ("picture of no width", nothing, draw(grid__width_px=0), ["width_px is 0", "from 16"]),
    ("missing tagger", nothing, draw(score__tagger_name="wd-vit"), ["tagger_name", "pico"]),
    (
        "broken tagger",
        bad.tagger_without_table,
        draw(score__tagger_name="half"),
        ["half|model.onnx", "selected_tags.csv"],
    ),
    ("broken settings", bad.bad_settings, train(), ["settings.json", "JSON"]),
    ("settings without a list", bad.bad_roots, train(), ["settings.json", "list"]),
    (
        "unknown node class",
        nothing,
        {**train(), "9": node("AtelierTrainLorra")},
        ["did you mean 'AtelierTrainLora'", "server"],
    ),
    ("missing input", nothing, train(train__dataset=None), ["lacks its required input 'dataset'", "ATELIER_DATASET"]),
    ("wrong link type", nothing, train(train__dataset=["base", 0]), ["needs ATELIER_DATASET", "gives ATELIER_BASE"]),
    ("link to nowhere", nothing, train(train__dataset=["dada", 0]), ["node dada, which does not exist", "data"]),
    ("link to a missing output", nothing, train(train__dataset=["data", 7]), ["output 7", "count from 0"]),
    ("value for a wire", nothing, train(train__base="tiny"), ["takes a wire of type ATELIER_BASE"]),
    ("cyclic graph", nothing, core(sample__latent_image=["sample", 0]), ["depends on its own output"]),
    ("no output node", nothing, core(save=None, decode=None), ["no output node", "SaveImage"]),
    ("not an object", nothing, [1, 2], ["JSON list", "object of nodes"]),
    ("node without a class", nothing, {"1": {"inputs": {}}}, ["node 1 has no class_type", "export"]),
    ("seed too large", nothing, core(sample__seed=2**64), ["seed is 18446744073709551616", "from 0"]),
    ("cfg is a text", nothing, core(sample__cfg="high"), ["cfg is 'high'", "number"]),
    ("denoise above 1", nothing, core(sample__denoise=1.2), ["denoise is 1.2", "from 0"]),
    ("prefix outside the output", nothing, core(save__filename_prefix="../../evil"), [r"'\.\.'", "without"]),
    ("embedding in a prompt", nothing, core(pos__text="embedding:bad"), ["textual-inversion", "server"]),
    ("missing picture", nothing, image("x.png"), ["x.png", "no picture"]),
    ("picture outside the input", nothing, image("../../outside/a.png"), [r"'\.\.'", "without"]),
    ("picture that is a folder", nothing, image("good"), ["good", "folder"]),
    ("broken picture", bad.broken_image, image("broken.png"), ["broken.png", "cannot be read"]),
    (
        "picture of 5 px",
        bad.small_image,
        {
            **core(sample__latent_image=["enc", 0]),
            "img": node("LoadImage", image="small.png"),
            "enc": node("VAEEncode", pixels=["img", 0], vae=["load", 2]),
        },
        ["5x5", "at least 8"],
    ),
    ("old file that is none", bad.pickle_file, convert("old.ckpt"), ["old.ckpt"]),
    ("old file that is missing", nothing, convert("older.ckpt"), ["older.ckpt", "no checkpoint file"]),
]


def contents(folder):
    """Every file with its bytes; big ones by size and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            status = path.stat()
            small = status.st_size < 2**20
            found[str(path.relative_to(folder))] = path.read_bytes() if small else (status.st_size, status.st_mtime_ns)
    return found


def run(world, graph, settings=()):
    classes_specs = local_specs()[1]
    data = filled(json.loads(json.dumps(graph)), classes_specs) if isinstance(graph, dict) else graph
    run_local(apply_overrides(graph_from_json(data, classes_specs), settings, classes_specs), world.host)


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_input(world, monkeypatch, prepare, graph, said):
    world.patch = monkeypatch
    if prepare is not None:
        prepare(world)
    before = contents(world.base_dir)
    graph = graph(world) if callable(graph) else graph
    with pytest.raises(AtelierError) as caught:
        run(world, graph)
    message = str(caught.value)
    check_message(message, said)
    monkeypatch.undo()
    after = contents(world.base_dir)
    assert {name: after.get(name) for name in before} == before, "something that was there is lost or changed"
    new = set(after) - set(before)
    assert not [name for name in new if name.endswith(".tmp") or name.startswith(("models", "input"))], new


def check_training_refused(world, graph, said):
    """One clear sentence before any work: nothing that was there is lost, nothing half is left, no run is begun."""
    before = contents(world.base_dir)
    with pytest.raises(AtelierError) as caught:
        run(world, graph)
    check_message(str(caught.value), said)
    after = contents(world.base_dir)
    assert {name: after.get(name) for name in before} == before, "something that was there is lost or changed"
    assert not [name for name in set(after) - set(before) if name.endswith(".tmp") or "runs" in name]


def check_message(message, said):
    assert "\n" not in message.strip(), message
    assert len(message) < 900, message
    for part in said:
        assert re.search(part, message, re.IGNORECASE), f"{part!r} is not said in: {message}"
    assert "Error:" not in message, f"a bare exception reached the person: {message}"


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.stpes=3", ["did you mean 'steps'"]),
        ("train.steps", ["NODE.INPUT=VALUE"]),
        ("trian.steps=3", ["unknown node in --set", "train"]),
        ("train.steps=many", ["must be a whole number"]),
        ("train.base=x", ["takes a wire"]),
    ],
)
def test_bad_set(world, setting, said):
    with pytest.raises(AtelierError) as caught:
        run(world, train(), [setting])
    check_message(str(caught.value), said)


def test_broken_json(world, tmp_path):
    (tmp_path / "w.json").write_text('{"1": ', encoding="utf-8")
    with pytest.raises(AtelierError, match="not valid JSON"):
        read_workflow(tmp_path / "w.json")


def test_base_dir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(AtelierError, match="could not make the folder"):
        TerminalHost(tmp_path / "file")


def test_good_graphs_pass_the_same_checks(world):
    specs = local_specs()[1]
    for graph in (train(), draw(), core()):
        assert check_local(graph_from_json(filled(json.loads(json.dumps(graph)), specs), specs)) == ()
    assert os.listdir(world.output / "atelier" / "runs") == ["precious-12345678"]
