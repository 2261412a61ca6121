"""One start of train.py whose workdir is in a bucket; see campaigns/bucket_faults.py."""

import os
from collections.abc import Sequence

from campaigns import fault_worker
from campaigns.fault_worker import Fault
from mosaicbert_jax import buckets, lease
from mosaicbert_jax.storage import working_copy


def train(words: Sequence[str], environment: dict[str, str], cache: str, log: str) -> None:
    """Runs train.py's main with these words, in this process."""
    os.environ.update(environment)
    buckets.PATIENCE = 6.0
    lease.EXPIRES_SECONDS, lease.RENEW_SECONDS = 4.0, 1.0
    working_copy.SYNC_SECONDS = 0.3
    fault_worker.train(words, Fault(), (), cache, log)
