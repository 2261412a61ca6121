"""Which models a run may start from: what of the config may differ."""

import dataclasses
import types

import pytest

from mosaicbert_jax import BertConfig
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.pretraining.origin import check_same_model


def check(position_embedding: str) -> None:
    """A model of 512 positions that is to be trained on with 1024."""
    config = BertConfig(position_embedding=position_embedding, max_position_embeddings=512)
    longer = dataclasses.replace(config, max_position_embeddings=1024)
    check_same_model(types.SimpleNamespace(place="runs/first", config=config), longer)


@pytest.mark.parametrize("without_table", ["alibi", "rope"])
def test_rows_grow_only_without_a_position_table(without_table):
    check(without_table)
    # After a model without a table, whose check must leave nothing behind.
    with pytest.raises(UserError, match="max_position_embeddings is 512 there and 1024 here"):
        check("learned")
