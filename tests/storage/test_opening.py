"""A model at a path, be it a run or a Hugging Face folder, is opened in one way."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mosaicbert_jax import BertForSequenceClassification, UserError, load_run, open_model
from mosaicbert_jax.conversion import export_run
from mosaicbert_jax.interop.writing import save_model
from mosaicbert_jax.storage.opening import abstract_params, build_model, initial_params
from mosaicbert_jax.storage.target import CLASSIFICATION, Target
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.finetuning.cases import TINY, params_of, pretrained
from tests.interop.model_cases import random_model


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("opening") / "run", dataset)


@pytest.fixture(scope="module")
def folder(run):
    export_run(run, run.with_name("folder"))
    return run.with_name("folder")


@pytest.fixture(scope="module")
def classifier(run, folder):
    config = open_model(run).config
    model = random_model(BertForSequenceClassification, config, num_labels=2)
    save_model(model, run.with_name("classifier"), tokenizer=folder, labels=("bad", "good"))
    return run.with_name("classifier")


def abstract_of(config, target=None):
    return abstract_params(nnx.eval_shape(lambda: build_model(config, target, 0)), HERE)


def test_a_run_and_its_export_are_alike(run, folder):
    ours, theirs = open_model(run), open_model(str(folder))
    assert ours.config == theirs.config
    assert ours.target is theirs.target is None
    assert ours.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    assert same(params_of(load_run(run)), params_of(load_run(folder)))
    abstract = abstract_of(ours.config)
    assert same(ours.params(abstract), theirs.params(abstract))


@pytest.mark.parametrize("place", ["run", "folder"])
def test_some_parts_alone(place, request):
    stored = open_model(request.getfixturevalue(place))
    abstract = abstract_of(stored.config)
    found = stored.params({"bert": abstract["bert"]})
    assert set(found) == {"bert"}
    assert same(found["bert"], params_of(stored.load())["bert"])


def test_a_classifier_has_its_target(classifier):
    stored = open_model(classifier)
    assert stored.target == Target(CLASSIFICATION, ("bad", "good"))
    assert stored.heads == ("pooler", "classifier")
    assert isinstance(stored.load(), BertForSequenceClassification)


def test_parts_that_are_not_kept_are_drawn(run):
    stored, target = open_model(run), Target(CLASSIFICATION, ("bad", "good"))

    def build(seed):
        return build_model(stored.config, target, seed)

    abstract = abstract_of(stored.config, target)
    found = initial_params(build, abstract, 5, origin=stored, kept=("bert",))
    drawn = params_of(build(jax.random.key(5)))
    assert same(found["bert"], params_of(stored.load())["bert"])
    for part in ("pooler", "classifier"):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6), found[part], drawn[part])
    assert not same(found["bert"], drawn["bert"])


def test_what_is_not_a_model(run, folder, tmp_path, dataset):
    with pytest.raises(UserError, match="neither a run nor a Hugging Face folder"):
        open_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"step 3 is given, but .* has no checkpoints"):
        open_model(folder, 3)
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[0\]"):
        open_model(run, 3).load()


def test_a_tokenizer_of_another_model(dataset, tmp_path):
    place = pretrained(tmp_path / "run", dataset, dataclasses.replace(TINY))
    texts = [" ".join(f"w{number}" for number in range(900))] * 2
    train_tokenizer(texts, 1000).save(str(place / "tokenizer" / "tokenizer.json"))
    with pytest.raises(UserError, match="use the tokenizer that the model was trained with"):
        open_model(place).tokenizer  # noqa: B018  it is read when it is asked for
