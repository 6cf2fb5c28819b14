"""imagen-pytorch 2.1.0 as a subject of `measure`: its own trainer and its own sampler.

    pip install -e '.[parity]' einops pydantic psutil
    pip install --no-deps imagen-pytorch==2.1.0 beartype ema-pytorch accelerate pytorch-warmup

`import_imagen_pytorch` replaces the dependencies that this benchmark does not use by empty modules.
Everything runs as for a user who follows the README of imagen-pytorch: eager mode, default memory
format, float32.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from typing import Any

from benchmarks.measure import CONVOLUTION, DENOISE, MATMUL, TRAIN, Facts, Program, Subject
from benchmarks.ours import PEAK_SIZES
from imagen_jax.config import StageConfig
from imagen_jax.diffusion.losses import MinSNR
from imagen_jax.errors import UserError

NEEDED = ("torch", "imagen_pytorch", "beartype", "ema_pytorch", "accelerate", "pytorch_warmup")
NEEDED += ("einops", "fsspec", "pydantic", "psutil")
INSTALL = (
    "pip install -e '.[parity]' einops pydantic psutil; pip install --no-deps "
    "imagen-pytorch==2.1.0 beartype ema-pytorch accelerate pytorch-warmup"
)


def is_installed() -> bool:
    """Whether imagen-pytorch and its dependencies can be imported."""
    return all(importlib.util.find_spec(name) for name in NEEDED)


def check_installed() -> None:
    """Raises UserError with the installation command if imagen-pytorch is missing."""
    if not is_installed():
        raise UserError(f"the comparison needs imagen-pytorch: {INSTALL}")


# Dependencies of its data loaders, of its PIL output and of the crops of its super-resolution
# stages. Nothing here calls them, and torchvision has no CPU build on PyPI.
UNUSED = {
    "torchvision": {},
    "torchvision.transforms": {},
    "kornia": {},
    "kornia.augmentation": {},
    "datasets": {},
    "datasets.utils": {},
    "datasets.utils.file_utils": {"get_datasets_user_agent": lambda: ""},
}
# Its T5 module fetches a configuration from the model hub on import; nothing here needs it.
T5 = {
    "t5_encode_text": lambda *_, **__: None,
    "get_encoded_dim": lambda name: 768,
    "DEFAULT_T5_NAME": "unused",
}


def import_imagen_pytorch() -> Any:
    """The imagen_pytorch module, without its T5, data sets and augmentations."""
    # accelerate looks for optional packages, so it must be imported before the empty modules exist.
    import accelerate  # noqa: F401

    if "imagen_pytorch" not in sys.modules:
        absent = {name: what for name, what in UNUSED.items() if name not in sys.modules}
        for name, attributes in {**absent, "imagen_pytorch.t5": T5}.items():
            module = types.ModuleType(name)
            module.__dict__.update(attributes, __path__=[])
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent in sys.modules:
                setattr(sys.modules[parent], child, module)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import imagen_pytorch  # noqa: F401
        for name in absent:
            del sys.modules[name]
    return sys.modules["imagen_pytorch"]


def equal_unet(text_length: int, text_dim: int, parameters: int):
    """The U-Net that `graphs.EqualGraph` repeats with `graphs.EQUAL_MODEL`.

    Its transformer block shares one key and value head and has a feed-forward part. With
    `ff_mult=1` that part costs as much as our keys and values of all heads. Text joins the
    self-attention; the cross-attention of the two middle blocks cannot be turned off.
    """
    del parameters
    return import_imagen_pytorch().Unet(
        dim=64,
        dim_mults=(1, 2, 2),
        num_resnet_blocks=1,  # in addition to the first block of each level
        layer_attns=(False, True, True),
        layer_cross_attns=False,
        attend_at_middle=False,
        attn_heads=4,
        attn_dim_head=32,
        ff_mult=1.0,
        memory_efficient=True,
        init_cross_embed=False,
        init_conv_kernel_size=3,
        use_global_context_attn=False,
        attn_pool_text=False,
        text_embed_dim=text_dim,
        max_text_len=text_length,
    )


def readme_unet(
    text_length: int, text_dim: int, parameters: int, *, memory_efficient: bool = False
):
    """The base U-Net of its README, with the width that comes nearest to `parameters`.

    The conditioning width stays at its default, `dim`: with the README's 512 the text pooling
    alone has 7.6 M parameters. The text is padded to `text_length` instead of the default of 256.
    Both choices make it faster.
    """
    import torch

    unet_class = import_imagen_pytorch().Unet

    def make(dim: int):
        return unet_class(
            dim=dim,
            dim_mults=(1, 2, 4, 8),
            num_resnet_blocks=3,
            layer_attns=(False, True, True, True),
            layer_cross_attns=(False, True, True, True),
            memory_efficient=memory_efficient,
            text_embed_dim=text_dim,
            max_text_len=text_length,
        )

    def distance(dim: int) -> int:
        with torch.device("meta"):
            return abs(_count(make(dim)) - parameters)

    return make(min(range(8, 129, 2), key=distance))


def readme_unet_memory_efficient(text_length: int, text_dim: int, parameters: int):
    """`readme_unet` with `memory_efficient=True`, as in the README's super-resolution stages."""
    return readme_unet(text_length, text_dim, parameters, memory_efficient=True)


def _count(unet: Any) -> int:
    return sum(parameter.numel() for parameter in unet.parameters())


def build(
    make_unet, stage: StageConfig, text_length: int, text_dim: int, steps: int, parameters: int
) -> Subject:
    """Its trainer and its sampler for a base stage, with random pictures and text.

    Args:
      make_unet: one of the functions above.
      stage: its resolution, batch size, learning rate, gradient clipping, prediction and guidance
        are used.
      text_length: tokens of every caption.
      text_dim: width of the text embeddings.
      steps: number of steps in one call of the sampler.
      parameters: size of the network, for the functions that choose a width.
    """
    imagen_pytorch = import_imagen_pytorch()
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    batch, size = stage.train.batch_size, stage.resolution
    imagen = imagen_pytorch.Imagen(
        unets=make_unet(text_length, text_dim, parameters),
        image_sizes=size,
        text_embed_dim=text_dim,
        timesteps=steps,
        pred_objectives={"eps": "noise", "v": "v", "x": "x_start"}[stage.diffusion.prediction],
        min_snr_loss_weight=isinstance(stage.diffusion.loss_weighting, MinSNR),
        cond_drop_prob=stage.train.text_drop_rate,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a deprecated gradient scaler that is off
        trainer = imagen_pytorch.ImagenTrainer(
            imagen, lr=stage.train.learning_rate, max_grad_norm=stage.train.clip_norm
        )
    device = trainer.device
    image = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    text = {
        "text_embeds": torch.randn(batch, text_length, text_dim, device=device),
        "text_masks": torch.ones(batch, text_length, dtype=torch.bool, device=device),
    }
    weight = stage.sample.guidance.weight if stage.sample.guidance.weight != 1.0 else 3.0

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def train(count: int) -> None:
        for _ in range(count):
            trainer(image, unet_number=1, **text)
            trainer.update(unet_number=1)
        wait()

    def sample(count: int) -> None:
        for _ in range(count):
            imagen.sample(cond_scale=weight, use_tqdm=False, **text)
        wait()

    def program(run, units: int) -> Program:
        with FlopCounterMode(display=False) as counter:
            run(1)
        return Program(Facts(units=units, matrix_flops=counter.get_total_flops() / units), run)

    side, shape = PEAK_SIZES["cpu" if device.type == "cpu" else "gpu"]
    matrix = torch.randn(side, side, device=device)
    picture = torch.randn(shape[0], shape[3], shape[1], shape[2], device=device)
    kernel = torch.randn(shape[3], shape[3], 3, 3, device=device)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(matrix, matrix)
        wait()

    def convolve(count: int) -> None:
        for _ in range(count):
            torch.nn.functional.conv2d(picture, kernel, padding=1)
        wait()

    return Subject(
        device=str(device),
        parameters=_count(imagen.unets[0]),
        programs={
            MATMUL: program(multiply, 1),
            CONVOLUTION: program(convolve, 1),
            TRAIN: program(train, batch),
            DENOISE: program(sample, batch * steps),
        },
    )
