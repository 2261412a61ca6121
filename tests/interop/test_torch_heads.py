"""The exported classifier and encoder as transformers' own behave: losses, gradients, adapters."""

import numpy as np
import pytest

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertForSequenceClassification
from tests.interop.model_cases import SMALL, random_model
from tests.interop.torch_cases import load, torch

F = torch.nn.functional
IDS = torch.randint(5, 60, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("torch") / "model"
    random_model(BertForMaskedLM, BertConfig(**SMALL)).save_pretrained(path)
    return path


def classifier(folder, **options):
    return load("AutoModelForSequenceClassification", folder, **options)[0].eval()


@pytest.mark.parametrize(
    ("problem_type", "outputs", "labels", "expected"),
    [
        ("regression", 3, torch.linspace(-2, 2, 12).reshape(4, 3), F.mse_loss),
        ("regression", 1, torch.linspace(-2, 2, 4), lambda x, y: F.mse_loss(x[:, 0], y)),
        ("regression", 1, torch.linspace(-2, 2, 4)[:, None], F.mse_loss),
        (
            "multi_label_classification", 1, torch.tensor([[1.0], [0.0], [1.0], [1.0]]),
            F.binary_cross_entropy_with_logits,
        ),
        (
            "multi_label_classification", 3, torch.eye(4)[:, :3],
            F.binary_cross_entropy_with_logits,
        ),
        ("single_label_classification", 3, torch.tensor([0, 1, 2, 1]), F.cross_entropy),
        (None, 3, torch.tensor([0, 1, 2, 1]), F.cross_entropy),
        (None, 3, torch.eye(4)[:, :3], F.binary_cross_entropy_with_logits),
        (None, 1, torch.linspace(-2, 2, 4), lambda x, y: F.mse_loss(x[:, 0], y)),
    ],
)  # fmt: skip
def test_the_loss_is_that_of_the_problem_type(folder, problem_type, outputs, labels, expected):
    model = classifier(folder, num_labels=outputs, problem_type=problem_type)
    found = model(IDS, labels=labels)
    torch.testing.assert_close(found.loss, expected(found.logits, labels))


@pytest.mark.parametrize("preset", ["mosaicbert_base", "bert_base"])
def test_the_classifiers_dropout_travels(preset, tmp_path):
    config = getattr(BertConfig, preset)(**SMALL, classifier_dropout=0.25)
    random_model(BertForSequenceClassification, config).save_pretrained(tmp_path / "model")
    assert classifier(tmp_path / "model").dropout.p == 0.25
    back = BertForSequenceClassification.from_pretrained(tmp_path / "model")
    assert back.config.classifier_dropout == 0.25
    config = getattr(BertConfig, preset)(**SMALL, hidden_dropout_prob=0.2)
    random_model(BertForSequenceClassification, config).save_pretrained(tmp_path / "unset")
    assert classifier(tmp_path / "unset").dropout.p == 0.2


def test_hidden_states_are_on_the_path_of_the_gradient(folder):
    model = load("AutoModel", folder)[0].eval()
    mask = torch.ones_like(IDS)
    mask[1, 7:] = 0
    plain = model(IDS, mask).last_hidden_state
    found = model(IDS, mask, output_hidden_states=True)
    assert torch.equal(found.last_hidden_state, plain)
    assert torch.equal(found.hidden_states[-1], plain)
    for state in found.hidden_states:
        state.retain_grad()
    found.last_hidden_state.square().sum().backward()
    for state in found.hidden_states:
        assert state.grad is not None
        assert state.grad.abs().sum() > 0


def test_attention_weights_are_refused_however_they_are_asked_for(folder):
    model = load("AutoModel", folder)[0]
    with pytest.raises(ValueError, match="output_attentions"):
        model(IDS, output_attentions=True)
    model.config._output_attentions = True  # the attribute behind config.output_attentions
    assert model.config.output_attentions
    with pytest.raises(ValueError, match="output_attentions"):
        model(IDS)
    model(IDS, output_attentions=False)


def test_a_pooler_that_is_not_stored_is_the_same_each_time(folder):
    """An adapter's file has the classifier alone, and is put on a pooler that is drawn again."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(classifier(folder).bert.pooler.dense.weight.detach().numpy())
    np.testing.assert_array_equal(*found)
    assert 0.01 < found[0].std() < 0.03  # initializer_range is 0.02


def test_a_pooler_that_is_stored_is_kept(tmp_path):
    model = random_model(BertForSequenceClassification, BertConfig(**SMALL))
    model.save_pretrained(tmp_path / "model")
    weight = classifier(tmp_path / "model").bert.pooler.dense.weight.detach().numpy()
    np.testing.assert_array_equal(weight.T, np.asarray(model.pooler.kernel[...]))
