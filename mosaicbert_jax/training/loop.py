"""Training, from a run to a trained model, whatever the run learns."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from mosaicbert_jax.data.pipeline import Batch
from mosaicbert_jax.errors import Interrupted, UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.training import (
    checkpoints,
    flops,
    hosts,
    interruption,
    sharding,
    watchdog,
    workdir,
)
from mosaicbert_jax.training.clock import Clock
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.host_memory import keep_freed_memory
from mosaicbert_jax.training.metrics import (
    FINISHED,
    RESUMED,
    ROLLED_BACK,
    SAVING,
    STARTED,
    STOPPED,
    MetricsWriter,
    ProgressBar,
)
from mosaicbert_jax.training.recovery import Diverged
from mosaicbert_jax.training.reporter import Reporter
from mosaicbert_jax.training.run import Evaluation, Run
from mosaicbert_jax.training.schedule import learning_rate
from mosaicbert_jax.training.start import fresh_start, starting_point


def train(run: Run) -> Evaluation | None:
    """Trains from where the run's folder is to its end; returns the last evaluation.

    Raises:
      UserError: a folder that is another run's, or a loss that training cannot go on from, more
        often than recovery.max_rollbacks allows.
      Interrupted: it was asked to stop, and has saved.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    with contextlib.ExitStack() as stack:

        def take_folder():
            stack.enter_context(workdir.locked(run.folder))
            workdir.claim(run.folder, run.record, run.tokenizer_files())
            for name, text in run.files().items():
                write_atomically(run.folder / name, text)

        hosts.on_first(take_folder)
        stack.enter_context(jax.set_mesh(run.mesh))
        run = run.settled(_say)
        hosts.on_first(lambda: checkpoints.set_damaged_aside(run.folder, _say))
        keep = run.config.checkpoint.keep
        store = checkpoints.Checkpoints(run.folder, keep=keep, say=_say)
        stack.enter_context(store)
        start = starting_point(run, store)
        session = _opened(run, start, store, stack)
        session.bar.say(run.describe())
        while True:
            try:
                with contextlib.closing(run.batches(start.position)) as train_batches:
                    return _train(session, start, train_batches)
            except Diverged as raised:
                # Its frames hold the state; the next one needs the memory.
                diverged = raised.with_traceback(None)
            start = _rolled_back(session, start, diverged)


@dataclasses.dataclass(frozen=True)
class _Session:
    """What is open from the first step to the last.

    Attributes:
      writer: of the process that writes.
      must_stop: see `interruption.heeded`.
      happened: see `watchdog.watching`.
    """

    run: Run
    step: "_CompiledStep"
    store: checkpoints.Checkpoints
    writer: MetricsWriter | None
    bar: ProgressBar
    must_stop: Callable[[int], bool]
    happened: Callable[[], None]


def _opened(
    run: Run,
    start: checkpoints.Restored,
    store: checkpoints.Checkpoints,
    stack: contextlib.ExitStack,
) -> _Session:
    bar = ProgressBar(run.share(start.progress), show=hosts.is_first())
    stack.enter_context(contextlib.closing(bar))
    writer = None
    if hosts.is_first():
        writer = MetricsWriter(run.folder, run.config, step=start.progress.step, say=bar.say)
        stack.enter_context(writer)
    must_stop = stack.enter_context(interruption.heeded(bar.say))
    watched = watchdog.watching(run.config.recovery, run.folder, bar.say)
    happened = stack.enter_context(watched)
    return _Session(run, _CompiledStep(run, bar), store, writer, bar, must_stop, happened)


def _rolled_back(
    session: _Session, start: checkpoints.Restored, diverged: Diverged
) -> checkpoints.Restored:
    """The last checkpoint that was due, to go on from behind the data that was in the way.

    Raises:
      UserError: as many rollbacks as are allowed have been made.
    """
    run, writer = session.run, session.writer
    made, most = start.health.rollbacks, run.config.recovery.max_rollbacks
    if made >= most:
        after = f" after {made} rollbacks" if made else ""
        raise UserError(
            f"{diverged}; the run stops{after}, and the same command would stop there again. The "
            "last checkpoint is untouched: allow more with --config.recovery.max_rollbacks, or "
            "start from it in a new workdir with --config.init_from and a lower "
            "optimizer.learning_rate"
        )
    last = session.store.go_back(run.abstract_state()) or fresh_start(run)
    step, spent = last.progress.step, diverged.progress
    session.bar.say(
        f"{diverged}; back to step {step:,}, and on behind that data (rollback {made + 1} of "
        f"{most})"
    )
    if writer is not None:
        writer.rewind(step)
        writer.event(step, ROLLED_BACK, at_step=spent.step, because=str(diverged))
    return dataclasses.replace(
        last,
        progress=dataclasses.replace(last.progress, seconds=spent.seconds, dollars=spent.dollars),
        position=diverged.position,
        health=dataclasses.replace(last.health, rollbacks=made + 1),
    )


def _say(line: str) -> None:
    if hosts.is_first():
        print(line, flush=True)


def _train(
    session: _Session, start: checkpoints.Restored, train_batches: Iterator[Batch]
) -> Evaluation | None:
    """From `start` to the end.

    Raises:
      Diverged: at a loss that training cannot go on from.
    """
    run, bar, store = session.run, session.bar, session.store
    state, progress = start.state, start.progress
    if progress.step:
        bar.say(f"Going on from step {progress.step:,}.")
    if run.share(progress) >= 1.0:
        bar.say("This run is complete.")
        return _evaluate(run, state.params, progress, writer=None, bar=bar)
    config = run.config
    # Another stream than the one that the parameters were drawn from.
    dropout_key = jax.jit(
        lambda: jax.random.fold_in(jax.random.key(config.seed), 1),
        out_shardings=sharding.replicated(run.mesh),
    )()
    reporter = Reporter(run, session.writer, bar, start, flops.peak_flops())
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    kind = RESUMED if progress.step else STARTED
    reporter.event(progress, kind, devices=devices, **run.details())
    checkpoint_every = Duration.parse(config.checkpoint.every, key="checkpoint.every")
    evaluate_every = Duration.parse(config.eval.every, key="eval.every")
    epoch = run.sequences_per_epoch
    evaluation = None
    clock = Clock(run, progress, (run.duration, checkpoint_every, evaluate_every))
    for batch in reporter.timed(train_batches):
        before = progress
        rate = _learning_rate(run, before)
        arrays = sharding.place_batch(run.mesh, batch.arrays)
        rate_array = sharding.place_everywhere(run.mesh, np.float32(rate))
        begun = time.monotonic()
        program = session.step.compiled(state, arrays, rate_array, dropout_key)
        clock.leave_out(time.monotonic() - begun)
        reporter.leave_out(time.monotonic() - begun)
        session.happened()
        # Nothing crosses between host and device but by the explicit calls around this one.
        with jax.transfer_guard("disallow"):
            state, metrics = program(state, arrays, rate_array, dropout_key)
        seconds, dollars = clock.read()
        progress = Progress(
            step=before.step + 1,
            sequences=before.sequences + batch.sequences,
            tokens=before.tokens + batch.tokens,
            seconds=seconds,
            dollars=dollars,
        )
        reporter.dispatched(progress, batch, rate, metrics)
        finished = run.share(progress) >= 1.0
        stopped = session.must_stop(progress.step) and not finished
        # Evaluation first: one whose checkpoint is not saved yet is done again after a kill,
        # and one behind its checkpoint would be lost.
        if finished or evaluate_every.passed(before, progress, epoch):
            reporter.flush()
            begun = time.monotonic()
            evaluation = _evaluate(run, state.params, progress, writer=session.writer, bar=bar)
            reporter.leave_out(time.monotonic() - begun)
            session.happened()
        due = finished or checkpoint_every.passed(before, progress, epoch)
        if due or stopped:
            reporter.flush()  # a state whose loss is not finite is not saved
            saved = checkpoints.Restored(state, progress, batch.position, reporter.health, due)
            store.save(saved, run.record)
            reporter.event(progress, SAVING)
        if finished or stopped:
            store.wait()
        if finished:
            reporter.event(progress, FINISHED)
            break
        if stopped:
            reporter.event(progress, STOPPED)
            raise Interrupted(
                f"stopped after step {progress.step:,}, which is saved; the same command goes on"
            )
    return evaluation


def _learning_rate(run: Run, progress: Progress) -> float:
    optimizer = run.config.optimizer
    return learning_rate(
        run.share(progress),
        peak=optimizer.learning_rate,
        warmup=optimizer.warmup,
        final_fraction=optimizer.final_fraction,
    )


class _CompiledStep:
    """The training step, compiled once for each shape of batch; the state is donated."""

    def __init__(self, run: Run, bar: ProgressBar):
        self._step = run.jitted_step()
        self._bar = bar
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def compiled(self, state, arrays: dict[str, jax.Array], rate, dropout_key):
        """The program for batches of these shapes."""
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        if shapes not in self._programs:
            rows, length = arrays["tokens_BL"].shape
            self._bar.say(f"Compiling the training step for {rows} rows of {length} tokens.")
            program = self._step.lower(state, arrays, rate, dropout_key).compile()
            self._programs[shapes] = program
        return self._programs[shapes]


def _evaluate(
    run: Run, params, progress: Progress, *, writer: MetricsWriter | None, bar: ProgressBar
) -> Evaluation | None:
    """Evaluates, if anything is held out, and writes the row."""
    evaluation = run.evaluate(params)
    if evaluation is None:
        return None
    if writer is not None:
        writer.write({"step": progress.step, **evaluation.row()})
    bar.say(f"step {progress.step:,}: {evaluation}")
    return evaluation
