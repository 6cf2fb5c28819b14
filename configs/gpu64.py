"""One GPU, real pictures with captions: a base of 64 px with the recipe that learns fastest here.

    python -m imagen_jax.cli.encode_text --config=configs/gpu64.py \
        --config.data.path=STORE --out=TEXT
    python train.py --config=configs/gpu64.py --config.data.path=STORE \
        --config.data.embeddings=TEXT --workdir=runs/gpu64
    python sample.py --workdir=runs/gpu64 --prompts="what one of your captions says"

STORE is what `imagen_jax.cli.prepare_data` writes from any format (docs/data.md).

Hardware: one GPU with bfloat16 and 24 GB or more (240 M parameters, 2.7 GiB of train state; lower
`train.batch_size`, or raise `train.accumulate`, where memory is short). Time: 102 million pictures
at 192 GFLOP each take some 14 hours of an H100 at an assumed 40 % of its peak. Result: unknown; no
run of this config has been made, and the recipe was measured on small pictures only.
"""

from imagen_jax.config import (
    CascadeConfig,
    DataConfig,
    DiffusionConfig,
    SampleConfig,
    StageConfig,
    TextConfig,
    TrainConfig,
    to_config_dict,
)
from imagen_jax.diffusion.guidance import Guidance
from imagen_jax.diffusion.losses import MinSNR
from imagen_jax.diffusion.schedules import NormalLevels
from imagen_jax.models import EfficientUNetConfig
from imagen_jax.optimizers import Muon


def get_config():
    """The config as an `ml_collections.ConfigDict`."""
    base = StageConfig(
        resolution=64,
        # Differs from Imagen: patches of 2x2 pixels, so that no block runs above 32x32 positions.
        model=EfficientUNetConfig(
            channels=(256, 512, 768),
            num_res_blocks=(3, 4, 6),
            strides=(1, 2, 2),
            self_attention=(False, True, True),
            text_attention=("none", "joint", "joint"),
            head_dim=64,
            patch_size=2,
            input_skip="mix",
            dtype="bfloat16",
            scan_blocks=True,
            remat=("none", "none", "none"),
        ),
        # Differs from Imagen: x-prediction, a weight between those of the eps and the x error, and
        # noise levels around those at which objects take shape (docs/decisions.md). The levels are
        # those of the 32-pixel emoji, moved by 2 log(32 / 64) for the larger pictures.
        diffusion=DiffusionConfig(
            prediction="x",
            loss_weighting=MinSNR(power=0.5),
            train_levels=NormalLevels(mean=-3.4, std=2.0),
        ),
        train=TrainConfig(
            batch_size=256,
            num_steps=400_000,
            optimizer=Muon(learning_rate=0.015, adam_b2=0.99),
            learning_rate=3e-4,
            warmup_steps=1000,
            log_every=100,
            preview_every=5000,
            save_every=2500,
            validate_every=2500,
            validation_images=1024,
        ),
        sample=SampleConfig(num_steps=64, guidance=Guidance(3.0)),
    )
    return to_config_dict(
        CascadeConfig(
            name="gpu64",
            text=TextConfig(encoder="google/t5-v1_1-large", max_length=77),
            data=DataConfig(source="array_record", flip=False, num_threads=8, num_workers=4),
            stages={"base": base},
        )
    )
