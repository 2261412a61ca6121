"""What becomes of runs whose data and workdir are in buckets, when the network or a server fails.

    python -m campaigns.bucket_faults [--faults 120] [--seed 0] [--output NAME]

As campaigns.faults: small runs are started again and again, each start meets one fault, and at the
end the checkpoint in the bucket is compared, bit for bit, with that of a run on a local disk. Here
the faults are between client and server: a proxy before moto's S3 and fake-gcs-server answers 500,
403 or that there is no such bucket, resets connections, and slows or cuts bodies off, for a while
drawn at random; or the process is killed, and half of these resume on another machine, which has
nothing in its cache. Patience and leases are seconds here, not minutes.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.records import dumps
from campaigns import bucket_servers, bucket_worker, fault_worker, faults
from campaigns.bucket_servers import Rules, Store
from campaigns.faults import NOTHING, REFUSED, WRONG, Outcome, last_lines, state
from mosaicbert_jax import buckets
from mosaicbert_jax.storage import working_copy

# How often each kind is drawn; of all requests of its time, the share that meets with it.
KINDS = {"500": 3, "reset": 3, "truncate": 3, "slow": 2, "403": 2, "404": 2, "SIGKILL": 4}
_SHARES = {"500": 0.5, "reset": 0.5, "truncate": 0.5, "slow": 0.3, "403": 1.0, "404": 1.0}
_LONGEST_SECONDS = 3.0
_LATEST_SECONDS = 6.0  # after the start
PACKAGES = ("jax", "orbax-checkpoint", "fsspec", "s3fs", "gcsfs", "moto")


class Campaign:
    """The data, the run on a local disk, and the process that starts are forked from.

    Args:
      folder: empty; all that the campaign writes is below.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._forks = multiprocessing.get_context("forkserver")
        self._forks.set_forkserver_preload(["campaigns.bucket_worker"])
        self._data = faults.prepared(folder)
        status, told = self._wait(self._start(str(folder / "whole"), str(self._data), "whole", {}))
        if status:
            raise RuntimeError(f"an uninterrupted run failed: {told}")
        self._expected = state(folder / "whole")

    def upload(self, store: Store) -> None:
        """Puts the data where the runs of a store read them."""
        names = [path.name for path in self._data.iterdir()]
        buckets.upload_all(self._data, buckets.place(store.url("data")), names)

    def _start(self, workdir: str, data: str, name: str, environment: dict[str, str]) -> Any:
        log = self._folder / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        words = [
            "train.py",
            f"--config={fault_worker.ROOT}/configs/tiny.py",
            f"--workdir={workdir}",
            f"--config.data.path={data}",
            "--config.data.shuffle_shards=1",
            "--config.data.cache=0.001",
            *(f"--config.{setting}" for setting in faults.SETTINGS),
        ]
        compiled = str(self._folder / "compiled")
        process = self._forks.Process(
            target=bucket_worker.train, args=(words, environment, compiled, str(log))
        )
        process.start()
        return process, log

    def _wait(self, started: Any) -> tuple[int, str]:
        process, log = started
        process.join(faults.SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return fault_worker.HUNG, last_lines(log)
        return process.exitcode, last_lines(log)

    def chain(self, number: int, most: int, seed: int, store: Store) -> list[Outcome]:
        """One run with several faults, one after the other, and what became of each."""
        rng = random.Random(f"{seed} {number} {store.scheme}")
        cache = self._folder / f"cache-{store.scheme}-{number}"
        environment = {**store.environment, "XDG_CACHE_HOME": str(cache)}
        name = f"run-{store.scheme}-{number}"
        words = (store.url(name), store.url("data"), name, environment)
        outcomes: list[Outcome] = []
        while len(outcomes) < most and not self._is_complete(store, name):
            (kind,) = rng.choices(list(KINDS), weights=KINDS.values())
            outcome = self._meet(kind, words, store, rng)
            outcomes.append(outcome)
            if outcome.found == WRONG:
                return outcomes
            if rng.random() < 0.5:
                outcome.scenario = "resumed on another machine"
                shutil.rmtree(cache, ignore_errors=True)
        status, told = self._wait(self._start(*words))
        wrong = f"the last start ended with status {status}: {told}" if status else ""
        if not wrong and self._state(store, name) != self._expected:
            wrong = "the run ended with other bits"
        for outcome in outcomes if wrong else ():
            outcome.found, outcome.told = WRONG, wrong
        shutil.rmtree(cache, ignore_errors=True)
        return outcomes

    def _meet(self, kind: str, words: tuple, store: Store, rng: random.Random) -> Outcome:
        """One start with one fault of this kind."""
        outcome = Outcome("resumed on the same machine", kind, store.scheme)
        after = rng.uniform(0, _LATEST_SECONDS)
        if kind == "SIGKILL":
            process, _ = started = self._start(*words)
            process.join(after)
            process.kill()
            status, told = self._wait(started)
            if status not in (0, -signal.SIGKILL):
                outcome.found, outcome.told = WRONG, f"status {status}: {told}"
            elif status == 0:
                outcome.found = NOTHING
            return outcome
        store.proxy.faults.clear()
        seconds = rng.uniform(0.3, _LONGEST_SECONDS)
        seed = rng.random()
        began = time.monotonic()

        def fault(number: int, method: str, path: str) -> str | None:
            is_time = after <= time.monotonic() - began <= after + seconds
            is_drawn = random.Random(f"{seed} {number}").random() < _SHARES[kind]
            return kind if is_time and is_drawn else None

        store.proxy.rules = Rules(fault=fault)
        status, told = self._wait(self._start(*words))
        store.proxy.rules = Rules()
        if not store.proxy.faults:
            outcome.found = NOTHING
        if status == 2 and told.startswith("error: ") and "\n" not in told:
            outcome.found, outcome.told = REFUSED, told
        elif status != 0:
            outcome.found, outcome.told = WRONG, f"status {status}: {told}"
        return outcome

    def _is_complete(self, store: Store, name: str) -> bool:
        last = f"{name}/checkpoints/{faults.STEPS}/digests.json"
        return buckets.place(store.url(last)).exists()

    def _state(self, store: Store, name: str) -> list:
        return state(working_copy.read_copy(store.url(name), None, ("model", "optimizer")))


def campaign(
    made: Campaign, most: int, *, seed: int, stores: Sequence[Store], a_run: int = 5
) -> list[Outcome]:
    """At least `most` faults that happened, and what became of each.

    Args:
      stores: each has one run at a time.
      a_run: faults in one run.
    """
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def work(store: Store) -> None:
        made.upload(store)
        number = 0
        while bar.n < most:
            found = [one for one in made.chain(number, a_run, seed, store) if one.found != NOTHING]
            number += 1
            with lock:
                outcomes.extend(found)
                bar.update(len(found))

    with (
        concurrent.futures.ThreadPoolExecutor(len(stores)) as pool,
        tqdm(total=most, desc="faults") as bar,
    ):
        for done in [pool.submit(work, store) for store in stores]:
            done.result()
    return outcomes


@contextlib.contextmanager
def all_stores() -> Iterator[list[Store]]:
    """One of each kind, to which the clients of this process are led."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(bucket_servers.store(scheme)) for scheme in ("gs", "s3")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("campaigns/results/bucket_faults")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, all_stores() as stores:
        made = Campaign(pathlib.Path(folder))
        outcomes = campaign(made, options.faults, seed=options.seed, stores=stores)
    command = f"python -m campaigns.bucket_faults --faults {options.faults} --seed {options.seed}"
    text = faults.table(
        outcomes,
        command,
        title="Runs in buckets that meet with faults",
        kinds=tuple(KINDS),
        packages=PACKAGES,
    )
    options.output.with_suffix(".md").write_text(text)
    records = [dataclasses.asdict(outcome) for outcome in outcomes]
    options.output.with_suffix(".json").write_text(dumps(records).replace(folder, "FOLDER"))
    print(text)
    if any(outcome.found == WRONG for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
