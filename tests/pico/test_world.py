"""The drawn world: the same scene is the same picture, captions tell the truth, the hold-out and the concepts hold."""

import random

import numpy as np
import pytest

from lora_atelier.pico import world
from lora_atelier.pico.train_unet import BaseTraining, training_scenes


def scenes(number=300, **given):
    rng = random.Random("test scenes")
    return [world.random_scene(rng, **given) for _ in range(number)]


def test_same_scene_is_the_same_picture():
    for scene in scenes(10):
        first, second = world.draw(scene), world.draw(scene)
        assert first.size == (scene.width_px, scene.height_px)
        assert first.tobytes() == second.tobytes()


def test_a_known_picture_has_not_changed():
    scene = world.Scene(shape="circle", colour="red", background="white background", jitter_seed=1)
    pixels = np.asarray(world.draw(scene)).astype(int)
    assert np.abs(pixels[48, 48] - world.COLOURS["red"]).max() <= 9
    assert np.abs(pixels[4, 4] - world.BACKGROUNDS["white background"]).max() <= 5
    area = (np.abs(pixels - pixels[48, 48]).max(axis=2) < 12).sum()
    assert 0.19 < area / pixels[..., 0].size < 0.30


def test_captions_tell_the_truth():
    rng = random.Random(2)
    for scene in scenes(100):
        true = set(world.tags_of(scene))
        assert set(world.caption(scene, rng).split(", ")) == true
        assert set(world.caption(scene, rng, keep=0.3).split(", ")) - {""} <= true


def test_colour_and_background_are_seen_where_the_tags_say():
    for scene in scenes(60, count=1):
        pixels = np.asarray(world.draw(scene)).reshape(-1, 3).astype(int)
        for name, least in ((world.COLOURS[scene.colour], 0.01), (world.BACKGROUNDS[scene.background], 0.3)):
            assert (np.abs(pixels - name).max(axis=1) <= 10).mean() > least


def test_shapes_stay_inside_the_picture():
    for scene in scenes(200):
        border = np.asarray(world.draw(scene)).astype(int)
        corner = border[0, 0]
        edges = np.concatenate([border[0], border[-1], border[:, 0], border[:, -1]])
        assert (np.abs(edges - corner).max(axis=1) > 30).mean() < 0.02, scene


def test_held_out_triples_are_balanced_and_never_in_base_training():
    held_out = set(world.held_out_triples())
    assert len(held_out) == 36
    for place, names in ((0, world.SHAPES), (1, world.COLOURS), (2, world.BACKGROUNDS)):
        counts = [sum(triple[place] == name for triple in held_out) for name in names]
        assert min(counts) >= 5
        assert max(counts) <= 9
    base = [scene for group in training_scenes(BaseTraining(drawings=3000)).values() for scene in group]
    assert held_out.isdisjoint(scene.triple for scene in base)
    assert len({scene.triple for scene in base}) == 180 - 36
    assert not any(world.concepts_shown(scene) or scene.shape in world.CONCEPT_SHAPES for scene in base)


def test_concepts_are_made_of_traits_no_base_picture_has():
    for concept in world.CONCEPTS.values():
        assert concept.shape in world.CONCEPT_SHAPES or concept.hatched
    characters = [c for c in world.CONCEPTS.values() if c.kind == "character"]
    assert len(characters) == 2
    assert set.intersection(*(set(c.trigger.split()) for c in characters)), "the triggers share one word"
    assert all(len(c.traits) >= 3 for c in characters)


@pytest.mark.parametrize("name", world.CONCEPTS)
def test_concept_scenes_show_their_concept_alone(name):
    rng = random.Random(5)
    for _ in range(50):
        assert world.concepts_shown(world.concept_scene(rng, world.CONCEPTS[name])) == (name,)


def test_made_up_words_never_mean_anything():
    rng = random.Random(6)
    words = {world.nonsense_word(rng) for _ in range(5000)}
    assert len(words) > 1000
    triggers = {word for c in world.CONCEPTS.values() for word in c.trigger.split()}
    assert not any(trigger in word for trigger in triggers for word in words)
    assert words.isdisjoint(world.RESERVED_WORDS)


def test_made_up_words_are_in_about_a_fifth_of_base_captions():
    rng = random.Random(7)
    scene = world.random_scene(rng)
    captions = [world.caption(scene, rng, nonsense_rate=BaseTraining().nonsense_rate) for _ in range(2000)]
    odd = [c for c in captions if set(c.split(", ")) - set(world.tags_of(scene))]
    assert 0.15 < len(odd) / len(captions) < 0.25


def test_buckets_are_steps_of_8_px_with_the_native_area():
    for width_px, height_px in world.BUCKETS_PX:
        assert width_px % 8 == height_px % 8 == 0
        assert 0.9 < width_px * height_px / world.NATIVE_PX**2 < 1.1
