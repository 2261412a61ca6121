"""Heads on the encoder: masked language model, sequence and token classification."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.checkpoint_methods import PretrainedMixin
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.dropout import Site, dropout, row_keys
from mosaicbert_jax.modeling.encoder import BertModel
from mosaicbert_jax.modeling.layers import Dense, gather_columns, layer_norm
from mosaicbert_jax.modeling.loss import masked_lm_loss
from pallas_kernels import gelu


class MaskedLMHead(nnx.Module):
    """norm(GELU(dense(h))); the decoder is the word embedding table, with a bias of its own."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.dense = Dense(config, config.hidden_size, config.hidden_size, rngs=rngs)
        self.norm = layer_norm(config, epsilon=config.head_norm_eps, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))

    def transform(self, hidden_BPE: Float[Array, "B P E"]) -> Float[Array, "B P E"]:
        """What the decoder reads."""
        return self.norm(gelu(self.dense(hidden_BPE))).astype(self.config.compute_dtype)


class BertForMaskedLM(PretrainedMixin, nnx.Module):
    """The encoder with a head that guesses masked tokens."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.bert = BertModel(config, rngs=rngs)
        self.head = MaskedLMHead(config, rngs=rngs)

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None = None,
        token_type_ids_BL: Int[Array, "B L"] | None = None,
        positions_BP: Int[Array, "B P"] | None = None,
        dropout_key: Key[Array, "..."] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits (B, L, V), or (B, P, V) at the columns positions_BP; see `BertModel`."""
        hidden_BPE = self.bert(
            tokens_BL, segment_ids_BL, token_type_ids_BL, positions_BP, dropout_key
        )
        transformed_BPE = self.head.transform(hidden_BPE)
        table_VE = self.bert.embeddings.word.embedding[...].astype(transformed_BPE.dtype)
        return jnp.einsum("bpe,ve->bpv", transformed_BPE, table_VE) + self.head.bias[...].astype(
            transformed_BPE.dtype
        )

    def loss(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None,
        positions_BP: Int[Array, "B P"],
        labels_BP: Int[Array, "B P"],
        weights_BP: Float[Array, "B P"],
        *,
        token_type_ids_BL: Int[Array, "B L"] | None = None,
        dropout_key: Key[Array, "..."] | None = None,
        activation_checkpointing: bool = False,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(sum of cross-entropies, number of correct guesses).

        See `masked_lm_loss` and, for the last argument, `BertModel`.
        """
        hidden_BPE = self.bert(
            tokens_BL,
            segment_ids_BL,
            token_type_ids_BL,
            positions_BP,
            dropout_key,
            activation_checkpointing,
        )
        return masked_lm_loss(
            self.head.transform(hidden_BPE),
            self.bert.embeddings.word.embedding[...],
            self.head.bias[...],
            labels_BP,
            weights_BP,
        )


def _classifier_dropout(config: BertConfig, x_BLE, keys_B):
    rate, layer = config.hidden_dropout_prob, config.num_hidden_layers
    return dropout(x_BLE, rate, keys_B, layer=layer, site=Site.CLASSIFIER)


class BertForSequenceClassification(PretrainedMixin, nnx.Module):
    """classifier(dropout(tanh(pooler(hidden state of a sequence's first token))))."""

    def __init__(self, config: BertConfig, *, num_labels: int = 2, rngs: nnx.Rngs):
        self.config = config
        self.num_labels = num_labels
        self.bert = BertModel(config, rngs=rngs)
        self.pooler = Dense(config, config.hidden_size, config.hidden_size, rngs=rngs)
        self.classifier = Dense(config, config.hidden_size, num_labels, rngs=rngs)

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None = None,
        token_type_ids_BL: Int[Array, "B L"] | None = None,
        first_positions_S: Int[Array, "S"] | None = None,
        dropout_key: Key[Array, "..."] | None = None,
    ) -> Float[Array, "S C"]:
        """Logits of each sequence.

        Args:
          first_positions_S: indices into the flattened B·L tokens of each sequence's first one.
            None: one sequence a row, whose first token that is not padding is read, so S = B.
          The others as in `BertModel`.
        """
        rows, length = tokens_BL.shape
        if first_positions_S is None:
            if segment_ids_BL is None:
                first_B1 = jnp.zeros((rows, 1), jnp.int32)
            else:
                first_B1 = jnp.argmax(segment_ids_BL != 0, axis=1, keepdims=True)
            first_SE = self.bert(
                tokens_BL, segment_ids_BL, token_type_ids_BL, first_B1, dropout_key
            )[:, 0]
            row_S, column_S = jnp.arange(rows), first_B1[:, 0]
        else:
            row_S, column_S = first_positions_S // length, first_positions_S % length
            hidden_BLE = self.bert(
                tokens_BL, segment_ids_BL, token_type_ids_BL, dropout_key=dropout_key
            )
            hidden_1NE = hidden_BLE.reshape(1, rows * length, -1)
            first_SE = gather_columns(hidden_1NE, first_positions_S[None])[0]
        pooled_SE = jnp.tanh(self.pooler(first_SE))
        if dropout_key is not None:
            # A sequence's bits follow its row and first column, wherever else the batch is cut.
            keys_S = jax.vmap(jax.random.fold_in)(row_keys(dropout_key, rows)[row_S], column_S)
            pooled_SE = _classifier_dropout(self.config, pooled_SE[:, None], keys_S)[:, 0]
        return self.classifier(pooled_SE)


class BertForTokenClassification(PretrainedMixin, nnx.Module):
    """classifier(dropout(hidden state)) of every token."""

    def __init__(self, config: BertConfig, *, num_labels: int = 2, rngs: nnx.Rngs):
        self.config = config
        self.num_labels = num_labels
        self.bert = BertModel(config, rngs=rngs)
        self.classifier = Dense(config, config.hidden_size, num_labels, rngs=rngs)

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None = None,
        token_type_ids_BL: Int[Array, "B L"] | None = None,
        dropout_key: Key[Array, "..."] | None = None,
    ) -> Float[Array, "B L C"]:
        """Logits of each token; arguments as in `BertModel`."""
        hidden_BLE = self.bert(
            tokens_BL, segment_ids_BL, token_type_ids_BL, dropout_key=dropout_key
        )
        keys_B = None if dropout_key is None else row_keys(dropout_key, tokens_BL.shape[0])
        return self.classifier(_classifier_dropout(self.config, hidden_BLE, keys_B))
