"""MosaicBERT for Hugging Face transformers 5: plain PyTorch, no kernels of its own.

Portes et al., 2023, arXiv:2312.17482: BERT with ALiBi in place of position embeddings, gated linear
units, and no computation on padding outside attention.

Shape letters: B rows, L row length, N real tokens, H heads, D head size, E hidden size,
F feed-forward size, V vocabulary, C classes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import can_return_tuple

from .configuration_mosaicbert import MosaicBertConfig
from .padding_mosaicbert import Padding, attention_bias


class MosaicBertEmbeddings(nn.Module):
    """dropout(LayerNorm(word + token type))."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words_NE: torch.Tensor, types_N: torch.Tensor | None) -> torch.Tensor:
        if types_N is None:
            types_N = words_NE.new_zeros((), dtype=torch.long)
        return self.dropout(self.LayerNorm(words_NE + self.token_type_embeddings(types_N)))


class MosaicBertSelfAttention(nn.Module):
    """Multi-head attention; one projection to query, key and value."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, x_NE: torch.Tensor, bias_BHLL: torch.Tensor, padding: Padding):
        qkv_BLE = padding.restore(self.Wqkv(x_NE))
        qkv_3BHLD = qkv_BLE.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHLD, k_BHLD, v_BHLD = qkv_3BHLD.unbind(0)
        context_BHLD = F.scaled_dot_product_attention(
            q_BHLD,
            k_BHLD,
            v_BHLD,
            attn_mask=bias_BHLL,
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        return padding.remove(context_BHLD.transpose(1, 2).flatten(2))


class MosaicBertResidual(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual)."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_NE: torch.Tensor, residual_NE: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x_NE)) + residual_NE)


class MosaicBertAttention(nn.Module):
    """Attention with what follows it; the names of the original's parameters."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.self = MosaicBertSelfAttention(config)
        self.output = MosaicBertResidual(config)

    def forward(self, x_NE: torch.Tensor, bias_BHLL: torch.Tensor, padding: Padding):
        return self.output(self.self(x_NE, bias_BHLL, padding), x_NE)


class MosaicBertGatedMLP(nn.Module):
    """LayerNorm(wo(dropout(GELU(g) · u)) + x), [g | u] = gated_layers(x)."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        width = config.intermediate_size
        self.gated_layers = nn.Linear(config.hidden_size, 2 * width, bias=False)
        self.wo = nn.Linear(width, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x_NE: torch.Tensor) -> torch.Tensor:
        gate_NF, up_NF = self.gated_layers(x_NE).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(F.gelu(gate_NF) * up_NF)) + x_NE)


class MosaicBertLayer(GradientCheckpointingLayer):
    """Attention and feed-forward."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.attention = MosaicBertAttention(config)
        self.mlp = MosaicBertGatedMLP(config)

    def forward(self, x_NE: torch.Tensor, bias_BHLL: torch.Tensor, padding: Padding):
        return self.mlp(self.attention(x_NE, bias_BHLL, padding))


class MosaicBertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.layer = nn.ModuleList(
            [MosaicBertLayer(config) for _ in range(config.num_hidden_layers)]
        )


class MosaicBertPoolerDense(nn.Linear):
    """A layer whose initial weights are the same whatever the seed.

    Adapters such as PEFT's are saved without the pooler, and later put on one that is drawn again.
    """


class MosaicBertPooler(nn.Module):
    """tanh(dense(hidden state of the first token))."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.dense = MosaicBertPoolerDense(config.hidden_size, config.hidden_size)

    def forward(self, hidden_BLE: torch.Tensor, padding: Padding) -> torch.Tensor:
        rows_B = torch.arange(hidden_BLE.shape[0], device=hidden_BLE.device)
        return torch.tanh(self.dense(hidden_BLE[rows_B, padding.first_columns()]))


class MosaicBertPreTrainedModel(PreTrainedModel):
    """What the classes below share; initialization is the base class's: N(0, initializer_range)."""

    config_class = MosaicBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ("MosaicBertEmbeddings", "MosaicBertLayer")
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, MosaicBertPoolerDense):
            super()._init_weights(module)
            return
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(module.weight.shape, generator=generator)
        initialization.copy_(module.weight, drawn * self.config.initializer_range)
        initialization.zeros_(module.bias)


class MosaicBertModel(MosaicBertPreTrainedModel):
    """The encoder; with a pooler only where a head needs one."""

    # Of checkpoints with a head: this class is asked for in order to leave that out.
    _keys_to_ignore_on_load_unexpected = (r"^cls\.", r"^classifier\.", r"pooler\.")

    def __init__(self, config: MosaicBertConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = MosaicBertEmbeddings(config)
        self.encoder = MosaicBertEncoder(config)
        self.pooler = MosaicBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes rows of tokens.

        Args:
          input_ids: (B, L); or inputs_embeds: (B, L, E), word embeddings in their place.
          attention_mask: (B, L), 0 on padding, on either side. None: no padding.
          token_type_ids: (B, L); None means all 0.

        Returns:
          last_hidden_state (B, L, E); pooler_output (B, E) if there is a pooler; hidden_states, the
          embeddings and each layer's output, if asked for. Padding holds zeros, or under tracing
          finite values that mean nothing.

        Raises:
          ValueError: both or none of input_ids and inputs_embeds; attention weights, which fused
            attention does not hold; a mask that is not (B, L).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if self.config.output_attentions if output_attentions is None else output_attentions:
            raise ValueError("output_attentions: fused attention never holds the weights")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        shape = input_ids.shape if inputs_embeds is None else inputs_embeds.shape[:2]
        if attention_mask is not None and attention_mask.shape != shape:
            raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}, not {tuple(shape)}")
        padding = Padding(attention_mask, shape)
        if inputs_embeds is None:
            words_NE = self.embeddings.word_embeddings(padding.remove(input_ids))
        else:
            words_NE = padding.remove(inputs_embeds)
        types_N = None if token_type_ids is None else padding.remove(token_type_ids)
        x_NE = self.embeddings(words_NE, types_N)
        bias_BHLL = attention_bias(padding, self.config.num_attention_heads, x_NE)
        states = []
        for layer in self.encoder.layer:
            if output_hidden_states:
                # The next layer reads what is returned, so that it has a gradient.
                states.append(padding.restore(x_NE))
                x_NE = padding.remove(states[-1])
            x_NE = layer(x_NE, bias_BHLL, padding)
        hidden_BLE = padding.restore(x_NE)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_BLE,
            pooler_output=None if self.pooler is None else self.pooler(hidden_BLE, padding),
            hidden_states=(*states, hidden_BLE) if output_hidden_states else None,
        )


class MosaicBertPredictionTransform(nn.Module):
    """LayerNorm(GELU(dense(x))), with an epsilon of its own."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.head_norm_eps)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(x_BLE)))


class MosaicBertPredictionHead(nn.Module):
    """Transform, and a decoder tied to the word embeddings."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.transform = MosaicBertPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x_BLE: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(x_BLE))


class MosaicBertHeads(nn.Module):
    """The level `cls` of the original's names."""

    def __init__(self, config: MosaicBertConfig):
        super().__init__()
        self.predictions = MosaicBertPredictionHead(config)


class MosaicBertWithHead(MosaicBertPreTrainedModel):
    """An encoder `bert` with a head: what a class adds are its logits, its loss, its output."""

    output_class: type

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        raise NotImplementedError

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy over the labels that are not -100; 0, not NaN, without any."""
        total = F.cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten().long(), reduction="sum"
        )
        return total / (labels != -100).sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ):
        """Logits, with labels their loss, and hidden states if asked for.

        Args:
          labels: see `loss` of the class.
          The others as in `MosaicBertModel`.
        """
        outputs = self.bert(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        logits = self.logits(outputs)
        return self.output_class(
            loss=None if labels is None else self.loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )


class MosaicBertForMaskedLM(MosaicBertWithHead):
    """The encoder with a head that guesses masked tokens: logits (B, L, V), labels (B, L)."""

    output_class = MaskedLMOutput
    _tied_weights_keys = {  # noqa: RUF012  as transformers has it
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"
    }
    _keys_to_ignore_on_load_unexpected = (r"^classifier\.", r"^bert\.pooler\.")

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.bert = MosaicBertModel(config)
        self.cls = MosaicBertHeads(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.cls.predictions.decoder = value

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.cls.predictions(outputs.last_hidden_state)


def classifier_dropout(config: MosaicBertConfig) -> nn.Dropout:
    """Before a classifier: the rate of the encoder, unless config.classifier_dropout is set."""
    rate = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if rate is None else rate)


class MosaicBertForSequenceClassification(MosaicBertWithHead):
    """classifier(dropout(pooler(first token))): logits (B, C)."""

    output_class = SequenceClassifierOutput
    _keys_to_ignore_on_load_unexpected = (r"^cls\.",)

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.bert = MosaicBertModel(config, add_pooling_layer=True)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.classifier(self.dropout(outputs.pooler_output))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """That of config.problem_type.

        "regression": mean squared error, of (B,) or (B, C) numbers. "multi_label_classification":
        binary cross-entropy, of (B, C) floats. "single_label_classification": mean cross-entropy,
        of (B,) integers. None: the first where C is 1, the second of floats, else the third.
        """
        kind = self.config.problem_type
        if kind is None and logits.shape[-1] == 1:
            kind = "regression"
        elif kind is None and labels.is_floating_point():
            kind = "multi_label_classification"
        if kind == "regression":
            return F.mse_loss(
                logits.squeeze(-1).float(), labels.view_as(logits.squeeze(-1)).float()
            )
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        return super().loss(logits, labels)


class MosaicBertForTokenClassification(MosaicBertWithHead):
    """classifier(dropout(hidden state)) of every token: logits (B, L, C), labels (B, L)."""

    output_class = TokenClassifierOutput
    _keys_to_ignore_on_load_unexpected = (r"^cls\.", r"^bert\.pooler\.")

    def __init__(self, config: MosaicBertConfig):
        super().__init__(config)
        self.bert = MosaicBertModel(config)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def logits(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        return self.classifier(self.dropout(outputs.last_hidden_state))
