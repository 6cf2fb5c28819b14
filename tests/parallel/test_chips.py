"""The table of chips, and how a device finds its row."""

import pytest

from imagen_jax.parallel.chips import GPUS, TPUS, chip_of

GIB = 2**30


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peaks_of_devices(kind, peak):
    chip = chip_of(kind)
    assert (chip and chip.bf16_flops) == peak


@pytest.mark.parametrize("chip", [*TPUS.values(), *GPUS], ids=lambda chip: chip.kind)
def test_figures_are_in_range(chip):
    assert chip_of(chip.kind) is chip
    assert 10 * GIB < chip.hbm < 200 * GIB
    # Operations per byte of memory: between what chips of these years have.
    assert 150 < chip.bf16_flops / chip.hbm_bandwidth < 600
    assert chip.dcn_bandwidth < chip.ici_link < chip.hbm_bandwidth
