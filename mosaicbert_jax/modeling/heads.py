"""Heads on the encoder: masked language model, sequence and token classification."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from mosaicbert_jax.modeling.checkpoint_methods import PretrainedMixin
from mosaicbert_jax.modeling.columns import gather_columns
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.modeling.dropout import Site, dropout, row_keys
from mosaicbert_jax.modeling.encoder import BertModel
from mosaicbert_jax.modeling.layers import Dense, Norm
from mosaicbert_jax.modeling.loss import SoftTargets, masked_lm_loss
from pallas_kernels import gelu

_NEVER = -1e9  # a logit of what is never guessed


class PredictionHead(nnx.Module):
    """norm(GELU(dense(h)))."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.dense = Dense(
            config, width, width, use_bias=config.head_bias, is_output=True, rngs=rngs
        )
        self.norm = Norm(config, epsilon=config.head_norm_eps, rngs=rngs)

    def transform(self, hidden_BPE: Float[Array, "B P E"]) -> Float[Array, "B P E"]:
        """What the decoder, or a classifier, reads."""
        return self.norm(gelu(self.dense(hidden_BPE)))


class MaskedLMHead(PredictionHead):
    """A PredictionHead and the bias of the decoder, which is the word embedding table."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))


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
        teacher: SoftTargets | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """(sum of losses, number of correct guesses).

        See `masked_lm_loss`, and `BertModel` for activation_checkpointing.
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
            teacher,
        )

    def soft_targets(
        self,
        tokens_BL: Int[Array, "B L"],
        segment_ids_BL: Int[Array, "B L"] | None,
        positions_BP: Int[Array, "B P"],
        *,
        vocab_size: int,
        weight: float,
        temperature: float,
    ) -> SoftTargets:
        """What another model is to learn from this one, which has the same tokenizer.

        Args:
          vocab_size: of the other; entries that only one of the tables has pad it.
          weight, temperature: see `SoftTargets`.
        """
        transformed_BPE = self.head.transform(
            self.bert(tokens_BL, segment_ids_BL, positions_BP=positions_BP)
        )
        table_VE = self.bert.embeddings.word.embedding[:vocab_size]
        missing = vocab_size - len(table_VE)
        return SoftTargets(
            transformed_BPE,
            jnp.pad(table_VE, ((0, missing), (0, 0))).astype(transformed_BPE.dtype),
            jnp.pad(self.head.bias[:vocab_size], (0, missing), constant_values=_NEVER),
            weight,
            temperature,
        )


def _classifier_dropout(config: BertConfig, x_BLE, keys_B):
    rate, layer = config.dropout_rate("classifier_dropout"), config.num_hidden_layers
    return dropout(x_BLE, rate, keys_B, layer=layer, site=Site.CLASSIFIER)


class BertForSequenceClassification(PretrainedMixin, nnx.Module):
    """classifier(dropout(tanh(pooler(hidden state of a sequence's first token)))).

    By its config, the hidden state is the mean of the sequence's, and what it passes through the
    layers of a PredictionHead.
    """

    def __init__(self, config: BertConfig, *, num_labels: int = 2, rngs: nnx.Rngs):
        self.config = config
        self.num_labels = num_labels
        self.bert = BertModel(config, rngs=rngs)
        if config.classifier_head == "prediction":
            self.head = PredictionHead(config, rngs=rngs)
        else:
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
        if segment_ids_BL is None:
            segment_ids_BL = jnp.ones((rows, length), jnp.int32)
        one_a_row = first_positions_S is None
        if one_a_row:
            column_S = jnp.argmax(segment_ids_BL != 0, axis=1)
            first_positions_S = jnp.arange(rows) * length + column_S
        row_S, column_S = first_positions_S // length, first_positions_S % length
        encode = functools.partial(
            self.bert, tokens_BL, segment_ids_BL, token_type_ids_BL, dropout_key=dropout_key
        )
        if self.config.classifier_pooling == "mean":
            read_SE = segment_means(encode(), segment_ids_BL, row_S, column_S)
        elif one_a_row:
            read_SE = encode(column_S[:, None])[:, 0]
        else:
            hidden_1NE = encode().reshape(1, rows * length, -1)
            read_SE = gather_columns(hidden_1NE, first_positions_S[None])[0]
        if self.config.classifier_head == "prediction":
            pooled_SE = self.head.transform(read_SE[None])[0]
        else:
            pooled_SE = jnp.tanh(self.pooler(read_SE))
        if dropout_key is not None:
            # A sequence's bits follow its row and first column, wherever else the batch is cut.
            keys_S = jax.vmap(jax.random.fold_in)(row_keys(dropout_key, rows)[row_S], column_S)
            pooled_SE = _classifier_dropout(self.config, pooled_SE[:, None], keys_S)[:, 0]
        return self.classifier(pooled_SE)


def segment_means(
    hidden_BLE: Float[Array, "B L E"],
    segment_ids_BL: Int[Array, "B L"],
    row_S: Int[Array, "S"],
    column_S: Int[Array, "S"],
) -> Float[Array, "S E"]:
    """The mean over each segment, given by one of its tokens; summed in float32."""
    rows, length, width = hidden_BLE.shape
    of_row_SB = row_S[:, None] == jnp.arange(rows)
    of_segment_SBL = segment_ids_BL == segment_ids_BL[row_S, column_S][:, None, None]
    share_SBL = (of_row_SB[:, :, None] & of_segment_SBL).astype(jnp.float32)
    share_SBL /= share_SBL.sum(axis=(1, 2), keepdims=True)
    # As a product, not a scatter, which would add atomically on GPUs.
    mean_SE = jnp.einsum(
        "sn,ne->se",
        share_SBL.reshape(-1, rows * length),
        hidden_BLE.astype(jnp.float32).reshape(-1, width),
        precision=jax.lax.Precision.HIGHEST,
    )
    return mean_SE.astype(hidden_BLE.dtype)


class BertForTokenClassification(PretrainedMixin, nnx.Module):
    """classifier(dropout(hidden state)) of every token; see `BertForSequenceClassification`."""

    def __init__(self, config: BertConfig, *, num_labels: int = 2, rngs: nnx.Rngs):
        self.config = config
        self.num_labels = num_labels
        self.bert = BertModel(config, rngs=rngs)
        if config.classifier_head == "prediction":
            self.head = PredictionHead(config, rngs=rngs)
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
        if self.config.classifier_head == "prediction":
            hidden_BLE = self.head.transform(hidden_BLE)
        keys_B = None if dropout_key is None else row_keys(dropout_key, tokens_BL.shape[0])
        return self.classifier(_classifier_dropout(self.config, hidden_BLE, keys_B))
