"""Opens the data of a run: what it trains on, what is held out, and what is damaged of either."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mosaicbert_jax import buckets, hosts
from mosaicbert_jax.buckets import BucketPath, Place
from mosaicbert_jax.data.dataset import TokenDataset
from mosaicbert_jax.data.integrity import (
    SKIP,
    Findings,
    describe_damage,
    examine,
    read_seen,
    refuse,
    shards_of,
)
from mosaicbert_jax.data.mixture import Mixture
from mosaicbert_jax.data.shard_files import Cache
from mosaicbert_jax.errors import UserError

_LOOKED_AT = 1000  # sequences
SEEN_FILE = "data_files.json"  # in a workdir: see `Findings.seen`


def examine_data(data: ConfigDict, folder: pathlib.Path) -> Findings:
    """What is wrong with the data's files, on any host.

    Raises:
      UserError: a shard is damaged, and data.on_error does not say to skip it.
    """
    folders = [path for path, _ in data.mixture] if data.mixture else [data.path]
    shards = [shard for path in folders for shard in shards_of(path)]
    found = examine(shards, read_seen(folder / SEEN_FILE))
    # All hosts skip the same, as each plans the rows of a step for all.
    damaged_here = np.array([shard in found.damaged for shard in shards], np.int32)
    damaged = {
        shard: found.damaged.get(shard, "on another host")
        for shard, hosts_with in zip(shards, hosts.summed(damaged_here), strict=True)
        if hosts_with
    }
    if data.on_error != SKIP:
        refuse(damaged, sum(shard.sequences for shard in shards))
    return dataclasses.replace(found, damaged=damaged)


def _settings(data: ConfigDict) -> dict[str, Any]:
    folder = data.cache_folder or buckets.cache_folder() / "shards"
    cache = Cache(pathlib.Path(folder).expanduser(), int(data.cache * 1e9))
    return {"together": data.shuffle_shards, "cache": cache}


def open_data(
    data: ConfigDict, findings: Findings
) -> tuple[TokenDataset | Mixture, TokenDataset | Mixture | None]:
    """What is trained on, and what is held out of it, if anything; both without damaged shards.

    Raises:
      UserError: nothing else is left to train on.
    """
    without: dict[Place, list[str]] = {}
    for shard in findings.damaged:
        without.setdefault(shard.folder, []).append(shard.name)
    if data.mixture:
        dataset = mixture = Mixture.open(data.mixture, without, **_settings(data))
        held_out = mixture.held_out()
    else:
        lost = without.get(buckets.place(data.path), ())
        dataset = single = TokenDataset(data.path, without=lost, **_settings(data))
        held_out = single.split("validation") if "validation" in single.metadata.splits else None
    if findings.damaged and len(dataset) == dataset.missing:
        raise UserError(f"{describe_damage(findings.damaged)}; nothing is left to train on")
    _check_predictable(dataset)
    if held_out is not None and len(held_out) == held_out.missing:
        held_out = None
    return dataset, held_out


def _check_predictable(dataset: TokenDataset | Mixture) -> None:
    """Raises UserError if the first sequences are special tokens alone, of which none is masked."""
    parts = dataset.datasets if isinstance(dataset, Mixture) else (dataset,)
    if any(isinstance(part.metadata.folder, BucketPath) for part in parts):
        return  # it would fetch shards that are not needed now; `prepare` has warned
    numbers_S = np.arange(min(len(dataset), _LOOKED_AT))
    numbers_S = numbers_S[dataset.is_there(numbers_S)]
    special = dataclasses.astuple(dataset.metadata.special_token_ids)
    if len(numbers_S) and np.isin(dataset.gather(numbers_S)[0], special).all():
        raise UserError(
            f"{dataset.metadata.folder}: nothing to predict: its first {len(numbers_S):,} texts "
            "are [UNK] and other special tokens alone; prepare the text with a tokenizer that can "
            "spell it"
        )


def describe_data(dataset: TokenDataset | Mixture, findings: Findings) -> str:
    """The number of sequences; before it what is skipped, and each data set of a mixture."""
    lines = []
    if findings.damaged:
        lost = sum(shard.sequences for shard in findings.damaged)
        lines = [f"WITHOUT {lost:,} sequences: {describe_damage(findings.damaged)}"]
    if isinstance(dataset, Mixture):
        lines += [
            f"{weight:.1%} of {part.metadata.folder}, read {places / len(part):.2f} times an epoch"
            for part, weight, places in zip(
                dataset.datasets, dataset.weights, dataset.places, strict=True
            )
        ]
    return "\n".join([*lines, f"{len(dataset) - dataset.missing:,} sequences"])


def identity(dataset: TokenDataset | Mixture) -> dict[str, Any]:
    """What identifies prepared text in the record of a run."""
    if not isinstance(dataset, Mixture):
        found: dict[str, Any] = {"digest": dataset.metadata.digest}
    else:
        # By number and not as a list, so that `differences` can tell which of them is another.
        found = {
            "mixture": {
                str(number): {"digest": part.metadata.digest, "weight": weight}
                for number, (part, weight) in enumerate(
                    zip(dataset.datasets, dataset.weights, strict=True)
                )
            }
        }
    if dataset.shuffled_together is not None:  # of fewer shards, it changes nothing
        found["shuffle_shards"] = dataset.shuffled_together
    return {**found, "max_seq_len": dataset.metadata.max_seq_len}
