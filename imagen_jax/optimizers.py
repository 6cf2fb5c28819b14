"""The optimizers that a config may name (Imagen App. F, and Muon)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from imagen_jax.checks import check_positive, check_unit_interval
from imagen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam without weight decay (F.2, F.3).

    Attributes:
      b2: decay of the second moment, in [0, 1].

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "adam"

    b2: float = 0.999

    def __post_init__(self) -> None:
        check_unit_interval("b2", self.b2)

    def transformation(self, rate: optax.Schedule, peak: float) -> optax.GradientTransformation:
        """The update with the learning rate `rate`."""
        del peak
        return optax.adam(rate, b1=0.9, b2=self.b2, eps=1e-8)


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor without weight decay (F.1).

    Attributes:
      parameter_scale: multiply updates by the RMS of the parameter. It is optax's default and so
        probably the paper's. Differs from Imagen: off unless asked for, because with it and a rate
        of 1e-4 layers that start at zero first move by 1e-7 a step.
    """

    kind: ClassVar[str] = "adafactor"

    parameter_scale: bool = False

    def transformation(self, rate: optax.Schedule, peak: float) -> optax.GradientTransformation:
        """The update with the learning rate `rate`."""
        del peak
        return optax.adafactor(rate, multiply_by_parameter_scale=self.parameter_scale)


@dataclasses.dataclass(frozen=True)
class Muon:
    """Muon (Jordan et al. 2024) for hidden kernels, Adam with Nesterov momentum for the rest.

    Differs from Imagen, whose paper is older. Muon orthogonalises the mean gradient of a kernel;
    docs/decisions.md has what it is worth.

    Attributes:
      learning_rate: peak for what Muon updates. It warms up and decays with the rate of the rest.
      adam_b2: decay of Adam's second moment, in [0, 1].

    Raises:
      UserError: a value outside its range.
    """

    kind: ClassVar[str] = "muon"

    learning_rate: float = 0.02
    adam_b2: float = 0.999

    def __post_init__(self) -> None:
        check_positive("learning_rate", self.learning_rate)
        check_unit_interval("adam_b2", self.adam_b2)

    def transformation(self, rate: optax.Schedule, peak: float) -> optax.GradientTransformation:
        """The update.

        Args:
          rate: learning rate of what Adam updates.
          peak: of `rate`; Muon's rate is `rate` times `learning_rate / peak`.
        """
        ratio = self.learning_rate / peak
        return muon(
            lambda count: ratio * rate(count),
            adam_learning_rate=rate,
            adam_b2=self.adam_b2,
            muon_weight_dimension_numbers=hidden_kernels,
        )


# The choices that a config may name by `kind`.
OPTIMIZERS = (Adam, Adafactor, Muon)


def hidden_kernels(params: Params) -> Any:
    """How Muon reads each kernel as a matrix `[all inputs, outputs]`; None: Adam updates it.

    The kernel `[3, 3, in, out]` of a convolution is one matrix; stacked kernels (`run_stacked`) are
    one matrix a layer. Adam updates the head, as is usual for output layers.
    """

    def dimensions(path: tuple[Any, ...], leaf: Any) -> MuonDimensionNumbers | None:
        names = [part.key for part in path]
        axes = range(1 if any(name.endswith("blocks") for name in names) else 0, len(leaf.shape))
        if names[-1] != "kernel" or names[0] == "head" or len(axes) < 2:
            return None
        return MuonDimensionNumbers(reduction_axis=tuple(axes[:-1]), output_axis=(axes[-1],))

    return jax.tree_util.tree_map_with_path(dimensions, params)
