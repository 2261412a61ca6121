"""The recipe in PyTorch, written apart from ours, ends where ours does."""

import dataclasses
import json

import pytest
from flax import nnx

from configs import finetune as recipe
from mosaicbert_jax import BertForSequenceClassification
from mosaicbert_jax.finetuning.finetuning import Finetuning, finetune
from mosaicbert_jax.interop.writing import save_model
from tests.finetuning.cases import BASELINE, sentences, write_csv


@pytest.mark.parametrize(("task", "outputs"), [("classification", 2), ("regression", 1)])
def test_the_same_start_ends_with_the_same_scores(dataset, tmp_path, task, outputs):
    """Without dropout, whose bits differ: 40 steps of AdamW, decay, warmup and decline."""
    pytest.importorskip("transformers")
    from experiments.finetuning_torch import finetune_in_torch

    model_config = dataclasses.replace(
        BASELINE, vocab_size=192, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = BertForSequenceClassification(model_config, num_labels=outputs, rngs=nnx.Rngs(3))
    names = {"labels": ("bad", "good")} if outputs == 2 else {}
    save_model(model, tmp_path / "bert", tokenizer=dataset / "tokenizer.json", **names)
    labeled = [(text, label if outputs == 2 else len(text) / 40) for text, label in sentences(200)]
    config = recipe.get_config()
    config.task, config.init_from = task, str(tmp_path / "bert")
    config.data.path = str(write_csv(tmp_path / "x.csv", labeled))
    config.data.max_seq_len, config.data.dev_fraction = 48, 0.2
    config.train.batch_size, config.train.duration = 8, "2ep"
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-3, 1e-2

    finetune(config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]
    expected = finetune_in_torch(Finetuning.prepare(config, tmp_path / "torch"), epochs=2)
    # The correlation of ranks moves by steps.
    assert found.pop("spearman", 0) == pytest.approx(expected.pop("spearman", 0), abs=0.02)
    assert found == pytest.approx(expected, abs=2e-3)
