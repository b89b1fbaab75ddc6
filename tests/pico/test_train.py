"""Training stages: a stopped and continued stage ends with the same weights, and each step's data is its own."""

import pytest
import torch

from lora_atelier.pico import detector, make, train_detector, train_tagger, train_unet, train_vae, world
from lora_atelier.pico.muon import Muon, orthogonalised, split_weights
from lora_atelier.pico.progress_file import load_tensors


def test_continued_stage_equals_uninterrupted_stage(tmp_path, monkeypatch):
    full = train_tagger.TaggerTraining(steps=6, batch=4, drawings=12, decoded=0, save_every_steps=3)
    whole, _ = train_tagger.train_tagger(tmp_path / "whole", None, full)
    reached = []
    save = train_tagger.save_state

    def save_then_stop(path, modules, optimizers, step):
        save(path, modules, optimizers, step)
        reached.append(step)
        if len(reached) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_tagger, "save_state", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_tagger.train_tagger(tmp_path / "parts", None, full)
    parts, _ = train_tagger.train_tagger(tmp_path / "parts", None, full)
    assert reached == [3, 6]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_continued_detector_equals_uninterrupted_detector(tmp_path, monkeypatch):
    settings = train_detector.DetectorTraining(steps=4, batch=4, drawings=12, save_every_steps=2)
    whole = train_detector.train_detector(tmp_path / "whole", settings)
    save = train_detector.save_state

    def save_then_stop(path, modules, optimizers, step):
        save(path, modules, optimizers, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_detector, "save_state", save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train_detector.train_detector(tmp_path / "parts", settings)
    parts = train_detector.train_detector(tmp_path / "parts", settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_the_exported_detector_gives_what_the_network_gives(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    net = detector.DetectorNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    net.eval()
    detector.write_onnx(net, tmp_path / "model.onnx")
    pictures = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        raw = net(pictures)
        left, top, right, bottom = detector.sides(raw).unbind(1)
    made = onnxruntime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"images": pictures.numpy()})[0]
    expected = [
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
        *raw[:, 4:].flatten(2).sigmoid().unbind(1),
    ]
    assert torch.allclose(torch.from_numpy(made), torch.stack(expected, dim=1), atol=1e-3)


def test_a_cell_answers_for_the_nearest_box_it_lies_in():
    boxes = torch.full((1, 3, 5), -1.0)
    boxes[0, 0] = torch.tensor([0.0, 20, 20, 60, 80])
    boxes[0, 1] = torch.tensor([1.0, 30, 20, 50, 40])
    kinds, wanted = train_detector.targets(boxes, 5.0)
    x, y = detector.cell_centres()
    at = lambda px, py: int(((x - px).square() + (y - py).square()).argmin())  # noqa: E731
    assert kinds[0, at(40, 50)] == 0
    assert kinds[0, at(40, 30)] == 1
    assert kinds[0, at(40, 70)] == -1
    assert wanted[0, :, at(40, 30)].tolist() == [30, 20, 50, 40]


@pytest.mark.slow
def test_continued_base_equals_uninterrupted_base(tmp_path):
    settings = train_unet.BaseTraining(steps=4, batch=2, drawings=40)
    scenes = train_unet.training_scenes(settings)
    latents = {(w, h): torch.randn(len(group), 4, h // 8, w // 8) for (w, h), group in scenes.items()}
    drawings = train_unet.Drawings(scenes=scenes, latents=latents)
    vae = torch.nn.Identity()

    def weights(folder, stop_at):
        for stop in stop_at:
            trainer = train_unet.BaseTrainer(folder, vae, settings)
            for done, _, _ in trainer.losses(drawings):
                if done == stop:
                    break
            trainer.save()
        return load_tensors(folder / "unet.safetensors")[0]

    whole, parts = weights(tmp_path / "whole", [4]), weights(tmp_path / "parts", [1, 3, 4])
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.slow
def test_every_stage_runs_from_nothing(tmp_path):
    """`make pico` with a handful of steps: the files are written, published and judged."""
    plan = make.Plan(
        vae=train_vae.VaeTraining(steps=2, crop_batch=2, full_batch=2),
        base=train_unet.BaseTraining(steps=2, batch=2, drawings=80),
        tagger=train_tagger.TaggerTraining(steps=2, batch=4, drawings=8, decoded=4),
        detector=train_detector.DetectorTraining(steps=2, batch=4, drawings=8),
        judged_pictures=2,
    )
    figures = make.make(tmp_path / "work", tmp_path / "assets", "assets", plan)
    assert set(figures) == {"tagger_micro_f1", "held_out_share", "detector_overlap_body", "detector_overlap_head"}
    for name in make.PUBLISHED:
        assert (tmp_path / "assets" / name).is_file()


def test_a_step_has_the_same_pictures_whenever_it_is_drawn():
    settings = train_vae.VaeTraining()
    assert torch.equal(train_vae.training_batch(settings, 5), train_vae.training_batch(settings, 5))
    whole = train_vae.training_batch(settings, settings.steps - 1)
    assert (whole.shape[3], whole.shape[2]) in world.BUCKETS_PX
    assert whole.abs().max() <= 1


def test_base_captions_are_sometimes_empty_and_never_name_a_concept():
    settings = train_unet.BaseTraining(drawings=60, batch=50)
    scenes = train_unet.training_scenes(settings)
    drawings = train_unet.Drawings(
        scenes=scenes, latents={bucket: torch.zeros(len(group), 4, 1, 1) for bucket, group in scenes.items()}
    )
    captions = [c for step in range(20) for c in train_unet.training_batch(drawings, settings, step)[1]]
    assert 0.05 < sum(not c for c in captions) / len(captions) < 0.16
    words = {word for c in captions for word in c.replace(",", " ").split()}
    forbidden = {w for c in world.CONCEPTS.values() for w in c.trigger.split()} | {world.HATCHED, *world.CONCEPT_SHAPES}
    assert words.isdisjoint(forbidden)


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    rates = [train_vae.warm_flat_falling(step, 100, 10, 0.4) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:60] == [1.0] * 50
    assert rates[-1] == pytest.approx(1 / 40)
    assert sorted(rates[60:], reverse=True) == rates[60:]


def test_orthogonalised_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (3, 40, 16)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    layer, asked = torch.nn.Linear(24, 24, bias=False), torch.randn(24, 24)
    optimizer = Muon(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        loss = (layer.weight - asked).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_outer_layers_are_left_to_adamw():
    net = torch.nn.ModuleDict({"conv_in": torch.nn.Conv2d(32, 32, 3), "inner": torch.nn.Linear(32, 32)})
    matrices, others = split_weights(net)
    assert [tuple(m.shape) for m in matrices] == [(32, 32)]
    assert len(others) == 3


def test_noise_weights_are_min_snr_where_quiet_and_rise_where_loud():
    weights = train_unet.noise_weights(train_unet.BaseTraining())
    bars = train_unet.alphas_cumprod()
    snr = bars / (1 - bars)
    assert weights[0] == pytest.approx(train_unet.BaseTraining().least_weight)
    assert weights[int((snr - 1).abs().argmin())] == pytest.approx(1.0, abs=0.02)
    assert weights[-1] == pytest.approx(float((snr[-1] + 0.01) ** -0.5))
    assert (weights[600:].diff() > 0).all()
