"""The encoder: embeddings and a stack of layers."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.checkpoint_methods import PretrainedMixin
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.dropout import Site, dropout, row_keys
from mosaicbert_jax.modeling.layers import EncoderLayer, Norm, embedding, look_up
from pallas_kernels import block_ranges


def segment_positions(segment_ids_BL: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Each token's column counted from the start of its segment."""
    column_BL = jnp.broadcast_to(jnp.arange(segment_ids_BL.shape[1]), segment_ids_BL.shape)
    previous_BL = jnp.pad(segment_ids_BL, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    start_BL = jnp.where(segment_ids_BL != previous_BL, column_BL, 0)
    return column_BL - jax.lax.cummax(start_BL, axis=1)


class Embeddings(nnx.Module):
    """dropout(norm(word [+ token type] [+ learned position]))."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.word = embedding(config, config.vocab_size, rngs=rngs)
        if config.type_vocab_size:
            self.token_type = embedding(config, config.type_vocab_size, rngs=rngs)
        if config.position_embedding == "learned":
            self.position = embedding(config, config.max_position_embeddings, rngs=rngs)
        self.norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"],
        token_type_ids_BL: Int[Array, "B L"] | None,
        keys_B: Key[Array, "B"] | None,
    ) -> Float[Array, "B L E"]:
        """The embedded tokens, normalized, with dropout."""
        config = self.config
        word_BLE = look_up(self.word.embedding[...], tokens_BL, config.compute_dtype)
        added = []
        if config.type_vocab_size:
            types_TE = self.token_type.embedding[...]
            if token_type_ids_BL is None:
                added.append(jnp.broadcast_to(types_TE[0], word_BLE.shape))
            else:
                added.append(look_up(types_TE, token_type_ids_BL))
        if config.position_embedding == "learned":
            positions_BL = segment_positions(segment_ids_BL)
            added.append(look_up(self.position.embedding[...], positions_BL))
        if added:
            added_BLE = functools.reduce(jnp.add, added).astype(word_BLE.dtype)
            x_BLE = self.norm.of_sum(word_BLE, added_BLE)
        else:
            x_BLE = self.norm(word_BLE)
        rate = config.dropout_rate("embedding_dropout_prob")
        return dropout(x_BLE, rate, keys_B, layer=-1, site=Site.HIDDEN)


class BertModel(PretrainedMixin, nnx.Module):
    """The encoder without a head: MosaicBERT, BERT or ModernBERT, by its config."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List(
            [EncoderLayer(config, index, rngs=rngs) for index in range(config.num_hidden_layers)]
        )
        if config.norm_position == "pre":
            self.final_norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None = None,
        token_type_ids_BL: Int[Array, "B L"] | None = None,
        positions_BP: Int[Array, "B P"] | None = None,
        dropout_key: Key[Array, "..."] | None = None,
        activation_checkpointing: bool = False,
    ) -> Float[Array, "B L E"]:
        """Encodes rows of tokens.

        Args:
          tokens_BL: int32 vocabulary ids.
          segment_ids_BL: int32; tokens see only their own segment; 0 is padding, on either side.
            None: every row is one segment without padding.
          token_type_ids_BL: int32; None means all 0.
          positions_BP: int32 columns; the last layer, or those from config.narrow_from_layer on,
            then run on these alone, with attention to all.
          dropout_key: a typed key, or one key a row (B,); None means no dropout.
          activation_checkpointing: keep for backward what enters each layer, and compute the rest
            of it again there (Chen et al., 2016, arXiv:1604.06174): memory for a third more FLOPs.

        Returns:
          Hidden states (B, L, E), or (B, P, E) with positions_BP. What stands on padding is
          finite and means nothing. With learned positions, a segment longer than the table has
          NaN from there on.
        """
        rows, length = tokens_BL.shape
        if segment_ids_BL is None:
            segment_ids_BL = jnp.ones((rows, length), jnp.int32)
        keys_B = None if dropout_key is None else row_keys(dropout_key, rows)
        ranges = block_ranges(segment_ids_BL)
        x_BLE = self.embeddings(tokens_BL, segment_ids_BL, token_type_ids_BL, keys_B)
        encode = EncoderLayer.__call__
        if activation_checkpointing:
            encode = nnx.remat(encode)
        stream = x_BLE, None
        narrow_from, source_BLE = self.config.narrow_from_layer, None
        first_narrow = len(self.layers) - 1 if narrow_from is None else narrow_from
        for index, layer in enumerate(self.layers):
            positions = positions_BP if index >= first_narrow else None
            entering = stream
            stream = encode(layer, stream, segment_ids_BL, ranges, keys_B, positions, source_BLE)
            if index == narrow_from:
                x_BLE, update_BLE = entering
                source_BLE = x_BLE if update_BLE is None else x_BLE + update_BLE
        x_BLE, update_BLE = stream
        return x_BLE if update_BLE is None else self.final_norm.of_sum(update_BLE, x_BLE)
