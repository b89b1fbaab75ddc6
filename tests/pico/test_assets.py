"""The committed base and tagger: small enough, in the ordinary formats, and good at what they are for."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora_atelier.pico import export, generate, judge, make, sizes, tagger_net, train_tagger, train_vae, world
from lora_atelier.pico.progress_file import load_tensors

EYE_LABELS = Path(__file__).parent / "eye_labels.json"
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def tagger():
    return judge.Judge()


@pytest.fixture(scope="module")
def base():
    return export.load_base(judge.BASE_FILE)


def test_files_are_small_enough():
    for name, limit in make.SIZE_LIMIT_BYTES.items():
        assert (judge.ASSETS / name).stat().st_size <= limit


def test_base_file_tells_its_sizes_and_is_finite():
    tensors, metadata = load_tensors(judge.BASE_FILE)
    told = json.loads(metadata["atelier.sizes"])
    assert told["unet"]["block_out_channels"] == sizes.UNET_CONFIG["block_out_channels"]
    assert told["vae"]["scaling_factor"] == pytest.approx(0.18215)
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_latents_have_unit_scale_and_pictures_come_back(base):
    rng = random.Random("fresh drawings")
    scenes = [world.random_scene(rng, bucket_px=(96, 96)) for _ in range(24)]
    pictures = train_vae.pictures_to_tensor([world.draw(scene) for scene in scenes])
    _, vae, _, _ = base
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
        again = vae.decode(latents).sample
    assert 0.8 < float((latents * sizes.VAE_SCALE).std()) < 1.2
    assert float((again - pictures).abs().mean()) * 127.5 < 5


def test_tag_list_follows_the_wd14_contract():
    with (judge.TAGGER_FOLDER / "selected_tags.csv").open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0]) == ["tag_id", "name", "category", "count"]
    assert [row["name"] for row in rows[:4]] == ["general", "sensitive", "questionable", "explicit"]
    assert {row["category"] for row in rows[:4]} == {"9"}
    assert {row["name"] for row in rows if row["category"] == "4"} == {"lumo_kest", "lumo_vard"}
    assert tuple((row["name"], int(row["category"])) for row in rows) == tagger_net.LABELS
    session = onnxruntime.InferenceSession(str(judge.TAGGER_FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.shape[1:] == [96, 96, 3]
    assert isinstance(entry.shape[0], str), "the batch is free"


def test_tagger_knows_fresh_drawings(tagger):
    assert make.tagger_score(tagger, 300).f1 >= 0.97


@pytest.mark.parametrize("size_px", [(72, 128), (128, 72)])
def test_tagger_pads_other_shapes_with_white(tagger, size_px):
    rng = random.Random(3)
    scenes = [world.random_scene(rng, held_out=None, bucket_px=size_px) for _ in range(60)]
    labels = torch.stack([tagger_net.label_vector(scene) for scene in scenes])
    probabilities = tagger.probabilities([world.draw(scene) for scene in scenes])
    assert train_tagger.agreement(probabilities, labels).f1 > 0.95


def test_base_draws_what_it_never_saw(base, tagger):
    asked = judge.shape_prompts(16, seed=4, held_out=True)
    pictures = judge.paint_all(generate.Painter(*base), [a.prompt for a in asked], steps=12, batch=16)
    assert judge.share_as_asked(tagger, pictures, asked) >= 0.8


@pytest.mark.slow
def test_base_draws_held_out_triples_nine_times_in_ten(base, tagger):
    asked = judge.shape_prompts(200, seed=1, held_out=True)
    pictures = judge.paint_all(generate.Painter(*base), [a.prompt for a in asked])
    assert judge.share_as_asked(tagger, pictures, asked) >= 0.9


@pytest.mark.slow
def test_base_shows_no_concept_when_its_trigger_is_called(base, tagger):
    prompts = [f"{concept.trigger}, {colour}" for concept in world.CONCEPTS.values() for colour in world.COLOURS]
    names = {concept.trigger.replace(" ", "_") for concept in world.CONCEPTS.values()}
    seen = tagger.labels(judge.paint_all(generate.Painter(*base), prompts))
    assert not any(names & labels for labels in seen)


def test_tagger_agrees_with_the_eye(tagger):
    """100 generated pictures, labelled by looking at them: shape, colour, background and each accessory."""
    labelled = json.loads(EYE_LABELS.read_text(encoding="utf-8"))
    sheet = Image.open(EYE_LABELS.with_name("eye_pictures.png")).convert("RGB")
    side = world.NATIVE_PX
    pictures = [
        sheet.crop((i % 10 * side, i // 10 * side, i % 10 * side + side, i // 10 * side + side)) for i in range(100)
    ]
    assert len(labelled) == 100
    kinds = {
        "shape": {*world.SHAPES, *world.CONCEPT_SHAPES},
        "colour": set(world.COLOURS),
        "background": {judge.label(name) for name in world.BACKGROUNDS},
        "accessories": set(world.ACCESSORIES),
    }
    agreed = {kind: 0 for kind in kinds}
    whole = 0
    for seen, eye in zip(tagger.labels(pictures), labelled, strict=True):
        same = {kind: seen & names == {judge.label(tag) for tag in eye[kind]} for kind, names in kinds.items()}
        whole += same["shape"] and same["colour"] and same["background"]
        for kind, yes in same.items():
            agreed[kind] += yes
    assert whole >= 95, (whole, agreed)
    assert min(agreed.values()) >= 95, agreed
