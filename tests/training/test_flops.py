"""FLOPs a token, with the published figures."""

import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.training.flops import data_sheet_peak, measure_matmul, model_flops_per_token


def test_base_at_128_tokens():
    """737 MFLOP: layers 679.5, attention 14.2, head on 30 % 43.3."""
    base = BertConfig.mosaicbert_base()
    flops = model_flops_per_token(base, sequence_length=128, masking_rate=0.3)
    assert flops == pytest.approx(737e6, rel=1e-3)
    attention = flops - model_flops_per_token(base, sequence_length=0, masking_rate=0.3)
    assert attention == pytest.approx(14.2e6, rel=5e-3)
    head = flops - model_flops_per_token(base, sequence_length=128, masking_rate=0.0)
    assert head == pytest.approx(43.3e6, rel=2e-3)


def test_the_plain_feed_forward_has_two_matrices():
    base = BertConfig.mosaicbert_base()
    plain = BertConfig.mosaicbert_base(feed_forward="gelu")
    saved = model_flops_per_token(
        base, sequence_length=128, masking_rate=0.3
    ) - model_flops_per_token(plain, sequence_length=128, masking_rate=0.3)
    assert saved == 12 * 6 * 768 * 3072


def test_the_measured_peak_is_a_possible_one():
    assert 1e8 < measure_matmul(size=256, runs=3) < 1e14


def test_the_peak_of_a_data_sheet_goes_by_the_device_s_name():
    assert data_sheet_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert data_sheet_peak("cpu") is None
