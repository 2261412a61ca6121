"""The model against what the original computed: values, gradients, training losses."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mosaicbert_jax import BertForMaskedLM, BertForSequenceClassification, BertModel
from tests.golden_cases import NAMES, Case

call = nnx.jit(
    lambda model, *inputs: model(*inputs)
)  # op by op, these tests take ten times as long


@pytest.fixture(params=NAMES)
def case(request):
    return Case(request.param)


def mlm_loss(model, case, positions_BP, labels_BP, weights_BP):
    total, _ = model.loss(
        case.tokens_BL,
        case.segment_ids_BL,
        positions_BP,
        labels_BP,
        weights_BP,
        token_type_ids_BL=case.token_type_ids_BL,
    )
    return total / weights_BP.sum()


def test_hidden_states_and_logits(case, tmp_path):
    folder = case.write_folder(tmp_path / "model")
    inputs = (case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL)
    real_BL = case.tensors["attention_mask"].astype(bool)

    hidden_BLE = call(BertModel.from_pretrained(folder), *inputs)
    np.testing.assert_allclose(
        hidden_BLE[real_BL], case.tensors["encoder_output"][real_BL], atol=1e-5
    )

    model = BertForMaskedLM.from_pretrained(folder)
    logits_BLV = call(model, *inputs)
    expected_BLV = case.tensors["mlm_logits_full"]
    np.testing.assert_allclose(logits_BLV[real_BL], expected_BLV[real_BL], atol=1e-5)

    positions_BP, _, weights_BP = case.predictions(slots=24)
    logits_BPV = call(model, *inputs, positions_BP)
    chosen = np.asarray(weights_BP) > 0
    np.testing.assert_allclose(logits_BPV[chosen], case.tensors["mlm_logits_masked"], atol=1e-5)


def test_masked_lm_loss_and_gradients(case, tmp_path):
    model = BertForMaskedLM.from_pretrained(case.write_folder(tmp_path / "model"))
    loss, gradients = nnx.jit(
        nnx.value_and_grad(lambda model, *slots: mlm_loss(model, case, *slots))
    )(model, *case.predictions(slots=24))
    np.testing.assert_allclose(loss, case.tensors["mlm_loss"], rtol=1e-6)
    assert case.gradient_error(gradients, model.config, "g_mlm.") < 1e-5


def test_classifier_loss_and_gradients(case, tmp_path):
    if "cls_logits" not in case.tensors:
        assert case.name.startswith("d_")  # the one case without a classifier
        return
    labels_B = jnp.asarray(case.tensors["cls_labels"])
    model = BertForSequenceClassification.from_pretrained(
        case.write_folder(tmp_path / "model", classifier=True),
        num_labels=case.tensors["cls_logits"].shape[1],
    )

    def loss_and_logits(model):
        logits_SC = model(case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL)
        if model.num_labels == 1:
            return jnp.mean((logits_SC[:, 0] - labels_B.reshape(-1)) ** 2), logits_SC
        losses_S = optax.softmax_cross_entropy_with_integer_labels(logits_SC, labels_B)
        return losses_S.mean(), logits_SC

    (loss, logits_SC), gradients = nnx.jit(nnx.value_and_grad(loss_and_logits, has_aux=True))(model)
    np.testing.assert_allclose(logits_SC, case.tensors["cls_logits"], atol=1e-5)
    np.testing.assert_allclose(loss, case.tensors["cls_loss"], rtol=1e-5)
    assert case.gradient_error(gradients, model.config, "g_cls.") < 1e-5

    # The packed form: every sequence's first token by its flat index.
    rows, length = case.tokens_BL.shape
    first_S = jnp.arange(rows) * length + jnp.argmax(case.segment_ids_BL, axis=1)
    packed_SC = call(model, case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL, first_S)
    np.testing.assert_allclose(packed_SC, logits_SC, atol=1e-6)


def test_padding_on_the_left_as_on_the_right(case, tmp_path):
    model = BertForMaskedLM.from_pretrained(case.write_folder(tmp_path / "model"))
    right_BLV = call(model, case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL)
    lengths = np.asarray(case.segment_ids_BL).sum(axis=1)
    starts = np.asarray(case.segment_ids_BL).argmax(axis=1)

    def roll(x_BL):
        if x_BL is None:
            return None
        length = x_BL.shape[1]
        return jnp.stack(
            [jnp.roll(x, length - s - n) for x, s, n in zip(x_BL, starts, lengths, strict=True)]
        )

    left_BLV = call(
        model, *(roll(x) for x in (case.tokens_BL, case.segment_ids_BL, case.token_type_ids_BL))
    )
    for left, right, start, length in zip(left_BLV, right_BLV, starts, lengths, strict=True):
        np.testing.assert_allclose(left[-length:], right[start : start + length], atol=1e-5)


def test_packed_as_one_by_one(case, tmp_path):
    """All of a case's sequences in one row, in between padding, give what each gives alone."""
    model = BertForMaskedLM.from_pretrained(case.write_folder(tmp_path / "model"))
    alone_BLV = call(model, case.tokens_BL, case.segment_ids_BL)
    real_BL = np.asarray(case.segment_ids_BL) > 0
    ids_BL = real_BL * np.arange(1, len(real_BL) + 1)[:, None]
    packed_1LV = call(model, case.tokens_BL.reshape(1, -1), jnp.asarray(ids_BL.reshape(1, -1)))
    packed_BLV = packed_1LV.reshape(alone_BLV.shape)
    np.testing.assert_allclose(packed_BLV[real_BL], alone_BLV[real_BL], atol=1e-5)
