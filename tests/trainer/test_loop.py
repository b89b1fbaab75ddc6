"""The loop: values that are not finite, accumulation, precision, checkpointing, the golden losses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import make_job, open_pictures
from lora_atelier.core.errors import TrainingError
from lora_atelier.core.tensors import read_tensors
from lora_atelier.trainer import precision as precision_module
from lora_atelier.trainer.checkpoints import list_checkpoints, load_state
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.objectives import epsilon
from lora_atelier.trainer.objectives._tables import add_noise
from lora_atelier.trainer.optimizers._spec import ParamGroup, optimizers
from lora_atelier.trainer.precision import Precision, clip_gradients, masked_step
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import RunResult, train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
GOLDEN = Path(__file__).resolve().parent / "golden_losses.json"


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the loss of the n-th micro-batch NaN."""

    def poison(number: int) -> None:
        calls = [0]

        def bad_loss(prediction: torch.Tensor, question: Any, **given: Any) -> torch.Tensor:
            calls[0] += 1
            losses = epsilon.loss(prediction, question, **given)
            return losses * float("nan") if calls[0] == number else losses

        object.__setattr__(epsilon.OBJECTIVE, "loss", bad_loss)

    yield poison
    object.__setattr__(epsilon.OBJECTIVE, "loss", epsilon.loss)


def test_nan_stops_the_run_and_keeps_what_was_good(
    job: MakeJob, places: Places, poisoned: Callable[[int], None]
) -> None:
    poisoned(6)
    with pytest.raises(TrainingError, match="Step 6 has a loss of nan .* use a lower learning rate"):
        train_lora(job(steps=12, save_every_steps=2), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    info = open_run(folder)
    assert [step for step, _ in info.checkpoints] == [2, 4]
    assert info.status["state"] == "failed"
    assert "Step 6" in info.status["reason"]
    assert [row["step"] for row in info.rows] == [1, 2, 3, 4, 5]
    assert not info.finished
    for _, path in info.checkpoints:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in read_tensors(path).values())


def test_a_run_that_learns_nothing_fails(job: MakeJob, places: Places) -> None:
    object.__setattr__(epsilon.OBJECTIVE, "loss", lambda *given, **named: epsilon.loss(*given, **named) * 0.0)
    try:
        with pytest.raises(TrainingError, match="All 192 modules of the unet are still zero: nothing was learned"):
            train_lora(job(steps=2), **places)
    finally:
        object.__setattr__(epsilon.OBJECTIVE, "loss", epsilon.loss)
    assert not list(places["loras_dir"].rglob("*.safetensors"))
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    assert not open_run(folder).finished


def test_a_run_that_failed_goes_on_where_it_was_good(
    job: MakeJob, places: Places, poisoned: Callable[[int], None], tmp_path: Path
) -> None:
    poisoned(4)
    with pytest.raises(TrainingError):
        train_lora(job(steps=5, save_every_steps=2), **places)
    poisoned(-1)
    resumed = train_lora(job(steps=5, save_every_steps=2), **places)
    assert resumed.steps_done == 3
    elsewhere = {**places, "output_dir": tmp_path / "o2", "loras_dir": tmp_path / "l2"}
    assert train_lora(job(steps=5, save_every_steps=2), **elsewhere).losses == resumed.losses


@pytest.mark.parametrize("kind", ["fused", "library", "prodigy", "dadapt_sgd", "lion"])
def test_a_masked_step_changes_nothing(kind: str) -> None:
    """Of an overflow under fp16 no trace is left, not even of one in the very first step."""

    def parameter_after(goods: list[bool]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parameter = torch.nn.Parameter(torch.ones(3))
        if kind in ("fused", "library"):
            optimizer: torch.optim.Optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=kind == "fused")
        else:
            spec = optimizers()[kind]
            optimizer = spec.build([ParamGroup(name="unet", lr=1.0, parameters=[parameter])], spec.params())
        for good in goods:
            parameter.grad = torch.full((3,), 0.5 if good else float("nan"))
            masked_step(optimizer, torch.tensor(good), scaled=True)
        shared = optimizer.state.get("shared", {})
        return parameter.detach(), {**optimizer.state[parameter], **shared}

    expected, expected_state = parameter_after([True, True])
    got, state = parameter_after([False, True, False, True, False])
    assert torch.equal(got, expected)
    for name, value in expected_state.items():
        assert torch.equal(state[name], value), name


def test_clipping_equals_torch() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(3))]
    reference = [torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(3))]
    for some in (parameters, reference):
        some[0].grad, some[1].grad = torch.arange(4.0), torch.ones(3)
    norm = clip_gradients(parameters, max_norm=1.0, scale=None)
    assert norm == torch.nn.utils.clip_grad_norm_(reference, 1.0)
    for one, other in zip(parameters, reference, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_the_loss_scale_halves_after_overflow_and_doubles_after_2000_good_steps() -> None:
    precision = Precision("fp16", torch.device("cpu"))
    assert precision.scale is not None
    precision.after_step(torch.tensor(False))
    assert precision.scale.item() == 32768.0
    for _ in range(1999):
        precision.after_step(torch.tensor(True))
    assert precision.scale.item() == 32768.0
    precision.after_step(torch.tensor(True))
    assert precision.scale.item() == 65536.0
    assert not precision.broken(torch.tensor(1.0), torch.tensor(False))
    assert precision.broken(torch.tensor(float("nan")), torch.tensor(False))


def test_accumulation_equals_a_big_batch(places: Places, tiny_base: Path, pictures: Path) -> None:
    """Gradients of one update; the noise is replaced so that it depends on the picture alone."""
    one_bucket = open_pictures(pictures, shuffle_captions=False).take([1, 3], note="one bucket")

    def question(latents: torch.Tensor, *, alphas_cumprod: torch.Tensor, params: Any, generator: Any) -> Any:
        noise = torch.cos(latents * 100.0)
        timesteps = (latents.abs().sum(dim=(1, 2, 3)) * 1000).long() % 1000
        noisy = add_noise(latents, noise, timesteps, alphas_cumprod=alphas_cumprod)
        return epsilon.Question(noisy_latents=noisy, timesteps=timesteps, target=noise)

    from lora_atelier.trainer.feed import Feed

    def mean_latents(self: Feed, index: int, **_: Any) -> torch.Tensor:
        batch = self.batch(index)
        return torch.stack([self.cache.get(n, flipped=False)[0] for n in batch.images]) * self.latent_scale

    patch = pytest.MonkeyPatch()
    object.__setattr__(epsilon.OBJECTIVE, "ask", question)
    patch.setattr(Feed, "latents", mean_latents)
    try:
        options = {"optimizer": {"weight_decay": 0.0}, "steps": 1}
        big = train_lora(make_job(one_bucket, base=tiny_base, batch_size=4, **options), **places)
        small = train_lora(
            make_job(one_bucket, base=tiny_base, batch_size=2, gradient_accumulation_steps=2, **options), **places
        )
    finally:
        object.__setattr__(epsilon.OBJECTIVE, "ask", epsilon.ask)
        patch.undo()
    assert small.losses == pytest.approx(big.losses, rel=1e-5)
    norms = [open_run(result.run.folder).rows[0]["grad_norm"] for result in (big, small)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(job: MakeJob, places: Places, precision: str) -> None:
    result = train_lora(job(steps=3, precision=precision), **places)
    full = train_lora(job(steps=3), **places)
    assert result.losses == pytest.approx(full.losses, rel=0.05)
    state = list_checkpoints(result.run.folder)[-1].folder / "state.safetensors"
    adapter = {name: value for name, value in read_tensors(state).items() if name.startswith("adapter/")}
    assert all(value.dtype == torch.float32 for value in adapter.values())
    assert ("precision/scale" in read_tensors(state)) == (precision == "fp16")


def test_fp16_may_save_before_it_found_its_loss_scale(
    job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first fp16 updates are left out while the scale is too large; an early save is a state without a LoRA."""
    monkeypatch.setattr(precision_module, "FIRST_LOSS_SCALE", 2.0**28)
    settings = {"batch_size": 1, "precision": "fp16", "save_every_steps": 1, "blocks": "MID"}
    done = train_lora(job(steps=20, **settings), **places)
    points = list_checkpoints(done.run.folder)
    assert [point.step for point in points] == list(range(1, 21))
    assert points[0].kept
    assert points[0].lora_path is None
    assert points[-1].lora_path is not None
    assert load_state(points[-1]).precision["scale"] < 2.0**28
    with pytest.raises(TrainingError, match="nothing was learned, .* with fp16 train more than a few steps"):
        train_lora(job(steps=2, **settings), **places)


def test_gradient_checkpointing_gives_the_same_numbers(job: MakeJob, places: Places) -> None:
    plain = train_lora(job(steps=3), **places)
    checkpointed = train_lora(job(steps=3, gradient_checkpointing=True), **places)
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_a_frozen_text_encoder_is_encoded_once(job: MakeJob, places: Places, pictures: Path, tmp_path: Path) -> None:
    fixed = open_pictures(pictures, shuffle_captions=False)
    progress = RecordingProgress()
    alone = {**places, "cache_dir": tmp_path / "cache"}
    result = train_lora(job(steps=3, dataset=fixed, train_text_encoder=False), progress=progress, **alone)
    num_encoded = sum(text == "encoding captions" for _, _, text in progress.updates)
    assert num_encoded == 5 + 1  # the empty caption is always among them
    assert all("lora_te" not in name for name in read_tensors(result.lora_path))
    shuffled = train_lora(job(steps=3, train_text_encoder=False), **places)
    assert len(shuffled.losses) == 3


def test_only_the_chosen_blocks_are_trained(job: MakeJob, places: Places) -> None:
    result = train_lora(job(steps=1, blocks="out03-05"), **places)
    stems = {name.partition(".")[0] for name in read_tensors(result.lora_path)}
    assert len(stems) == 36
    assert all(stem.startswith("lora_unet_up_blocks_1_attentions_") for stem in stems)


def test_flip_and_regularisation_and_prior_weight(job: MakeJob, places: Places, pictures: Path, tmp_path: Path) -> None:
    from atelier_tests.helpers.training import draw_pictures

    reg = draw_pictures(tmp_path / "reg", count=2)
    both = open_pictures(pictures, flip=True, reg_folder=reg)
    result = train_lora(job(steps=4, dataset=both, prior_loss_weight=0.5), **places)
    assert "10 for regularisation" in result.report.replace("\n", " ")


def test_golden_losses(whole_run: RunResult) -> None:
    """The numbers of a tiny run on the CPU; they change only for a reason that is written down with the change."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(whole_run.losses) == pytest.approx(golden["losses"], rel=2e-4)
    norms = [row["grad_norm"] for row in open_run(whole_run.run.folder).rows]
    assert norms == pytest.approx(golden["grad_norms"], rel=2e-3)
