"""What the benches of training share: models of random weights, our loop, a bare one, the frozen model, their times."""

import contextlib
import copy
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_header
from lora_atelier.core.transfer import to_device
from lora_atelier.families._spec import Components, Conditioning, Target, TextState, get_family
from lora_atelier.families._targets import every_target
from lora_atelier.families._tokenizer import find_tokenizer
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network
from lora_atelier.networks._targeting import parse_targeting
from lora_atelier.trainer.loop import Learner, Route, Row, Standing, train
from lora_atelier.trainer.objectives.epsilon import OBJECTIVE, EpsilonParams
from lora_atelier.trainer.optimizers._spec import ParamGroup
from lora_atelier.trainer.optimizers.adamw import OPTIMIZER, AdamWParams
from lora_atelier.trainer.precision import TORCH_DTYPES, Precision
from lora_atelier.trainer.weights import AdapterWeights

ROOT = Path(__file__).resolve().parents[1]
PICO = ROOT / "pico" / "assets" / "pico-base.safetensors"
LR = 1e-4
WARMUP_STEPS = 3
CAPTIONS = ("red ring, white background", "blue square, two eyes, grey background")

Step = Callable[[], None]


class Silent:
    """A progress that shows nothing."""

    def check(self) -> None: ...
    def update(self, done: int, total: int, text: str = "") -> None: ...
    def status(self, text: str) -> None: ...
    def preview(self, image: object) -> None: ...


class Forgetful:
    """A recorder that keeps nothing; the losses are read as in a real run."""

    def rows(self, rows: Sequence[Row]) -> None: ...
    def save(self, standing: Standing, *, kept: bool) -> None: ...
    def cancel(self, standing: Standing) -> None: ...


@dataclass(frozen=True)
class World:
    """A frozen model and what it is asked.

    Attributes:
        family: its name.
        components: UNet, and the text encoders where they are trained.
        size_px: side of the pictures.
        batch: pictures of a step.
        precision: "fp32" or "bf16".
        blocks: which modules are trained, in the words of the targets.
    """

    family: str
    components: Components
    size_px: int
    batch: int
    precision: str = "fp32"
    blocks: str = ""

    @property
    def device(self) -> torch.device:
        return next(self.components.unet.parameters()).device

    @property
    def with_text(self) -> bool:
        return bool(self.components.text_encoders)

    @property
    def parts(self) -> tuple[Any, ...]:
        return (self.components.unet, *self.components.text_encoders)

    def twin(self) -> "World":
        """A second model of the same weights: its own modules, the same memory."""
        shared = {id(tensor): tensor for part in self.parts for tensor in (*part.parameters(), *part.buffers())}
        unet, *encoders = (copy.deepcopy(part, shared) for part in self.parts)
        components = Components(
            unet=unet, text_encoders=tuple(encoders), tokenizers=self.components.tokenizers if encoders else ()
        )
        return World(self.family, components, self.size_px, self.batch, self.precision, self.blocks)

    def targets(self, network: str, params: Any) -> list[Target]:
        """The modules that a network of these settings is put on."""
        family = get_family(self.family)
        every = every_target(family, self.components, unet=True, text_encoder=self.with_text)
        chosen = parse_targeting(self.blocks, family.blocks).choose(every, get_network(network), params)
        return [target for target, _ in chosen]


class Cached:
    """Mean and standard deviation of latents, text states, and sizes, for all loops alike."""

    def __init__(self, world: World) -> None:
        generator, side, self.world = torch.Generator().manual_seed(0), world.size_px // 8, world
        self.mean = torch.randn(world.batch, 4, side, side, generator=generator)
        self.std = torch.rand(world.batch, 4, side, side, generator=generator) * 0.1
        width = int(world.components.unet.config.cross_attention_dim)
        dtype, family = TORCH_DTYPES[world.precision], get_family(world.family)
        hidden = torch.randn(world.batch, 77, width, generator=generator).to(world.device, dtype)
        pooled = torch.randn(world.batch, 1280, generator=generator).to(world.device, dtype)
        self.state = TextState(hidden=hidden, pooled=pooled if family.takes_sizes else None)
        self.captions = [CAPTIONS[number % len(CAPTIONS)] for number in range(world.batch)]
        self.sizes = None
        if family.takes_sizes:
            sizes = Conditioning.uncropped(height_px=world.size_px, width_px=world.size_px, batch_size=world.batch)
            self.sizes = Conditioning(
                original_size=sizes.original_size.to(world.device),
                crop=sizes.crop.to(world.device),
                target_size=sizes.target_size.to(world.device),
            )

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        noise = torch.randn(self.mean.shape, generator=torch.Generator().manual_seed(step))
        return to_device((self.mean + self.std * noise) * 0.18215, self.world.device)

    def text(self, index: int, *, seed: int, step: int, micro: int) -> TextState:
        if not self.world.with_text:
            return self.state
        return get_family(self.world.family).encode_text(self.world.components, self.captions)

    def weights(self, index: int) -> None:
        return None

    def mask(self, index: int) -> None:
        return None

    def conditioning(self, index: int) -> Conditioning | None:
        return self.sizes

    def num_images(self, index: int) -> int:
        return self.world.batch

    def epoch(self, index: int) -> int:
        return index


# models ------------------------------------------------------------------------------------------------------------


def pico_components() -> Components:
    """The tiny model's UNet."""
    return Components(unet=get_family("sd15").load(PICO, parts=("unet",)).unet.requires_grad_(False))


@contextlib.contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New weights have this type from the start."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def random_components(family: str, *, with_text: bool, dtype: torch.dtype, device: torch.device) -> Components:
    """Full-size models of a family with random weights, made on the device; frozen."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    spec = get_family(family)
    sizes: Mapping[str, Mapping[str, Any]] = spec.published  # type: ignore[attr-defined]
    tokenizer = find_tokenizer(read_header(PICO).metadata, PICO)
    with torch.device(device), made_in(dtype):
        unet = UNet2DConditionModel(**sizes["unet"]).requires_grad_(False)
        encoders = []
        for encoder in spec.text_encoders if with_text else ():  # type: ignore[attr-defined]
            marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            kind = CLIPTextModelWithProjection if encoder.pooled else CLIPTextModel
            encoders.append(kind(CLIPTextConfig(**{**sizes[encoder.part], **marks})).requires_grad_(False))
    if device.type == "cuda" and dtype != torch.float32:
        unet.to(memory_format=torch.channels_last)
    return Components(unet=unet, text_encoders=tuple(encoders), tokenizers=(tokenizer,) * len(encoders))


# loops -------------------------------------------------------------------------------------------------------------


def our_step(world: World, network: str, settings: Mapping[str, Any]) -> Step:
    """The pack's loop, one step at a time."""
    family, params = get_family(world.family), get_network(network).params(**settings)
    choice = Choice(kind="network", name=network, params=params)
    adapter = AdapterSet.attach(world.targets(network, params), choice, seed=0)
    weights = AdapterWeights(stochastic_rounding=False)
    groups = [
        ParamGroup(name=group.name, lr=LR, parameters=weights.worked_on(group.parameters))
        for group in adapter.param_groups()
        if group.parameters
    ]
    learner = Learner(
        predict=lambda noisy, timesteps, text, conditioning: family.predict(
            world.components.unet, noisy, timesteps, text, conditioning=conditioning
        ),
        batches=Cached(world),
        objective=OBJECTIVE,
        objective_params=EpsilonParams(),
        alphas_cumprod=family.alphas_cumprod().float().to(world.device),
        optimizer=OPTIMIZER.build(groups, AdamWParams()),
        weights=weights,
        share=lambda step, group: 1.0,
        precision=Precision(world.precision, world.device),
        device=world.device,
    )
    done = [0]

    def step() -> None:
        route = Route(
            first_step=done[0], total_steps=done[0] + 1, seed=0, accumulation_steps=1, max_grad_norm=1.0,
            batches_done=done[0], saves_at=lambda *_: False,
        )  # fmt: skip
        done[0] = train(learner, route, Forgetful(), Silent())

    return step


def bare_step(world: World, settings: Mapping[str, Any], paths: Mapping[str, Sequence[str]]) -> Step:
    """What a person writes with diffusers and peft alone.

    Args:
        world: the model.
        settings: of peft's LoraConfig.
        paths: by part ("unet", or a text encoder's number), the modules that are trained.
    """
    import peft
    from diffusers import DDPMScheduler

    config = {"unet": world.components.unet}
    config |= {str(number): encoder for number, encoder in enumerate(world.components.text_encoders)}
    for name, part in config.items():
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(paths[name]), **settings), part)
    parameters = [p for part in config.values() for p in part.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()  # as diffusers' training scripts keep what is trained
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    ask, cached = _plain_question(world), Cached(world)
    mean, std = cached.mean.to(world.device), cached.std.to(world.device)

    def step() -> None:
        latents = (mean + std * torch.randn_like(mean)) * 0.18215
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (latents.shape[0],), device=latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast(world):
            prediction = ask(noisy, timesteps)
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def frozen_step(world: World) -> Step:
    """Forward and backward of the model alone: what no adapter can be quicker than."""
    targets = world.targets("lora", get_network("lora").params())
    probes = []
    for part in dict.fromkeys(target.part for target in targets):
        first = next(target.module for target in targets if target.part == part)
        probes.append(torch.zeros((), device=world.device, requires_grad=True))
        first.forward = _with_probe(first.forward, probes[-1])  # the gradient runs back to the first trained layer
    ask, noisy = _plain_question(world), Cached(world).mean.to(world.device)
    timesteps = torch.full((world.batch,), 500, device=world.device)

    def step() -> None:
        with autocast(world):
            prediction = ask(noisy, timesteps)
        prediction.float().square().mean().backward()
        for probe in probes:
            probe.grad = None

    return step


def _with_probe(own: Callable[[torch.Tensor], torch.Tensor], probe: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda x: (y := own(x)) + probe.to(y.dtype)


def _plain_question(world: World) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(noisy latents, time steps) -> prediction, with the libraries' own calls alone."""
    cached, unet, encoders = Cached(world), world.components.unet, world.components.text_encoders
    is_xl = world.family == "sdxl"
    ids = None
    if encoders:
        every_ids = get_family(world.family).tokenize(world.components.tokenizers, cached.captions)
        ids = every_ids[0].to(world.device)

    def states() -> tuple[torch.Tensor, torch.Tensor | None]:
        if ids is None:
            return cached.state.hidden, cached.state.pooled
        if not is_xl:
            return encoders[0](ids).last_hidden_state, None
        outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
        return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[1].text_embeds

    def ask(noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        hidden, pooled = states()
        added = None
        if is_xl and cached.sizes is not None:
            added = {"text_embeds": pooled, "time_ids": cached.sizes.flat().to(noisy.dtype)}
        return unet(noisy, timesteps, encoder_hidden_states=hidden, added_cond_kwargs=added).sample

    return ask


def autocast(world: World) -> contextlib.AbstractContextManager[Any]:
    if world.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(world.device.type, dtype=TORCH_DTYPES[world.precision])


# times and memory --------------------------------------------------------------------------------------------------


def seconds_of(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(sides: Mapping[str, Step], *, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Returns the seconds of every side's steps; every round has one of each, in alternating order."""
    for _ in range(WARMUP_STEPS):
        for step in sides.values():
            step()
    gc.collect()
    gc.disable()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 else list(reversed(sides)):
            times[name].append(seconds_of(sides[name], device))
    gc.enable()
    return times


def median_ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))


@contextlib.contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function that returns the peak memory (resident, or of the GPU) since the block began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    yield lambda: _kib_of("VmHWM") * 1024


def bytes_now(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _kib_of("VmRSS") * 1024


def _kib_of(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def can_measure_memory(device: torch.device) -> bool:
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def child_peak(script: str, *arguments: str) -> dict[str, int]:
    """Runs a script of this folder and returns the JSON of its last line."""
    # glibc's heaps per thread make the resident size a matter of luck; one arena makes it comparable
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    answer = subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, int] = json.loads(answer.stdout.splitlines()[-1])
    return found


def machine(device: torch.device) -> dict[str, Any]:
    """What a figure was measured on."""
    found: dict[str, Any] = {"cpu_count": os.cpu_count(), "system": platform.system(), "machine": platform.machine()}
    found |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": device.type}
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
    return found


def conclude(
    bench: str, figures: Any, bars: Mapping[str, float], missed: Sequence[str], where: Mapping[str, Any], json_path: str
) -> None:
    """Prints the misses and, last, one JSON line; writes it to a file where one is named."""
    for line in missed:
        print(f"missed: {line}")
    said = {"bench": bench, "figures": figures, "bars": bars, "missed": list(missed), "machine": where}
    if json_path:
        Path(json_path).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(said))


def paths_of(world: World, network: str, params: Any) -> dict[str, list[str]]:
    """By part, the module paths of the targets, as peft takes them."""
    found: dict[str, list[str]] = {"unet": []}
    found |= {str(number): [] for number in range(len(world.components.text_encoders))}
    names = {id(module): path for path, module in world.components.unet.named_modules()}
    encoders = [{id(m): p for p, m in encoder.named_modules()} for encoder in world.components.text_encoders]
    for target in world.targets(network, params):
        if target.part == "unet":
            found["unet"].append(names[id(target.module)])
        for number, modules in enumerate(encoders):
            if id(target.module) in modules:
                found[str(number)].append(modules[id(target.module)])
    return found
