"""FLOPs a token, with the published figures."""

import dataclasses

import jax
import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.training import flops
from mosaicbert_jax.training.flops import data_sheet_peak, measure_matmul, model_flops_per_token


def test_base_at_128_tokens():
    """737 MFLOP: layers 679.5, attention 14.2, head on 30% 43.3."""
    base = BertConfig.mosaicbert_base()
    total = model_flops_per_token(base, sequence_length=128, masking_rate=0.3)
    assert total == pytest.approx(737e6, rel=1e-3)
    attention = total - model_flops_per_token(base, sequence_length=0, masking_rate=0.3)
    assert attention == pytest.approx(14.2e6, rel=5e-3)
    head = total - model_flops_per_token(base, sequence_length=128, masking_rate=0.0)
    assert head == pytest.approx(43.3e6, rel=2e-3)


def test_the_plain_feed_forward_has_two_matrices():
    base = BertConfig.mosaicbert_base()
    plain = BertConfig.mosaicbert_base(feed_forward="gelu")
    saved = model_flops_per_token(
        base, sequence_length=128, masking_rate=0.3
    ) - model_flops_per_token(plain, sequence_length=128, masking_rate=0.3)
    assert saved == 12 * 6 * 768 * 3072


def test_the_measured_peak_is_a_possible_one():
    assert 1e8 < measure_matmul(256, "float32", runs=3) < 1e14


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA RTX A6000", 154.8e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GB200", None),
        ("NVIDIA RTX 6000 Ada Generation", None),
        ("Tesla T4", None),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_data_sheet_goes_by_whole_words_of_the_device_s_name(name, peak):
    assert data_sheet_peak(name) == peak


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str
    platform: str


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device("NVIDIA L4", "gpu"), 4 * 121e12),
        (Device("NVIDIA unheard of", "gpu"), 4 * 8192.0),
        (Device("cpu", "cpu"), 2048.0),
    ],
)
def test_the_peak_of_unknown_gpus_is_measured_in_bfloat16(device, expected, monkeypatch):
    """So that it is one that the training's products can't exceed."""

    def measured(size, dtype):
        assert dtype == {8192: "bfloat16", 2048: "float32"}[size]
        return float(size)

    monkeypatch.setattr(flops, "measure_matmul", measured)
    monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert flops.peak_flops() == expected
