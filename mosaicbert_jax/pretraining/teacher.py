"""A teacher: another masked language model, from whose predictions a run learns too."""

import dataclasses
import functools
from typing import Any

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mosaicbert_jax.data.dataset import DatasetMetadata
from mosaicbert_jax.errors import UserError
from mosaicbert_jax.modeling.config import BertConfig
from mosaicbert_jax.pretraining.origin import check_same_tokenizer
from mosaicbert_jax.storage.opening import StoredModel, abstract_params, build_model, open_model
from mosaicbert_jax.training import sharding


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A stored model, computing in the run's dtype, without dropout.

    Attributes:
      stored: where it is.
      config: of its encoder.
    """

    stored: StoredModel
    config: BertConfig

    @classmethod
    def open(cls, settings: ConfigDict, model: BertConfig, metadata: DatasetMetadata) -> "Teacher":
        """From the group `distill` of a config.

        Raises:
          UserError: no masked language model, one with another tokenizer, or one for shorter texts.
        """
        stored = open_model(settings.teacher, settings.teacher_step)
        if stored.target is not None:
            raise UserError(
                f"distill.teacher={stored.place} is a classifier; give a masked language model"
            )
        check_same_tokenizer("distill.teacher", stored, metadata.tokenizer_path)
        config = BertConfig.from_fields(vars(stored.config) | {"dtype": model.dtype})
        longest = metadata.max_seq_len
        if config.position_embedding == "learned" and longest > config.max_position_embeddings:
            raise UserError(
                f"distill.teacher={stored.place} has {config.max_position_embeddings} positions, "
                f"and the data set has sequences of {longest} tokens; give another teacher, or "
                "prepare shorter ones with --max-seq-len"
            )
        return cls(stored, config)

    @functools.cached_property
    def _abstract_model(self) -> nnx.Module:
        return nnx.eval_shape(lambda: build_model(self.config, None, 0))

    @property
    def graph(self) -> nnx.GraphDef:
        """Of the model, without its parameters."""
        return nnx.split(self._abstract_model)[0]

    def abstract_params(self, mesh: Mesh) -> Any:
        """Shapes and shardings of its parameters: divided as the run's own."""
        everywhere = sharding.replicated(mesh)
        return sharding.stored(mesh, abstract_params(self._abstract_model, everywhere))

    def read_params(self, mesh: Mesh) -> Any:
        """Its parameters."""
        return self.stored.params(self.abstract_params(mesh))
