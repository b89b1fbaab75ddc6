"""Every network through a whole run: trained, saved, resumed exactly, gone on with, and drawn from its file."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.training import PICO, CancelTraining, make_job
from lora_atelier.core.errors import InputError, TrainingError
from lora_atelier.core.files import sha256_file
from lora_atelier.core.params import Choice
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import TensorFile, read_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.families._spec import Target
from lora_atelier.families._targets import every_target
from lora_atelier.merger.lora.blocks import explain_weights
from lora_atelier.merger.lora.handle import lora_family, lora_stems, open_lora
from lora_atelier.networks._apply import module_change, split_file
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network, networks
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.trainer.checkpoints import list_checkpoints, load_state
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.export import save_lora
from lora_atelier.trainer.plan import check_job
from lora_atelier.trainer.starting import StartLora, choice_of_file
from lora_atelier.trainer.train import RunResult, train_lora

MakeJob = Callable[..., Job]

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in networks()},
    "locon": {"rank": 4, "conv_rank": 2},
    "dora": {"rank": 4, "dora": "input"},
    "tucker": {"rank": 4, "conv_rank": 2, "tucker": True},
    "loha conv": {"rank": 2, "conv_rank": 2},
    "lokr conv": {"rank": 2, "factor": 4, "conv_rank": 2},
    "lokr full": {"factor": 4, "full_matrix": True},
    "lokr tucker": {"rank": 2, "factor": 4, "conv_rank": 2, "tucker": True},
    "dropouts": {"rank": 4, "dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2},
    "plus": {"rank": 4, "up_lr_ratio": 4.0, "max_norm": 0.05},
}
NETWORK_OF = {"locon": "lora", "dora": "lora", "tucker": "lora", "dropouts": "lora", "plus": "lora"}
variants = pytest.mark.parametrize("variant", VARIANTS)


def network_of(variant: str) -> Choice:
    name = NETWORK_OF.get(variant, variant.partition(" ")[0])
    return Choice(kind="network", name=name, params=get_network(name).params(**VARIANTS[variant]))


def blocks_of(variant: str) -> str:
    """Few blocks are quick; norms lie in the UNet alone."""
    return "OUT03-04" if variant == "norm" else "OUT03-04, TE"


def job_of(job: MakeJob, variant: str, **changes: Any) -> Job:
    made = job(steps=changes.pop("steps", 4), blocks=changes.pop("blocks", blocks_of(variant)), **changes)
    return replace(made, network=network_of(variant))


def drawn(host: LocalHost, model: Any, clip: Any, *, steps: int = 1, cfg: float = 1.0) -> torch.Tensor:
    told = host.encode_prompt(clip, "lumo kest, ring")
    return host.sample(
        model, told, host.encode_prompt(clip, ""), width_px=64, height_px=64, seed=1, steps=steps, cfg=cfg,
        sampler="euler", scheduler="normal",
    )["samples"]  # fmt: skip


RATES = {"lr_unet": 2e-2, "lr_text_encoder": 2e-2}
World = Callable[[str], tuple[RunResult, Job]]


@pytest.fixture(scope="session")
def whole(tiny_base: Path, dataset: Dataset, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run of 2 steps per variant, trained when it is first asked for."""
    runs: dict[str, tuple[RunResult, Job]] = {}

    def of(variant: str) -> tuple[RunResult, Job]:
        if variant not in runs:
            made = make_job(dataset, base=tiny_base, steps=2, optimizer=RATES, blocks=blocks_of(variant))
            made = replace(made, network=network_of(variant))
            folder = tmp_path_factory.mktemp("run")
            result = train_lora(made, output_dir=folder / "output", loras_dir=folder / "loras", cache_dir=cache_dir)
            runs[variant] = (result, made)
        return runs[variant]

    return of


@pytest.fixture(scope="module")
def host(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalHost, Any, Any, torch.Tensor]:
    """The local host with the tiny base, and what that draws without any LoRA."""
    made = LocalHost(tmp_path_factory.mktemp("host"))
    model, clip, _ = made.load_base(open_base(tiny_base, name=tiny_base.name))
    return made, model, clip, drawn(made, model, clip)


def live_picture(host: LocalHost, result: RunResult, job: Job, model: Any, clip: Any) -> torch.Tensor:
    """What the adapter draws as it was trained, from its checkpoint, without any file."""
    base, checked = model.base, check_job(job)
    for patched in (base.unet, *base.texts):
        patched.activate(())
    chosen = checked.chosen(every_target(base.family, base.components))
    adapter = AdapterSet.attach(
        [target for target, _ in chosen], job.network, seed=0, settings={t.stem: s for t, s in chosen}
    )
    adapter.load_state(load_state(list_checkpoints(result.run.folder)[-1]).adapter)
    adapter.train(False)
    with torch.no_grad():
        picture = drawn(host, model, clip)
    adapter.detach_from_model()
    return picture


def check_the_file(result: RunResult, job: Job, host: LocalHost, model: Any, clip: Any, plain: torch.Tensor) -> None:
    live = live_picture(host, result, job, model, clip)
    tensors = read_tensors(result.lora_path)
    patched = host.apply_lora(model, clip, tensors, strength_model=1.0, strength_clip=1.0, stem_strengths={})
    from_file = drawn(host, *patched)
    moved, off = (live - plain).norm(), (from_file - live).norm()
    assert float(moved) > 1e-4
    assert float(off) <= 2e-3 * float(moved) + 1e-4, f"{float(off)} of {float(moved)}"


@variants
def test_the_file_draws_what_was_trained(variant: str, whole: World, host: Any) -> None:
    result, made = whole(variant)
    tensors = read_tensors(result.lora_path)
    with TensorFile(result.lora_path) as file:
        said, header = file.metadata, file.header
    assert lora_family(header, "x") == "sd15"
    assert set(split_file(tensors)) == set(lora_stems(result.lora_path))
    network = get_network(made.network.name)
    assert said["ss_network_module"] == network.module
    if network.algo:
        assert json.loads(said["ss_network_args"])["algo"] == network.algo
    check_the_file(result, made, *host)


@pytest.mark.slow
@variants
def test_the_file_draws_what_was_trained_on_pico(
    variant: str, job: MakeJob, places: Mapping[str, Path], tmp_path: Path
) -> None:
    made = job_of(job, variant, steps=30, optimizer={"lr_unet": 5e-3, "lr_text_encoder": 5e-3})
    made = replace(made, base=open_base(PICO, name=PICO.name))
    result = train_lora(made, **places)
    first, last = sum(result.losses[:10]), sum(result.losses[-10:])
    assert last < first * 1.2
    host = LocalHost(tmp_path / "host")
    model, clip, _ = host.load_base(made.base)
    check_the_file(result, made, host, model, clip, drawn(host, model, clip))


@pytest.mark.parametrize("variant", [*networks(), "dora", "dropouts", "plus"])
def test_stopped_and_gone_on_is_the_same_run(variant: str, whole: World, cache_dir: Path, tmp_path: Path) -> None:
    result, made = whole(variant)
    other = {"output_dir": tmp_path / "output", "loras_dir": tmp_path / "loras", "cache_dir": cache_dir}
    with pytest.raises(Cancelled):
        train_lora(made, **other, progress=CancelTraining(other["output_dir"], 2))
    again = train_lora(made, **other)
    assert again.steps_done == 1
    ours, theirs = (load_state(list_checkpoints(run.run.folder)[-1]) for run in (again, result))
    assert ours.adapter.keys() == theirs.adapter.keys()
    assert all(torch.equal(value, theirs.adapter[name]) for name, value in ours.adapter.items())
    assert again.losses == result.losses
    saved, wanted = read_tensors(again.lora_path), read_tensors(result.lora_path)
    assert all(torch.equal(value, wanted[name]) for name, value in saved.items())


@variants
def test_block_weights_scale_every_network(variant: str, whole: World, host: Any) -> None:
    """A block at 0 keeps the base's weights, one at 0.5 gets half of the change; bias and norms alike."""
    result, made = whole(variant)
    lora = open_lora(result.lora_path, "x")
    stems = lora_stems(result.lora_path)
    numbers = ["1"] * 26
    numbers[1 + 12 + 1 + 3], numbers[1 + 12 + 1 + 4] = "0", "0.5"
    strengths = explain_weights(",".join(numbers), family=lora.family, stems=stems).factors
    on, model, clip, _ = host
    tensors = read_tensors(result.lora_path)
    model.base.unet.activate(())
    modules = model.base.family.modules_by_stem(model.base.components)
    before = {stem: (modules[stem].weight.detach().clone(), modules[stem].bias) for stem in stems}
    patched, _ = on.apply_lora(model, clip, tensors, strength_model=1.0, strength_clip=1.0, stem_strengths=strengths)
    patched.unet()
    power, seen = get_network(made.network.name).strength_power, set()
    for stem, parts in split_file(tensors).items():
        if not stem.startswith("lora_unet"):
            continue
        weight, bias = before[stem]
        change, bias_change = module_change(parts, weight=weight)
        factor = strengths[stem] ** power
        torch.testing.assert_close(modules[stem].weight, weight + factor * change, rtol=1e-4, atol=1e-6)
        if bias_change is not None:
            torch.testing.assert_close(modules[stem].bias, bias + factor * bias_change, rtol=1e-4, atol=1e-6)
        seen.add(strengths[stem])
    assert {0.0, 0.5} <= seen
    model.base.unet.activate(())


@pytest.mark.parametrize("variant", ["lora", "loha", "lokr full", "dora", "ia3"])
def test_a_run_begins_with_a_file(variant: str, whole: World, job: MakeJob, places: Mapping[str, Path]) -> None:
    first, _ = whole(variant)
    start = StartLora(path=first.lora_path, name="first.safetensors", sha256=sha256_file(first.lora_path))
    rate = {"lr_unet": 1e-7, "lr_text_encoder": 1e-7}
    more = replace(
        job_of(job, variant, steps=1, optimizer=rate, save_dtype="fp32", blocks="", run_name="more"), start=start
    )
    second = train_lora(more, **places)
    ours, theirs = (split_file(read_tensors(result.lora_path)) for result in (second, first))
    assert ours.keys() == theirs.keys()
    with TensorFile(second.lora_path) as file:
        assert file.metadata["ss_output_name"] == "more"
    for stem, parts in ours.items():
        assert {name: value.shape for name, value in parts.items()} == {
            name: value.shape for name, value in theirs[stem].items()
        }
        for name, value in parts.items():
            torch.testing.assert_close(value.float(), theirs[stem][name].float(), rtol=2e-3, atol=1e-5)
    assert train_lora(more, **places).steps_done == 0  # the same request


def test_what_a_run_cannot_begin_with(whole: World, job: MakeJob, places: Mapping[str, Path], tmp_path: Path) -> None:
    from lora_atelier.core.tensors import write_tensors

    first, _ = whole("loha")
    start = StartLora(path=first.lora_path, name="first.safetensors", sha256="0" * 64)
    assert choice_of_file(first.lora_path).name == "loha"
    assert choice_of_file(whole("ia3")[0].lora_path).name == "ia3"
    with pytest.raises(InputError, match=r"first.safetensors is a LoHa and the run's network is LoRA"):
        train_lora(replace(job_of(job, "lora", steps=2), start=start), **places)
    with pytest.raises(InputError, match="none of the .* modules that the targets choose"):
        train_lora(replace(job_of(job, "loha", steps=2, blocks="IN04"), start=start), **places)
    strange = tmp_path / "strange.safetensors"
    write_tensors(
        strange,
        {
            "lora_unet_nowhere_1.lora_down.weight": torch.ones(2, 4),
            "lora_unet_nowhere_1.lora_up.weight": torch.ones(4, 2),
        },
        {},
    )
    other = StartLora(path=strange, name="strange.safetensors", sha256="1" * 64)
    with pytest.raises(InputError, match="another architecture"):
        train_lora(replace(job_of(job, "lora", steps=2), start=other), **places)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "norm"])
def test_an_adapter_that_learned_nothing_is_not_saved(variant: str, tmp_path: Path) -> None:
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    target = Target(stem=stem, path="m", part="unet", block="IN01", kind="linear", module=torch.nn.Linear(8, 6))
    adapter = AdapterSet.attach([target], network_of(variant), seed=0)
    with pytest.raises(TrainingError, match="All 1 modules of the unet are still zero"):
        save_lora(tmp_path / "x.safetensors", adapter, metadata={}, dtype="fp16", accepted_stems=[stem])
    assert not list(tmp_path.iterdir())


def test_targets_are_part_of_the_run(job: MakeJob, places: Mapping[str, Path]) -> None:
    text = "UNET\ngroups: cross-attention\nOUT03: rank 1, lr 0.5\nOUT04: alpha 3\nIN: lr 0 | MID: rank 0"
    made = job(steps=2, blocks=text, rank=2)
    result = train_lora(made, **places)
    stems = split_file(read_tensors(result.lora_path))
    assert all("attn2" in stem for stem in stems)
    ranks = {stem[:32]: parts["lora_down.weight"].shape[0] for stem, parts in stems.items()}
    assert ranks["lora_unet_up_blocks_1_attentions_0"[:32]] in (1, 2)
    with TensorFile(result.lora_path) as file:
        said = json.loads(file.metadata["ss_network_args"])
    assert "OUT03: rank 1, lr 0.5" in said["targets"]
    assert "ranks 2" in result.report
    assert train_lora(job(steps=2, blocks=text.replace("lr 0.5", "lr  0.5  "), rank=2), **places).steps_done == 0
    assert train_lora(job(steps=2, blocks=text.replace("lr 0.5", "lr 0.25"), rank=2), **places).steps_done == 2
