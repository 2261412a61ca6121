"""What the tests with PyTorch share; without it they are skipped, each module with one word."""

import os
import pathlib

import numpy as np
import pytest

CACHE = pathlib.Path(__file__).parents[2] / ".pytest_cache" / "huggingface"
# Before transformers is imported: nothing is asked of the network, and no two processes of a test
# run write the same copies of modeling files.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(CACHE / os.environ.get("PYTEST_XDIST_WORKER", "alone"))

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

torch.set_num_threads(1)  # the tests have a process a core
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

EMPTY_REPORT = {
    "missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": [],
}  # fmt: skip


def load(auto_class: str, folder, **options):
    """The model in a folder by transformers, in evaluation mode, and what it reports of loading."""
    return getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **options
    )


def ids(array) -> "torch.Tensor | None":
    """Integers for PyTorch."""
    return None if array is None else torch.from_numpy(np.array(array, np.int64))


def batch(rng, lengths, *, row_length, side, vocab_size):
    """tokens_BL, segment_ids_BL, token_type_ids_BL: sequences with padding on the given side."""
    shape = (len(lengths), row_length)
    tokens_BL, types_BL = rng.integers(5, vocab_size, shape), rng.integers(0, 2, shape)
    column_L = np.arange(row_length)
    free_B1 = row_length - np.array(lengths)[:, None]
    start_B1 = {"right": 0 * free_B1, "left": free_B1, "both": free_B1 // 2}[side]
    real_BL = (column_L >= start_B1) & (column_L < start_B1 + np.array(lengths)[:, None])
    return (
        np.where(real_BL, tokens_BL, 0).astype(np.int32),
        real_BL.astype(np.int32),
        np.where(real_BL, types_BL, 0).astype(np.int32),
    )
