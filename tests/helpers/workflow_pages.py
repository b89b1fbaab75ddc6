"""Writes shipped workflows in both forms from one description, so that page and API form cannot differ.

python tests/helpers/workflow_pages.py
"""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "atelier_tests" not in sys.modules:
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))

CORE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "KSampler": (
        {
            "model": "MODEL",
            "seed": "INT",
            "steps": "INT",
            "cfg": "FLOAT",
            "sampler_name": "COMBO",
            "scheduler": "COMBO",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "latent_image": "LATENT",
            "denoise": "FLOAT",
        },
        ("LATENT",),
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "PreviewImage": ({"images": "IMAGE"}, ()),
}
"""Inputs in order and outputs of the core nodes that shipped workflows use."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CORE_SEEDS = {("KSampler", "seed")}
"""Inputs after which the page keeps a hidden "control after generate" value."""
CORE_MULTILINE = {("CLIPTextEncode", "text")}
ROW_PX, WIDGET_PX, TEXT_PX, FOOT_PX, BARE_FOOT_PX = 20, 24, 54, 14, 6
"""How the page lays a node out: its sockets in rows, its widgets, fields of several lines, and what stays below."""
FADERS_PX = {"AtelierApplyLora": 196, "AtelierOpenLora": 196}
"""What the pack's own page script puts below the widgets of a node: the faders of block weights."""
TITLE_PX = 30
"""Height of the bar above a node's place."""
GAP_PX = 60
"""From one node's end to the next one's place: its title bar, and as much again."""


@dataclass
class Page:
    """Nodes, groups and notes of one workflow."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    api: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        class_type: str,
        place: tuple[int, int],
        size: tuple[int, int],
        *,
        title: str = "",
        widgets: dict[str, Any] | None = None,
        **inputs: Any,
    ) -> "Placed":
        """Add a node; inputs are values or `Placed.out(n)`; what is left out takes its default.

        It is made as high as its sockets and widgets need, if the given size is less.
        """
        inputs |= widgets or {}
        size = (size[0], max(size[1], least_height(class_type)))
        number = len(self.nodes) + 1
        kinds, outputs, defaults, widget_names, shown = interface(class_type)
        unknown = set(inputs) - set(kinds)
        assert not unknown, f"{class_type} has no input {unknown}"
        entry: dict[str, Any] = {
            "id": number,
            "type": class_type,
            "pos": list(place),
            "size": list(size),
            "flags": {},
            "order": number - 1,
            "mode": 0,
            "inputs": [],
            "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
            "properties": {"Node name for S&R": class_type},
            "widgets_values": [],
        }
        if title:
            entry["title"] = title
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            given = inputs.get(name, defaults.get(name))
            is_wire = isinstance(given, Wire)
            if name in widget_names:
                entry["widgets_values"].append(defaults.get(name, "") if is_wire else given)
                if (class_type, name) in CORE_SEEDS:
                    entry["widgets_values"].append("fixed")
            if is_wire:
                values[name] = [str(given.node), given.output]
                self._wire(given, number, len(entry["inputs"]), kind)
            elif name in widget_names:
                values[name] = given
            if is_wire or name not in widget_names:
                socket: dict[str, Any] = {"name": name, "type": kind, "link": self.links[-1][0] if is_wire else None}
                if name in widget_names:
                    socket["widget"] = {"name": name}
                entry["inputs"].append(socket)
        self.nodes.append(entry)
        self.api[str(number)] = {"class_type": class_type, "inputs": values, "_meta": {"title": title or shown}}
        return Placed(number, place[1] + size[1])

    def column(self, left: int, width: int, *, top: int = 60) -> "Column":
        """A column of nodes, one below the other."""
        return Column(self, left, width, top)

    def _wire(self, wire: "Wire", target: int, slot: int, kind: str) -> None:
        number = len(self.links) + 1
        source = self.nodes[wire.node - 1]["outputs"][wire.output]
        source["links"].append(number)
        self.links.append([number, wire.node, wire.output, target, slot, source["type"]])

    def note(self, text: str, place: tuple[int, int], size: tuple[int, int]) -> None:
        """Add a note; it is no part of the API form."""
        self.nodes.append(
            {
                "id": len(self.nodes) + 1,
                "type": "MarkdownNote",
                "pos": list(place),
                "size": list(size),
                "flags": {},
                "order": len(self.nodes),
                "mode": 0,
                "inputs": [],
                "outputs": [],
                "properties": {},
                "widgets_values": [text],
                "color": "#432",
                "bgcolor": "#653",
            }
        )

    def group(self, title: str, box: tuple[int, int, int, int], color: str) -> None:
        """Add a frame around (x, y, width, height)."""
        number = len(self.groups) + 1
        self.groups.append(
            {"id": number, "title": title, "bounding": list(box), "color": color, "font_size": 24, "flags": {}}
        )

    def group_over(self, title: str, columns: "list[Column]", color: str) -> None:
        """Add a frame around columns, as high as the highest."""
        left, right = columns[0].left - 20, columns[-1].left + columns[-1].width + 20
        bottom = max(column.bottom for column in columns) + 30
        top = min(column.start for column in columns) - 70
        self.group(title, (left, top, right - left, bottom - top), color)

    def write(self, name: str) -> None:
        """Write ``workflows/<name>.json`` and ``api_workflows/<name>.json``."""
        page = {
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": self.groups,
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [60, 120]}},
            "version": 0.4,
        }
        for folder, value in (("workflows", page), ("api_workflows", self.api)):
            target = ROOT / folder / f"{name}.json"
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="\n")


@dataclass(frozen=True)
class Wire:
    """An output of a node."""

    node: int
    output: int


@dataclass(frozen=True)
class Placed:
    """A node on the page; `bottom` is where it ends."""

    number: int
    bottom: int = 0

    def out(self, output: int = 0) -> Wire:
        """One of its outputs."""
        return Wire(self.number, output)


class Column:
    """Nodes below each other."""

    def __init__(self, page: Page, left: int, width: int, top: int) -> None:
        self.page, self.left, self.width, self.start, self.bottom = page, left, width, top, top - GAP_PX

    def add(self, class_type: str, *, at_least: int = 0, **given: Any) -> Placed:
        """Add a node below the last one, at least so many px high."""
        placed = self.page.add(class_type, (self.left, self.bottom + GAP_PX), (self.width, at_least), **given)
        self.bottom = placed.bottom
        return placed


def least_height(class_type: str) -> int:
    """The height the page gives a node; a report or a picture that it shows once it ran needs more."""
    kinds, outputs, _, widgets, _ = interface(class_type)
    rows = max(len(kinds) - len(widgets), len(outputs))
    if not widgets:
        return rows * ROW_PX + BARE_FOOT_PX
    lines = len(multiline(class_type))
    seeds = sum(owner == class_type for owner, _ in CORE_SEEDS)
    plain = len(widgets) - lines + seeds
    added = FADERS_PX.get(class_type, 0)
    return rows * ROW_PX + plain * WIDGET_PX + lines * TEXT_PX + FOOT_PX + added


def multiline(class_type: str) -> set[str]:
    """The widgets that are fields of several lines."""
    if class_type in CORE:
        return {name for owner, name in CORE_MULTILINE if owner == class_type}
    from lora_atelier import NODE_CLASS_MAPPINGS

    declared = NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()
    entries = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name for name, entry in entries.items() if len(entry) > 1 and entry[1].get("multiline")}


def interface(
    class_type: str,
) -> tuple[dict[str, str], list[tuple[str, str]], dict[str, Any], set[str], str]:
    """Input kinds, (name, kind) of outputs, defaults, names of the widgets, and title of a node class."""
    if class_type in CORE:
        kinds, outputs = CORE[class_type]
        widgets = {name for name, kind in kinds.items() if kind in WIDGETS}
        return kinds, [(kind, kind) for kind in outputs], {"denoise": 1.0, "batch_size": 1}, widgets, class_type
    from lora_atelier import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    node: Any = NODE_CLASS_MAPPINGS[class_type]
    declared = node.INPUT_TYPES()
    entries = {**declared.get("required", {}), **declared.get("optional", {})}
    kinds = {name: "COMBO" if isinstance(entry[0], list) else entry[0] for name, entry in entries.items()}
    widgets = {name for name, kind in kinds.items() if kind in WIDGETS and not entries[name][1].get("forceInput")}
    defaults = {
        name: entry[1].get("default", entry[0][0] if isinstance(entry[0], list) else "")
        for name, entry in entries.items()
        if name in widgets
    }
    outputs = list(zip(node.RETURN_NAMES, node.RETURN_TYPES, strict=True))
    return kinds, outputs, defaults, widgets, NODE_DISPLAY_NAME_MAPPINGS[class_type]


PICO = "pico (built in)"
SAMPLING = {"steps": 12, "cfg": 3.0}
STRENGTH = 1.2
"""A LoRA of two minutes is put on a little stronger than it was trained."""
NOTE = """## Quickstart
A LoRA is trained from drawings, put on, compared and scored. Everything is built in: press **Run** and wait about four
minutes on a laptop's processor.

1. **Draw Pico Data Set** draws 28 pictures of a character the model has never seen, and 112 without it.
2. **Train LoRA** learns it. Press Run again: the finished run comes back at once. Cancel keeps what was learned.
3. **Apply LoRA** puts it on a model, like any LoRA loader.
4. **XY Grid** compares the model without it, an early checkpoint and the last one.
5. **Score Grid** counts on 96 more prompts how often the trigger works, and whether everything else still does.

Then put your own folder into **Open Data Set** (below ComfyUI's `input` folder) and your own model into **Open Base
Model**, with 512 px, more steps and the bucket sizes of your model."""


def quickstart() -> Page:
    """Everything from drawings to a scorecard, on the built-in model."""
    page = Page()
    data_column, recipe, use, eye, numbers, results = (
        page.column(left, width)
        for left, width in ((40, 330), (430, 330), (820, 330), (1210, 330), (1600, 330), (1990, 420))
    )
    base = data_column.add("AtelierOpenBase", base_name=PICO, dtype="fp32")
    model = data_column.add("AtelierBaseToModel", base=base.out())
    drawn = data_column.add(
        "AtelierPicoDataset", concept="kest", num_images=28, num_reg_images=112, seed=0, concept_repeats=10
    )
    data = data_column.add("AtelierOpenDataset", folder=drawn.out(0), reg_folder=drawn.out(1), keep_tokens=1)

    network = recipe.add("AtelierNetworkLora", rank=16, alpha=16.0)
    optimizer = recipe.add(
        "AtelierOptimizerAdamw",
        lr_unet=4e-3,
        lr_text_encoder=3e-3,
        schedule="cosine",
        warmup_steps=20,
        beta2=0.99,
        weight_decay=0.01,
    )
    train = recipe.add(
        "AtelierTrainLora",
        base=base.out(),
        dataset=data.out(),
        network=network.out(),
        optimizer=optimizer.out(),
        run_name="quickstart",
        steps=410,
        batch_size=8,
        resolution_px=96,
        seed=0,
        save_every_steps=100,
        bucket_step_px=8,
        bucket_min_px=32,
        bucket_max_px=128,
    )
    recipe.add("AtelierPlotLoss", at_least=330, run=train.out(0))

    # the order of what follows decides the nodes' numbers, which saved links keep; the places do not depend on it
    apply = page.add(
        "AtelierApplyLora",
        (use.left, 290),
        (use.width, 0),
        model=model.out(0),
        clip=model.out(1),
        lora=train.out(1),
        strength_model=STRENGTH,
        strength_clip=STRENGTH,
    )
    words = use.add(
        "AtelierPicoPrompts", title="One trigger prompt", concept="kest", kind="trigger", num_prompts=1, seed=0
    )
    use.bottom = apply.bottom
    positive = use.add("CLIPTextEncode", title="Positive", text=words.out(0), clip=apply.out(1))
    negative = use.add("CLIPTextEncode", title="Negative", text="", clip=apply.out(1))
    empty = use.add("EmptyLatentImage", width=96, height=96)
    sampled = use.add(
        "KSampler",
        model=apply.out(0),
        positive=positive.out(),
        negative=negative.out(),
        latent_image=empty.out(),
        seed=1,
        sampler_name="euler",
        scheduler="normal",
        **SAMPLING,
    )
    decoded = use.add("VAEDecode", samples=sampled.out(), vae=model.out(2))
    use.add("PreviewImage", at_least=200, images=decoded.out())

    words = eye.add(
        "AtelierPicoPrompts", title="Trigger prompts", concept="kest", kind="trigger", num_prompts=4, seed=0
    )
    columns = eye.add(
        "AtelierAxisRunCheckpoints",
        title="Columns: base, early, final",
        steps="first, last",
        strength=STRENGTH,
        run=train.out(0),
    )
    rows = eye.add("AtelierAxisPrompt", title="Rows: trigger prompts", prompts=words.out(0))
    wires = {"model": model.out(0), "clip": model.out(1), "vae": model.out(2)}
    drawing = {"sampler": "euler", "scheduler": "normal", "width_px": 96, "height_px": 96, "seed": 1, **SAMPLING}
    eye.add(
        "AtelierXYGrid",
        at_least=700,
        title="Compare (Atelier)",
        **wires,
        **drawing,
        x=columns.out(),
        y=rows.out(),
        widgets={"title": "without the LoRA, early, final"},
    )

    probe_words = numbers.add(
        "AtelierPicoPrompts", title="Probe prompts", concept="kest", kind="mixed", num_prompts=96, seed=1
    )
    probe_columns = numbers.add(
        "AtelierAxisRunCheckpoints", title="Columns: base, final", steps="last", strength=STRENGTH, run=train.out(0)
    )
    probe_rows = numbers.add("AtelierAxisPrompt", title="Rows: probe prompts", prompts=probe_words.out(0), seed_step=1)
    probe = numbers.add(
        "AtelierXYGrid",
        at_least=700,
        title="Probe (Atelier)",
        **wires,
        **drawing,
        x=probe_columns.out(),
        y=probe_rows.out(),
    )
    score = results.add(
        "AtelierScoreGrid",
        at_least=400,
        grid=probe.out(1),
        tagger_name=PICO,
        trigger=probe_words.out(1),
        concept_tag=probe_words.out(2),
    )
    results.add("AtelierRunReport", at_least=420, run=train.out(0), score=score.out(0))

    page.group_over("1 Model and data", [data_column], "#3f789e")
    page.group_over("2 Train", [recipe], "#a1309b")
    page.group_over("3 Use it with core nodes", [use], "#3f789e")
    page.group_over("4 Compare by eye", [eye], "#8A8")
    page.group_over("5 Compare by numbers", [numbers, results], "#b06634")
    page.note(NOTE, (40, data_column.bottom + 90), (330, 520))
    return page


def pages() -> dict[str, Callable[[], Page]]:
    """Every shipped workflow by name."""
    from atelier_tests.helpers.merge_pages import merge_recipe
    from atelier_tests.helpers.prepare_pages import prepare_character, prepare_style
    from atelier_tests.helpers.surgery_page import lora_surgery
    from atelier_tests.helpers.train_pages import (
        compare_networks,
        train_character_sd15,
        train_character_sdxl,
        train_style,
    )

    return {
        "quickstart": quickstart,
        "prepare-character": prepare_character,
        "prepare-style": prepare_style,
        "train-character-sd15": train_character_sd15,
        "train-character-sdxl": train_character_sdxl,
        "train-style": train_style,
        "compare-networks": compare_networks,
        "lora-surgery": lora_surgery,
        "merge-recipe": merge_recipe,
    }


def main() -> None:
    """Write every shipped workflow."""
    for name, make in pages().items():
        make().write(name)


if __name__ == "__main__":
    main()
