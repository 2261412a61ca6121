"""What a page tells of a run's start."""

import dataclasses
import json

import pytest

from configs import bert_base, glue, mosaicbert_base
from mosaicbert_jax import BertConfig
from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.finetuning.configuration import finetuning
from mosaicbert_jax.reporting.history import History
from mosaicbert_jax.reporting.settings import changed, setup
from tests.reporting.cases import CONFIG, row, write_run


def as_json(config):
    return json.loads(config.to_json())


def read(folder, **record):
    """A run with other entries of config.json."""
    write_run(folder, [row(1)])
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | record))
    return History.read(folder, "run")


@pytest.mark.parametrize(
    ("model", "name", "parameters"),
    [
        (BertConfig.mosaicbert_base(), "MosaicBERT-Base: ", "137,400,384"),
        (BertConfig.bert_large(), "BERT-Large: ", "335,174,458"),
        # 52,224 of embeddings, 9,444,096 of the layer, 592,192 of the head.
        (BertConfig(num_hidden_layers=1, vocab_size=64), "layers 1, ", "10,088,512"),
    ],
)
def test_the_model(tmp_path, model, name, parameters):
    run = read(tmp_path / "run", model=dataclasses.asdict(model))
    assert setup(run)["model"].startswith(name)
    assert setup(run)["parameters"] == parameters


def test_a_classifier_counts(tmp_path):
    classifier = {"kind": "classification", "labels": ["no", "yes"]}
    without = setup(read(tmp_path / "mlm"))["parameters"]
    found = setup(read(tmp_path / "run", classifier=classifier))["parameters"]
    # Pooler and classifier in place of the head's transform, LayerNorm and output bias.
    difference = (32 * 32 + 32 + 2 * 32 + 2) - (32 * 32 + 32 + 2 * 32 + 64)
    assert int(found.replace(",", "")) - int(without.replace(",", "")) == difference


def test_the_record_of_another_release(tmp_path):
    assert setup(read(tmp_path / "run", model={"depth": 3}))["parameters"] == "—"


def test_the_parts_of_a_mixture(tmp_path, dataset):
    metadata = DatasetMetadata.load(dataset)
    data = CONFIG["data"] | {"mixture": [[str(dataset), 0.75], ["gone", 0.25]]}
    parts = {"0": {"digest": metadata.digest}, "1": {"digest": "abc"}}
    run = read(tmp_path / "run", config=CONFIG | {"data": data}, dataset={"mixture": parts})
    sequences = f"{metadata.splits['train'].sequences:,} training sequences"
    first = f"0.75 × {dataset} (digest {metadata.digest[:12]}, {sequences})"
    assert setup(run)["data"] == f"{first}; 0.25 × gone (digest abc)"


def test_another_data_set_in_the_folder_is_not_counted(tmp_path, dataset):
    data = CONFIG["data"] | {"path": str(dataset)}
    run = read(tmp_path / "run", config=CONFIG | {"data": data}, dataset={"digest": "abc"})
    assert setup(run)["data"] == f"{dataset} (digest abc)"


def test_settings_that_are_not_the_defaults():
    config = as_json(mosaicbert_base.get_config())
    assert changed(config) == {}
    config["data"]["path"] = "anywhere"
    config["seed"] = 3
    config["new"] = {"key": "x"}
    assert changed(config) == {"seed": ("3", "17"), "new.key": ('"x"', "—")}
    assert changed(as_json(bert_base.get_config()))["model.feed_forward"] == ('"gelu"', '"geglu"')


def test_the_defaults_are_those_of_the_kind_of_run():
    config = finetuning()
    config.train.batch_size = 8
    assert changed(as_json(config)) == {"train.batch_size": ("8", "16")}
    suite = as_json(glue.get_config())
    suite["recipes"]["rte"]["epochs"] = 1
    assert changed(suite, is_suite=True) == {"recipes.rte.epochs": ("1", "3")}
