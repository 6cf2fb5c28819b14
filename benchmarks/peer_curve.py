"""The scores of imagen-pytorch after so many minutes of training from scratch on `shapes`.

    python -m benchmarks.peer_curve --minutes=60 --every=15 --out=outputs/peer_curve

The base U-Net of imagen-pytorch's README, with about `--parameters` parameters, its own trainer
and its own sampler: v-prediction, Adam at 1e-3, w = 3, 32 steps. Pictures, captions, text encoder
and scorer are those of `benchmarks.learning_curve`; the pictures have 32 pixels, the fewest that
the scorer reads, and the batch has 32 of them. The program samples from the trained parameters and
not from their moving average: the trainer updates that only every tenth step, so in a run of an
hour it lags behind and gives noise. Sampling and scoring do not count as minutes.
docs/benchmarks.md says how to install imagen-pytorch.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.imagen_pytorch_peer import check_installed, import_imagen_pytorch, readme_unet
from benchmarks.learning_curve import plot
from imagen_jax.config import TextConfig, TrainConfig, load_config
from imagen_jax.data.open import load_source
from imagen_jax.data.pipeline import batches
from imagen_jax.errors import UserError
from imagen_jax.evaluation.caption_accuracy import accuracy_by_group
from imagen_jax.evaluation.prompt_set import Prompt
from imagen_jax.evaluation.prompts import load_prompts
from imagen_jax.evaluation.shapes_scorer import ShapesScorer
from imagen_jax.text.encoder import TextEncoder, load_encoder

CONFIG = "configs/shapes.py"  # its pictures and captions
RESOLUTION = 32
BATCH_SIZE = 32
TEXT_LENGTH = 32
LEARNING_RATE = 1e-3
GUIDANCE_WEIGHT = 3.0
SAMPLING_STEPS = 32
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=15.0, help="minutes between two scores")
    parser.add_argument("--num_prompts", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    flags = parser.parse_args()
    if min(flags.minutes, flags.every) <= 0.0:
        parser.error("--minutes and --every must be positive")
    config = load_config(CONFIG)
    try:
        check_installed()
        prompts = load_prompts(config.data, flags.num_prompts).prompts
    except UserError as error:
        parser.error(str(error))
    text = PeerText(load_encoder(TextConfig(max_length=TEXT_LENGTH)))
    trainer = make_trainer(text, flags.parameters)
    examples = batches(
        load_source(config.data, "train", RESOLUTION),
        batch_size=BATCH_SIZE,
        image_size=RESOLUTION,
        seed=SEED,
    )
    flags.out.mkdir(parents=True, exist_ok=True)
    scorer = ShapesScorer()
    points, trained, images, due = [], 0.0, 0, flags.every
    while trained < 60.0 * flags.minutes:
        start = time.monotonic()
        train_one(trainer, next(examples), text)
        trained += time.monotonic() - start
        images += BATCH_SIZE
        if trained >= 60.0 * min(due, flags.minutes):
            pictures = draw(trainer, prompts, text, BATCH_SIZE)
            np.save(flags.out / f"minute_{due:07.2f}.npy", pictures)
            scores = scorer.score(pictures, prompts)
            groups = accuracy_by_group(scores, prompts, scorer.parts)
            points.append(
                {
                    "minutes": trained / 60.0,
                    "seen": {"base": images},
                    "accepted": {name: row["accepted"]["share"] for name, row in groups.items()},
                    "parts": {
                        name: {part: share["share"] for part, share in row["parts"].items()}
                        for name, row in groups.items()
                    },
                }
            )
            (flags.out / "curve.json").write_text(json.dumps(points, indent=1))
            print(f"{trained / 60.0:5.1f} min  {images:8,d} images  {points[-1]}", flush=True)
            due += flags.every
    examples.close()
    plot(points, flags.out / "curve.png")


class PeerText:
    """Encodes captions for imagen-pytorch: float32 embeddings `[B, L, D]`, bool mask `[B, L]`."""

    def __init__(self, encoder: TextEncoder):
        self.length, self.dim, self._encoder = encoder.max_length, encoder.dim, encoder

    def __call__(self, captions: list[str]) -> dict[str, Any]:
        import torch

        text = self._encoder.encode_captions(captions)
        return {
            "text_embeds": torch.from_numpy(np.array(text.tokens)),
            "text_masks": torch.from_numpy(np.array(text.mask)),
        }


def make_trainer(text: PeerText, parameters: int) -> Any:
    """Its trainer, with the base U-Net of its README and about `parameters` parameters."""
    shared = TrainConfig()  # settings that both libraries have
    imagen_pytorch = import_imagen_pytorch()
    imagen = imagen_pytorch.Imagen(
        unets=readme_unet(text.length, text.dim, parameters),
        image_sizes=RESOLUTION,
        text_embed_dim=text.dim,
        timesteps=SAMPLING_STEPS,
        pred_objectives="v",
        cond_drop_prob=shared.text_drop_rate,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a deprecated gradient scaler that is off
        return imagen_pytorch.ImagenTrainer(
            imagen, lr=LEARNING_RATE, max_grad_norm=shared.clip_norm
        )


def train_one(trainer: Any, example: dict[str, Any], text: Callable[[list[str]], dict]) -> None:
    """Trains one step on a batch of `data.pipeline.batches`."""
    import torch

    image = torch.from_numpy(np.array(example["image"])).permute(0, 3, 1, 2)
    trainer(image, unet_number=1, **text(example["captions"]))
    trainer.update(unet_number=1)


def draw(
    trainer: Any, prompts: tuple[Prompt, ...], text: Callable[[list[str]], dict], size: int
) -> np.ndarray:
    """Samples one picture a prompt, `size` at a time: uint8 `[P, 32, 32, 3]`."""
    import torch

    torch.manual_seed(SEED)
    drawn = []
    for start in range(0, len(prompts), size):
        captions = [prompt.text for prompt in prompts[start : start + size]]
        pictures = trainer.sample(
            cond_scale=GUIDANCE_WEIGHT, use_non_ema=True, use_tqdm=False, **text(captions)
        )
        drawn.append(pictures.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8))
    return torch.cat(drawn).permute(0, 2, 3, 1).cpu().numpy()


if __name__ == "__main__":
    main()
