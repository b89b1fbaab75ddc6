"""Every shipped workflow: both forms agree, are valid and have a thumbnail; those that prepare data sets run."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from atelier_tests.helpers.train_pages import OWN_FOLDER, OWN_SD15, OWN_SDXL, as_tested
from atelier_tests.helpers.training import draw_pictures
from atelier_tests.helpers.workflow_pages import pages
from lora_atelier.core.errors import AtelierError
from lora_atelier.headless.graph import graph_from_json, read_workflow
from lora_atelier.headless.overrides import apply_overrides
from lora_atelier.headless.runner import check_local, load_graph, local_specs, output_files, output_texts, run_local
from lora_atelier.headless.terminal import TerminalHost, hosting
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME
from lora_atelier.nodes.pico import PicoDataset
from lora_atelier.trainer.run import open_run

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "api_workflows").glob("*.json"))
OWN = ("train-character-sd15", "train-character-sdxl", "train-style")
"""Those that ask for a person's own model and pictures."""
TRAITS = {"ring", "cross", "eyes", "hat", "halo", "spots"}


@pytest.fixture
def host(tmp_path):
    with hosting(TerminalHost(tmp_path / "atelier", quiet=True)) as made:
        yield made


def run_prepare(name, host):
    """The graph's results by node class, the texts and the pictures it shows."""
    _, specs = local_specs()
    graph = load_graph(ROOT / "api_workflows" / f"{name}.json", specs)
    done = run_local(graph, host, keep=("AtelierOpenDataset", "AtelierBalanceRepeats", "AtelierTagDocument"))
    assert done.warnings == ()
    results = {graph.nodes[node_id].class_type: values for node_id, values in done.outcome.results.items()}
    for node in graph.nodes.values():
        if node.class_type == "AtelierPicoDataset":
            assert PicoDataset.IS_CHANGED(**node.inputs) == "as drawn", "the data set was written into"
    return results, output_texts(done.outcome), output_files(done.outcome, host)


def captions_of(dataset, concept):
    """The captions of the pictures of one folder, as sets of tags."""
    return [set(dataset.tags.row(row)) for row in range(len(dataset))
            if dataset.subset_of(row).concept == concept]  # fmt: skip


def test_both_forms_are_there():
    assert set(pages()) == set(NAMES)
    assert sorted(path.stem for path in (ROOT / "workflows").glob("*.json")) == NAMES
    assert sorted(path.stem for path in (ROOT / "workflows").glob("*.jpg")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_page_form_is_the_api_form_and_valid(host, name):
    _, specs = local_specs()
    page = graph_from_json(read_workflow(ROOT / "workflows" / f"{name}.json"), specs).nodes
    graph = load_graph(ROOT / "api_workflows" / f"{name}.json", specs)
    if name not in OWN:
        assert check_local(graph) == ()
    assert {(n.id, n.class_type) for n in page.values()} == {(n.id, n.class_type) for n in graph.nodes.values()}
    for node_id, node in page.items():
        assert dict(node.inputs) == dict(graph.nodes[node_id].inputs), node.label


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_their_description_writes(host, name):
    page = pages()[name]()
    api = json.loads((ROOT / "api_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    assert api == page.api, "run: python tests/helpers/workflow_pages.py"


@pytest.mark.parametrize("name", NAMES)
def test_no_node_lies_on_another_and_each_is_in_a_group(name):
    page = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1])
             for node in page["nodes"]]  # fmt: skip
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert one[0] >= other[2] or one[2] <= other[0] or one[1] >= other[3] or one[3] <= other[1], (one, other)
    groups = [group["bounding"] for group in page["groups"]]
    for node, box in zip(page["nodes"], boxes, strict=True):
        inside = [x <= box[0] and y <= box[1] and box[2] <= x + w and box[3] <= y + h for x, y, w, h in groups]
        assert node["type"] == "MarkdownNote" or any(inside), node["type"]
    assert any(node["type"] == "MarkdownNote" for node in page["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail(name):
    with Image.open(ROOT / "workflows" / f"{name}.jpg") as thumbnail:
        assert thumbnail.format == "JPEG"
        assert min(thumbnail.size) >= 300


def test_prepare_character_prunes_traits_and_balances(host):
    results, texts, pictures = run_prepare("prepare-character", host)
    dataset = results["AtelierBalanceRepeats"][0][0]
    for concept, trigger in (("kest", "lumo kest"), ("vard", "lumo vard")):
        captions = captions_of(dataset, concept)
        assert all(trigger in caption and not caption & TRAITS for caption in captions)
        assert all(any("background" in tag for tag in caption) for caption in captions)
    reg = captions_of(dataset, "shapes")
    assert len(reg) == 48
    assert any(caption & TRAITS for caption in reg)
    seen = {subset.concept: subset.repeats * int((dataset.subset_index == number).sum())
            for number, subset in enumerate(dataset.subsets)}  # fmt: skip
    assert seen["kest"] == seen["vard"] == 84
    assert all(path.is_file() for path in pictures)
    assert len(pictures) >= 7
    said = "\n".join(texts)
    for part in ("Data set doctor: 88 pictures", "'lumo': lumo kest, lumo vard", "preset character: 40 of 88 captions",
                 "removed by hand", "Balance of 2 folders", "Data set profile", "Tag document"):  # fmt: skip
        assert part in said, part


def test_prepare_style_tags_everything_but_the_style(host):
    results, texts, pictures = run_prepare("prepare-style", host)
    dataset = results["AtelierBalanceRepeats"][0][0]
    styled, plain = captions_of(dataset, "tavi"), captions_of(dataset, "shapes")
    assert len(styled) == len(plain) == 32
    assert all("tavi strokes" in caption and "hatched" not in caption for caption in styled)
    assert all(len(caption) >= 5 for caption in styled)
    assert not any("tavi strokes" in caption for caption in plain)
    repeats = {subset.concept: subset.repeats for subset in dataset.subsets}
    assert repeats["shapes"] == 2 * repeats["tavi"]
    assert len(pictures) >= 7
    assert "preset style: 32 of 64 captions" in "\n".join(texts)


def api_form(name):
    return json.loads((ROOT / "api_workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OWN)
def test_without_ones_own_files_it_says_what_to_choose(host, name):
    """First the model, and where its file belongs; then the folder."""
    _, specs = local_specs()
    form = api_form(name)
    (asked,) = {node["inputs"]["base_name"] for node in form.values() if "base_name" in node["inputs"]}
    assert asked in (OWN_SD15, OWN_SDXL)
    with pytest.raises(AtelierError, match=f"{asked}.*models/checkpoints"):
        run_local(graph_from_json(form, specs), host)
    chosen = as_tested(form, base_name=PICO_NAME, folder=OWN_FOLDER)
    with pytest.raises(AtelierError, match=f"data set folder.*{OWN_FOLDER}|{OWN_FOLDER}.*data set folder"):
        run_local(graph_from_json(chosen, specs), host)
    assert not list(host.output_dir().rglob("*.safetensors"))


@pytest.mark.parametrize("name", [*OWN, "compare-networks"])
def test_it_trains_and_compares(host, name):
    """With a tiny model, drawings and few steps: a LoRA, its checkpoints, and a grid of them."""
    _, specs = local_specs()
    draw_pictures(host.input_dir() / "mine", count=4)
    base_name = PICO_XL_NAME if "sdxl" in name else PICO_NAME
    form = as_tested(api_form(name), base_name=base_name, folder="mine")
    done = run_local(graph_from_json(form, specs), host, keep=("AtelierTrainLora",))
    assert done.warnings == ()
    trained = [node.id for node in done.graph.nodes.values() if node.class_type == "AtelierTrainLora"]
    runs = [open_run(done.outcome.results[node_id][0][0].folder) for node_id in trained]
    assert all(run.finished for run in runs)
    assert len(runs) == (2 if name == "compare-networks" else 1)
    pictures = output_files(done.outcome, host)
    assert pictures
    assert all(path.is_file() for path in pictures)
    said = "\n".join(output_texts(done.outcome))
    assert "cells" in said
    networks = {run.manifest["config"]["network"]["name"] for run in runs}
    assert networks == ({"lora", "loha"} if name == "compare-networks" else {"lora"})


def test_the_numbers_of_the_record():
    """What the public log of one person's trainings says; see the notes on the pages."""
    forms = {name: {node["class_type"]: node["inputs"] for node in api_form(name).values()} for name in OWN}
    sd15, sdxl, style = (forms[name] for name in OWN)
    assert (sd15["AtelierNetworkLora"]["rank"], sd15["AtelierNetworkLora"]["alpha"]) == (16, 4.0)
    assert sd15["AtelierNetworkLora"]["conv_rank"] == 0
    assert sd15["AtelierBlocks"]["blocks"] == "IN04-07,OUT03-06,TE"
    assert sd15["AtelierOptimizerDadaptLion"]["d0"] == 1e-6
    assert 4000 <= sd15["AtelierTrainLora"]["steps"] <= 6000
    assert (sdxl["AtelierNetworkLora"]["rank"], sdxl["AtelierNetworkLora"]["alpha"]) == (8, 2.0)
    assert not sdxl["AtelierTrainLora"]["train_text_encoder"]
    assert not sdxl["AtelierOpenDataset"]["shuffle_captions"]
    assert sdxl["AtelierTrainLora"]["trained_dtype"] == "fp32"
    assert (style["AtelierNetworkLora"]["rank"], style["AtelierNetworkLora"]["alpha"]) == (64, 32.0)
    assert style["AtelierOpenDataset"]["keep_tokens"] == 0
    assert style["AtelierOptimizerAdamw"]["cycles"] == 4


def test_lora_surgery_runs_every_tool(host):
    _, specs = local_specs()
    graph = load_graph(ROOT / "api_workflows" / "lora-surgery.json", specs)
    of_class = {node.class_type: node_id for node_id, node in graph.nodes.items()}
    train, grid, optimizer = (of_class[f"Atelier{name}"] for name in ("TrainLora", "XYGrid", "OptimizerAdamw"))
    short = [f"{train}.steps=6", f"{train}.batch_size=2", f"{grid}.steps=2", f"{optimizer}.warmup_steps=0"]
    done = run_local(apply_overrides(graph, short, specs), host)
    said = "\n".join(output_texts(done.outcome))
    for part in (
        "Energy by block",
        "Dry run: switch dry_run off to save it as",
        "Saved as atelier/surgery.safetensors",
        "Share of the energy in the first ranks",
        "layers are changed by all 2 LoRAs",
    ):
        assert part in said, (part, said)
    assert re.search(r"mean cosine (0\.99|1\.0)", said), "what was extracted is not what went in"
    assert all(path.is_file() for path in output_files(done.outcome, host))
    loras = {path.name for path in host.loras_dir().rglob("*.safetensors")}
    assert all(name.startswith("surgery") for name in loras), "a dry run kept something"


def test_merge_recipe_writes_one_file_and_draws_three_models(host):
    _, specs = local_specs()
    graph = load_graph(ROOT / "api_workflows" / "merge-recipe.json", specs)
    trained = next(node_id for node_id, node in graph.nodes.items() if node.class_type == "AtelierTrainLora")
    optimizer = graph.nodes[trained].inputs["optimizer"][0]
    drawn = next(node_id for node_id, node in graph.nodes.items() if node.class_type == "AtelierPicoDataset")
    quick = [
        f"{drawn}.num_images=4",
        f"{drawn}.num_reg_images=0",
        f"{trained}.steps=2",
        f"{trained}.batch_size=1",
        f"{optimizer}.warmup_steps=0",
    ]
    quick += [f"{node_id}.steps=1" for node_id, node in graph.nodes.items() if node.class_type == "KSampler"]
    done = run_local(apply_overrides(graph, quick, specs), host)
    assert done.warnings == ()
    folder = host.checkpoints_dir() / "atelier"
    assert sorted(path.name for path in folder.iterdir()) == ["merged.safetensors", "pico-kest.safetensors"]
    said = "\n".join(output_texts(done.outcome))
    for part in ("pico (built in): +0.250", "atelier/pico-kest.safetensors: +0.750", "DRY RUN: nothing is written",
                 "position ids are written as int64", "rule   OUT03-OUT05:attn2:1"):  # fmt: skip
        assert part in said, part
    assert len(output_files(done.outcome, host)) >= 12
