"""Fine-tuning an image-classification model of transformers from a local folder: a plain loop, safetensors only."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import FormatError, InputError, missing_library
from ..core.files import atomic_path, known_sha256, read_json
from ..core.progress import Progress, SilentProgress
from ..dataset.images import load_image, load_row
from ..dataset.table import Dataset
from .classifier import ClassifierParams, Examples, Verdict, label_weights, split, verdict, write_info
from .pipeline import cores
from .prepare import PREPARE_VERSION, prepare
from .scores import Vocabulary
from .taggers._spec import TaggerSpec

MODEL_FOLDER = "model"
WEIGHT_DECAY = 0.01
_DEFAULT_SIDE_PX = 224
_LABEL = "label"


class ImageClassifier:
    """A fine-tuned model as a scorer for the pipeline: its labels are the vocabulary, probabilities the scores."""

    is_batched = True

    def __init__(self, folder: Path, names: tuple[str, ...], device: torch.device) -> None:
        """Loads the model of a classifier's folder.

        Raises:
            FormatError: The model cannot be loaded or has another number of labels.
            MissingLibraryError: transformers is not installed.
        """
        self.name = folder.name
        self._device = device
        self._model = _load(folder / MODEL_FOLDER).to(device).eval()
        if int(self._model.config.num_labels) != len(names):
            raise FormatError(f"the model in {folder.name} does not have its {len(names)} labels; train it anew")
        self._spec = picture_spec(folder / MODEL_FOLDER, self._model.config)
        self.on_cpu = device.type == "cpu"
        self.batch_size = 8
        self.scored = Vocabulary(names=names, categories=(_LABEL,) * len(names), argmax=(_LABEL,))
        weights = sorted((folder / MODEL_FOLDER).glob("*.safetensors"))
        self.identity = f"classifier-{'-'.join(known_sha256(path)[:16] for path in weights)}"
        self.preparation = f"{PREPARE_VERSION}-{self._spec.size_px}"

    def decode(self, path: Path, data: bytes | None = None) -> Image.Image:
        """The picture of a file."""
        return load_image(path, data=data)

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """A picture as input."""
        return prepare(image, self._spec, height_px=self._spec.size_px, width_px=self._spec.size_px)

    def score_batch(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probabilities, float32 [pictures, labels]."""
        with torch.inference_mode():
            pixels = torch.from_numpy(np.stack(list(pictures))).to(self._device)
            found: NDArray[np.float32] = self._model(pixel_values=pixels).logits.float().softmax(dim=1).cpu().numpy()
            return found


def train_finetuned(
    dataset: Dataset,
    examples: Examples,
    model_folder: Path,
    params: ClassifierParams,
    folder: Path,
    *,
    device: torch.device,
    progress: Progress | None = None,
) -> Verdict:
    """Fine-tunes, tests on the held-out pictures and saves; nothing is saved when it is cancelled.

    Args:
        dataset: The data set.
        examples: Its labelled pictures; one that cannot be read stops the training, with its name.
        model_folder: Folder with config.json and model.safetensors of an image-classification model.
        params: The settings.
        folder: Where the classifier is written.
        device: To compute on.
        progress: Told about every step; may cancel between two.

    Returns:
        How good it is.

    Raises:
        FormatError: The folder holds no such model.
        BadPicture: A picture cannot be read.
        MissingLibraryError: transformers is not installed.
    """
    progress = progress or SilentProgress()
    torch.manual_seed(params.seed % 2**63)
    model = _load(model_folder, examples.names).to(device)
    spec = picture_spec(model_folder, model.config)
    learn, test = split(examples, held_out=params.held_out, seed=params.seed)
    weights = torch.from_numpy(label_weights(examples.labels[learn], len(examples.names), balanced=params.balanced)).to(
        device
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=WEIGHT_DECAY)
    steps_each = -(-len(learn) // params.batch_size)
    total = steps_each * params.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1.0 - step / total))
    order = np.random.default_rng(params.seed)
    model.train()
    done = 0
    for epoch in range(params.epochs):
        shuffled = order.permutation(learn)
        for places, pixels in _batches(dataset, examples, shuffled, spec, params.batch_size):
            labels = torch.from_numpy(examples.labels[places]).to(device)
            logits = model(pixel_values=torch.from_numpy(pixels).to(device)).logits
            loss = torch.nn.functional.cross_entropy(logits.float(), labels, weight=weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
            progress.update(done, total, f"epoch {epoch + 1} of {params.epochs}, loss {float(loss.detach()):.3f}")
    found = _tested(model.eval(), dataset, examples, test, spec, params.batch_size, device, progress)
    _save(model, model_folder, folder)
    facts = {"base": model_folder.name}
    write_info(folder, method=params.method, examples=examples, found=found, params=params, facts=facts)
    return found


def picture_spec(folder: Path, config: Any) -> TaggerSpec:
    """How a model takes pictures: stretched to its side, with mean and deviation of its preprocessor_config.json.

    Raises:
        FormatError: The file holds something else.
    """
    path = folder / "preprocessor_config.json"
    facts = read_json(path) if path.is_file() else {}
    if not isinstance(facts, dict):
        raise FormatError(f"{path} must hold one object; take the model's own file")
    size = facts.get("size", getattr(config, "image_size", _DEFAULT_SIDE_PX))
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge", _DEFAULT_SIDE_PX))
    mean, deviation = facts.get("image_mean", [0.5] * 3), facts.get("image_std", [0.5] * 3)
    good = type(size) is int and 8 <= size <= 4096 and len(mean) == len(deviation) == 3 and all(deviation)
    if not good:
        raise FormatError(f"{path} gives size {size}, mean {mean} and deviation {deviation}: not those of a model")
    return TaggerSpec(
        name="image classifier",
        summary="A model of transformers.",
        source=path.name,
        layout="NCHW",
        channels="RGB",
        scale=1.0,
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        deviation=(float(deviation[0]), float(deviation[1]), float(deviation[2])),
        size_px=size,
        pad="none",
        resample="bilinear",
        categories={},
        default_thresholds={},
    )


def _load(folder: Path, names: tuple[str, ...] | None = None) -> Any:
    """The model of a folder; with names its head is made for so many labels."""
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as cause:
        raise missing_library("transformers", "fine-tuning a classifier", "pip install transformers") from cause
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} holds no image-classification model; put config.json, model.safetensors and "
            "preprocessor_config.json of one there (files of other kinds are not loaded)"
        )
    labels: dict[str, Any] = {}
    if names is not None:
        labels = {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "ignore_mismatched_sizes": True,
        }
    try:
        return AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, **labels
        ).float()
    except (OSError, ValueError, RuntimeError, KeyError) as cause:
        reason = str(cause).strip().split("\n")[0][:300]
        raise FormatError(f"{folder} cannot be loaded as an image-classification model: {reason}") from cause


def _batches(
    dataset: Dataset, examples: Examples, places: NDArray[np.int64], spec: TaggerSpec, size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Places with their pictures [n, 3, side, side]; the next batch is decoded while one is in use."""

    def read(place: int) -> NDArray[np.float32]:
        image = load_row(dataset, int(examples.rows[place]))
        return prepare(image, spec, height_px=spec.size_px, width_px=spec.size_px)

    parts = [places[first : first + size] for first in range(0, len(places), size)]
    with ThreadPoolExecutor(min(cores(), 8), thread_name_prefix="atelier-classifier") as pool:
        waiting: list[list[Future[NDArray[np.float32]]]] = []
        try:
            for number, part in enumerate(parts):
                while len(waiting) < 2 and number + len(waiting) < len(parts):
                    waiting.append([pool.submit(read, int(place)) for place in parts[number + len(waiting)]])
                yield part, np.stack([future.result() for future in waiting.pop(0)])
        finally:
            for future in (future for batch in waiting for future in batch):
                future.cancel()


def _tested(
    model: Any,
    dataset: Dataset,
    examples: Examples,
    test: NDArray[np.int64],
    spec: TaggerSpec,
    size: int,
    device: torch.device,
    progress: Progress,
) -> Verdict:
    said: list[NDArray[np.int64]] = []
    with torch.no_grad():
        for _, pixels in _batches(dataset, examples, test, spec, size):
            progress.check()
            logits = model(pixel_values=torch.from_numpy(pixels).to(device)).logits
            said.append(logits.argmax(dim=1).cpu().numpy().astype(np.int64))
    return verdict(examples.names, examples.labels[test], np.concatenate(said))


def _save(model: Any, model_folder: Path, folder: Path) -> None:
    """Writes the model's folder in one go; an older one of the same name is replaced."""
    target = folder / MODEL_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        model.save_pretrained(str(temporary), safe_serialization=True)
        if (model_folder / "preprocessor_config.json").is_file():
            shutil.copyfile(model_folder / "preprocessor_config.json", temporary / "preprocessor_config.json")
        if target.exists():  # only now: an older model is lost only where there is a new one
            shutil.rmtree(target)
