"""Nodes of tag steps, recipe, presets and statistics: inputs, files below the roots only, tokens, dry run."""

from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.captions import KAYOKO, KAYOKO_KEPT, captions_of, dataset_of
from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.sources import ROOT
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError, InputError
from lora_atelier.families import _tokenizer
from lora_atelier.families._base import open_base
from lora_atelier.nodes.host import set_host
from lora_atelier.tagger.steps._spec import steps


def only_from_disk(load: Any) -> Any:
    def from_folder(name: str) -> Any:
        if not Path(name).is_dir():
            raise OSError("not on this disk")
        return load(name)

    return from_folder


@pytest.fixture
def host(tmp_path: Path, monkeypatch: Any) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    # The machine's own cache of tokenizers decides nothing here; where one counts, the test gives a base.
    monkeypatch.setattr(_tokenizer, "_from_folder", only_from_disk(_tokenizer._from_folder))
    yield host
    set_host(None)


def run(node_id: str, dataset: Any, **values: Any) -> Any:
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()["required"]
    defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
    answer = getattr(node(), node.FUNCTION)(dataset=dataset, **{**defaults, **values})
    assert answer["ui"]["text"]
    return answer["result"]


def test_every_step_has_a_node_that_runs_at_its_defaults_or_says_what_it_wants(host: FakeHost) -> None:
    for name in steps():
        node_id = "AtelierStep" + "".join(word.capitalize() for word in name.split("_"))
        dataset = dataset_of(["1girl, aiming at viewer, score:7, short hair, long hair"])
        try:
            changed, report = run(node_id, dataset)
        except AtelierError as refusal:
            assert name in ("alias", "blacklist", "trigger"), refusal  # noqa: PT017
            assert "write" in str(refusal)  # noqa: PT017
            continue
        assert len(changed) == 1
        assert "1 caption" in report


def test_a_list_file_is_found_below_the_roots_and_edits_are_seen(host: FakeHost) -> None:
    path = host.input_dir() / "list.txt"
    path.write_text("a, b", encoding="utf-8")
    node = NODE_CLASS_MAPPINGS["AtelierStepBlacklist"]
    states = [node.IS_CHANGED(file="list.txt"), node.IS_CHANGED(file=""), node.IS_CHANGED(file=None)]
    changed, _ = run("AtelierStepBlacklist", dataset_of(["a, b, c"]), file="list.txt")
    assert captions_of(changed) == ["c"]
    path.write_text("a, b, c", encoding="utf-8")
    assert node.IS_CHANGED(file="list.txt") not in states


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../loras/list.txt", "climbs out"),
        ("absent.txt", "there is no list file"),
        ("folder", "is a folder; name a .csv or .txt file in it"),
        ("latin.txt", "is not UTF-8 text; save it as UTF-8"),
        ("link.txt", "lies outside the allowed folders"),
    ],
)
def test_list_files_that_are_refused(host: FakeHost, name: str, message: str) -> None:
    (host.input_dir() / "folder").mkdir()
    (host.input_dir() / "latin.txt").write_bytes(b"caf\xe9")
    outside = host.base / "outside.txt"
    outside.write_text("a", encoding="utf-8")
    try:
        (host.input_dir() / "link.txt").symlink_to(outside)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(AtelierError, match=message):
        run("AtelierStepBlacklist", dataset_of(["a"]), file=name)
    assert NODE_CLASS_MAPPINGS["AtelierStepBlacklist"].IS_CHANGED(file=name)


def test_the_recipe_node(host: FakeHost) -> None:
    (host.input_dir() / "a.csv").write_text("kitty,cat\n", encoding="utf-8")
    text = "# why\nalias file=a.csv\ntrigger: zwx\n"
    changed, report, recipe = run("AtelierTagRecipe", dataset_of(["kitty"]), recipe=text)
    assert captions_of(changed) == ["zwx, cat"]
    assert recipe == "alias file=a.csv\ntrigger: zwx\n"
    assert "2. trigger" in report
    node = NODE_CLASS_MAPPINGS["AtelierTagRecipe"]
    before = node.IS_CHANGED(recipe=text)
    (host.input_dir() / "a.csv").write_text("kitty,dog,\n", encoding="utf-8")
    assert node.IS_CHANGED(recipe=text) != before
    assert "line 1" in node.IS_CHANGED(recipe="nonsense")
    assert node.IS_CHANGED(recipe=None)


def test_the_default_recipe_runs(host: FakeHost) -> None:
    changed, _, _ = run("AtelierTagRecipe", dataset_of(["shirt, white_shirt, solo, 1girl, highres"]))
    assert captions_of(changed) == ["solo, 1girl, white shirt"]


class TestConceptPreset:
    def test_a_dry_run_changes_nothing_and_shows_the_table(self, host: FakeHost) -> None:
        dataset = dataset_of([KAYOKO])
        same, report, recipe = run("AtelierConceptPreset", dataset, trigger="kayoko")
        assert same is dataset
        assert "DRY RUN" in report
        assert "- white hair" in report
        assert "trigger keep_at_front=yes: kayoko" in recipe

    def test_flips_and_no_dry_run(self, host: FakeHost) -> None:
        values = {"keep": "medium hair", "remove": "blush", "dry_run": False}
        changed, report, recipe = run("AtelierConceptPreset", dataset_of([KAYOKO]), **values)
        assert captions_of(changed) == [KAYOKO_KEPT]
        assert "1 of 1 caption changed" in report
        again, _, _ = run("AtelierTagRecipe", dataset_of([KAYOKO]), recipe=recipe)
        assert captions_of(again) == [KAYOKO_KEPT]


def test_statistics(host: FakeHost) -> None:
    report, wildcards, document = run("AtelierTagStatistics", dataset_of(["zwx, 1girl, horns"] * 3))
    assert "horns" in report
    assert wildcards == "zwx, 1girl, horns"
    assert document.startswith("# Tags for prompting")


class TestTokens:
    def test_the_tokenizer_of_a_base_counts(self, host: FakeHost) -> None:
        pytest.importorskip("transformers")
        base = open_base(ROOT / "pico" / "assets" / "pico-base.safetensors", name="pico")
        changed, report = run("AtelierStepBudget", dataset_of(["red circle, blue square"]), base=base, limit=2)
        assert "tokens counted by the tokenizer of pico" in report
        assert captions_of(changed) == ["red circle"]

    def test_without_any_tokenizer_it_is_an_estimate(self, host: FakeHost, monkeypatch: Any) -> None:
        _, report = run("AtelierStepBudget", dataset_of(["a"]))
        assert "ESTIMATE" in report

        def none(*_: Any) -> Any:
            raise InputError("no tokenizer")

        monkeypatch.setattr(_tokenizer, "find_tokenizer", none)
        base = open_base(ROOT / "pico" / "assets" / "pico-base.safetensors", name="pico")
        with pytest.raises(InputError, match="the tokens of pico cannot be counted"):
            run("AtelierStepBudget", dataset_of(["a"]), base=base)
