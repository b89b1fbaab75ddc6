"""What stands upstream of a node."""

import json
from typing import Any

from lora_atelier.nodes._provenance import model_name, png_texts, upstream, upstream_hash

MODEL_INPUTS = ("model", "clip", "vae")


def graph(**changes: Any) -> dict[str, Any]:
    return {
        "1": {"class_type": "AtelierOpenBase", "inputs": {"base_name": "sub/some.safetensors", "dtype": "fp32"}},
        "2": {"class_type": "AtelierBaseToModel", "inputs": {"base": ["1", 0]}},
        "3": {"class_type": "Prompts", "inputs": {"seed": changes.get("seed", 1)}},
        "9": {
            "class_type": "AtelierXYGrid",
            "inputs": {
                "model": ["2", 0],
                "clip": ["2", 1],
                "vae": ["2", 2],
                "prompt": ["3", 0],
                "cfg": changes.get("cfg", 7),
            },
        },
    }


def test_only_what_feeds_the_model_counts() -> None:
    assert list(upstream(graph(), "9", MODEL_INPUTS)) == ["2", "1"]
    same = upstream_hash(graph(), "9", MODEL_INPUTS)
    assert upstream_hash(graph(seed=2, cfg=3), "9", MODEL_INPUTS) == same
    changed = graph()
    changed["1"]["inputs"]["dtype"] = "fp16"
    assert upstream_hash(changed, "9", MODEL_INPUTS) != same


def test_node_ids_and_titles_do_not_count() -> None:
    renumbered = json.loads(json.dumps(graph()).replace('"1"', '"71"').replace('"2"', '"82:5"'))
    renumbered["71"]["_meta"] = {"title": "My base"}
    assert upstream_hash(renumbered, "9", MODEL_INPUTS) == upstream_hash(graph(), "9", MODEL_INPUTS)


def test_a_circle_or_a_gap_is_no_error() -> None:
    broken = graph()
    broken["1"]["inputs"]["base_name"] = ["2", 0]
    broken["9"]["inputs"]["vae"] = ["404", 0]
    assert upstream_hash(broken, "9", MODEL_INPUTS)
    assert upstream_hash({}, "9", MODEL_INPUTS)
    assert list(upstream({}, "9", MODEL_INPUTS)) == []


def test_names_and_texts() -> None:
    assert model_name(graph(), "9") == "some"
    assert model_name({}, "9") == ""
    assert png_texts(None, None) == {}
    texts = png_texts(graph(), {"workflow": {"nodes": []}})
    assert json.loads(texts["prompt"]) == graph()
    assert json.loads(texts["workflow"]) == {"nodes": []}
