"""docs/export.md runs as it stands, and does what it says."""

import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from mosaicbert_jax import BertConfig, BertForMaskedLM, BertForSequenceClassification
from mosaicbert_jax.storage import checkpoint_files, workdir
from mosaicbert_jax.storage.opening import load_run
from mosaicbert_jax.text.tokenizer_training import train_tokenizer
from tests.conftest import ROOT
from tests.interop.model_cases import SMALL, assert_same_parameters, call, random_model
from tests.interop.published_layout import write_published
from tests.interop.torch_cases import load, torch, transformers

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
for package in ("sentence_transformers", "onnx", "onnxscript"):
    pytest.importorskip(package, reason=f"{package} is not installed")
KEEP = """
import numpy as np
np.savez("kept.npz", logits=logits.detach(), embeddings=embeddings, onnx_logits=onnx_logits)
"""


def blocks() -> list[tuple[str, str]]:
    """(language, text) of each block of code in the page."""
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S)
    assert {language for language, _ in found} == {"bash", "python"}
    return found


def test_the_page_runs_as_it_stands(tmp_path):
    """One test, since the lines take half a minute."""
    prepare(tmp_path)
    run_page(tmp_path)
    check_what_leaves_and_comes_back_has_the_same_bits(tmp_path)
    check_numbers_are_those_here(tmp_path)
    check_onnx_at_another_size_than_it_was_exported_at(tmp_path)
    check_the_card_loads_as_it_says(tmp_path / "exported" / "mine")
    check_the_card_loads_as_it_says(tmp_path / "exported" / "classifier")


def prepare(place):
    """What the page takes for given: a run, the published weights, BERT's vocabulary."""
    texts = ["The state of the union is peace.", "A third text of all nations."]
    (place / "tokenizer").mkdir()
    train_tokenizer(texts, 64).save(str(place / "tokenizer" / "tokenizer.json"))
    model = random_model(BertForMaskedLM, BertConfig(**SMALL))
    model.save_pretrained(place / "original", tokenizer=place / "tokenizer")
    write_published(place / "mosaic-bert-base", model, vocab_size=64)
    (place / "bert-base-uncased").mkdir()
    (place / "original" / "vocab.txt").rename(place / "bert-base-uncased" / "vocab.txt")
    run = place / "runs" / "mine"
    run.mkdir(parents=True)
    workdir.write_converted(run, model.config, source="nowhere")
    checkpoint_files.write_params(run, model)
    (place / "tokenizer").rename(run / "tokenizer")


def run_page(place):
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    found = blocks()
    python = "".join(text for language, text in found if language == "python")
    (place / "page.py").write_text(python + KEEP)
    commands = [text for language, text in found if language == "bash"]
    # In the page's order, but for the blocks of Python, which are one program.
    script = "\n".join([commands[0], "python page.py", *commands[1:]])
    done = subprocess.run(
        ["bash", "-euc", script], cwd=place, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "token_str" in done.stdout  # what fill-mask printed


def check_what_leaves_and_comes_back_has_the_same_bits(place):
    model = load_run(place / "runs" / "mine")
    assert_same_parameters(BertForMaskedLM.from_pretrained(place / "exported/mine"), model)
    assert_same_parameters(load_run(place / "runs/back"), model)
    assert_same_parameters(load_run(place / "runs/mosaic-bert-base"), model)
    classifier = BertForSequenceClassification.from_pretrained(place / "exported/classifier")
    assert classifier.num_labels == 3
    assert_same_parameters(classifier.bert, model.bert)


def check_numbers_are_those_here(place):
    kept = np.load(place / "kept.npz")
    model = BertForMaskedLM.from_pretrained(place / "exported/mine")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        place / "exported/mine", trust_remote_code=True
    )
    batch = tokenizer(["The state of the union.", "Peace."], padding=True, return_tensors="np")
    mask_BL = batch["attention_mask"]
    inputs = [batch["input_ids"], mask_BL]
    logits_BLV = np.asarray(call(model, *inputs))
    real_BL = mask_BL > 0
    np.testing.assert_allclose(kept["logits"][real_BL], logits_BLV[real_BL], atol=1e-5)

    hidden_BLE = call(model.bert, *inputs)
    means_BE = jnp.einsum("ble,bl->be", hidden_BLE, mask_BL) / mask_BL.sum(1, keepdims=True)
    np.testing.assert_allclose(kept["embeddings"], means_BE, atol=1e-5)


def check_onnx_at_another_size_than_it_was_exported_at(place):
    kept = np.load(place / "kept.npz")
    there, _ = load("AutoModelForMaskedLM", place / "exported/mine")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        place / "exported/mine", trust_remote_code=True
    )
    texts = ["Peace is the [MASK] of all nations.", "The [MASK].", "A third text."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits_BLV = there(**batch).logits
    real_BL = batch["attention_mask"] > 0
    assert not real_BL.all()
    np.testing.assert_allclose(kept["onnx_logits"][real_BL], logits_BLV[real_BL], atol=1e-4)

    session = onnxruntime.InferenceSession(place / "mine.onnx")
    batch["attention_mask"][1] = 0  # a row without a real token
    (logits_BLV,) = session.run(["logits"], {name: x.numpy() for name, x in batch.items()})
    assert np.isfinite(logits_BLV).all()
    np.testing.assert_allclose(logits_BLV[[0, 2]], kept["onnx_logits"][[0, 2]], atol=1e-5)


def check_the_card_loads_as_it_says(folder):
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "transformers"
    code = re.search(r"^```python\n(.*?)^```$", card, re.M | re.S)[1]
    assert 'folder = "."' in code
    values = {}
    exec(code.replace('"."', repr(str(folder))), values)
    assert values["outputs"].logits.shape[0] == 2
