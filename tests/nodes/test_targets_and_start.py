"""The node of targets, the nodes of the networks, and a training that begins with a LoRA."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.core.params import Choice
from lora_atelier.merger.lora.handle import Lora
from lora_atelier.networks._spec import networks
from lora_atelier.nodes._options import option_nodes
from lora_atelier.nodes.blocks import Blocks, parsed
from lora_atelier.nodes.train import start_of


def lora(family: str) -> Lora:
    return Lora(path=Path("x.safetensors"), name="x.safetensors", sha256="0" * 64, family=family)


def base(family: str) -> Any:
    return SimpleNamespace(name="base.safetensors", family=family)


def inputs_of(node: Any) -> dict[str, Any]:
    return {key: entry for section in node.INPUT_TYPES().values() for key, entry in section.items()}


def test_a_run_begins_with_a_lora_of_its_family_only() -> None:
    assert start_of(base("sd15"), lora("sd15")).sha256 == "0" * 64
    with pytest.raises(InputError, match=r"x.safetensors is a LoRA for sdxl and base.safetensors is sd15"):
        start_of(base("sd15"), lora("sdxl"))


def test_targets_of_every_family_are_read() -> None:
    text, names = Blocks().choose(
        " IN04-07, OUT03 \nOUT03: rank 4\n",
    )
    assert text == "IN04-07, OUT03 \nOUT03: rank 4"
    assert names == "IN04, IN05, IN06, IN07, OUT03"
    assert parsed(f"block_dims: {','.join(['4'] * 23)}").family_blocks[-1] == "OUT08"
    assert parsed(f"block_dims: {','.join(['4'] * 25)}").family_blocks[-1] == "OUT11"


@pytest.mark.parametrize("text", ["OUT99", "groups: attn9", "OUT03: rnk 4", "NOT"])
def test_wrong_targets_are_refused_by_the_node(text: str) -> None:
    with pytest.raises(InputError):
        Blocks().choose(text)


def test_a_misspelt_block_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="OUT11"):
        Blocks().choose("OUT12")


def test_every_network_has_a_node() -> None:
    import logging

    nodes = {node.ID: node for node in option_nodes(logging.getLogger("test"))}
    for name, network in networks().items():
        node = nodes[f"AtelierNetwork{''.join(word.capitalize() for word in name.split('_'))}"]
        assert network.title in node.TITLE
        inputs = {key: options["default"] for key, (_, options) in inputs_of(node).items()}
        (choice,) = node().choose(**inputs)
        assert choice == Choice(kind="network", name=name, params=network.params())
    first = list(inputs_of(nodes["AtelierNetworkLora"]))[:3]
    assert first == ["rank", "alpha", "dropout"]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("lora", {"dora": "input", "tucker": True}, "dora and tucker"),
        ("lora", {"dora": "input", "max_norm": 1.0}, "dora and max_norm"),
        ("lora", {"dora": "sideways"}, "dora"),
        ("lora", {"up_lr_ratio": 0.0}, "up_lr_ratio"),
        ("lokr", {"factor": 0}, "factor is 0"),
        ("lokr", {"full_matrix": True, "decompose_both": True}, "full_matrix and decompose_both"),
        ("lokr", {"full_matrix": True, "tucker": True}, "full_matrix and tucker"),
        ("dylora", {"rank": 10, "unit": 4}, "rank is 10 and unit is 4"),
        ("dylora", {"conv_rank": 3}, "conv_rank is 3 and unit is 4"),
        ("diag_oft", {"rank": 1}, "rank"),
        ("loha", {"alpha": 0.0}, "alpha"),
        ("full", {"module_dropout": 1.0}, "module_dropout"),
    ],
)
def test_options_that_contradict_each_other_are_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        networks()[name].params(**given)
