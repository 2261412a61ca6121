"""Training, from a run to a trained model, whatever the run learns."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mosaicbert_jax import hosts
from mosaicbert_jax.data.pipeline import Batch, Position
from mosaicbert_jax.errors import Interrupted, UserError
from mosaicbert_jax.files import write_atomically
from mosaicbert_jax.storage import workdir
from mosaicbert_jax.training import checkpoints, flops, memory, sharding, supervision
from mosaicbert_jax.training.checkpoints import Checkpoints, Snapshot
from mosaicbert_jax.training.durations import Clock, Duration, Progress
from mosaicbert_jax.training.metrics import (
    EXTENDED,
    FINISHED,
    RESUMED,
    ROLLED_BACK,
    SAVING,
    STARTED,
    STOPPED,
    MetricsWriter,
    ProgressBar,
    Reporter,
)
from mosaicbert_jax.training.recovery import Diverged, Health
from mosaicbert_jax.training.run import Evaluation, Run
from mosaicbert_jax.training.step import TrainState


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a run is after a step.

    Attributes:
      before, progress: what was completed before the step and is now.
      position: of the data after the step's batch.
      finished: whether the run ends here.
      stopping: whether it was asked to stop here, before its end.
    """

    state: TrainState
    before: Progress
    progress: Progress
    position: Position
    finished: bool
    stopping: bool


Action = Callable[["Attempt", Point], None]


def train(
    run: Run, actions: Sequence[Action] | None = None, *, extend: bool = False
) -> Evaluation | None:
    """Trains from where the run's folder is to its end; returns the last evaluation.

    Args:
      actions: what to do after each step, in this order; by default ACTIONS.
      extend: whether a run that was saved with another duration, optimizer or evaluation resumes
        with the new ones. The learning rate continues as if the run had started with them.

    Raises:
      UserError: the folder is another run's, or the loss diverged more often than
        recovery.max_rollbacks allows.
      Interrupted: it was asked to stop, and has saved.
    """
    changed: list[str] = []
    with contextlib.ExitStack() as stack:

        def take_folder():
            stack.enter_context(workdir.locked(run.folder))
            nonlocal changed
            changed = workdir.claim(run.folder, run.record, run.tokenizer_files(), extend=extend)
            for name, text in run.files().items():
                write_atomically(run.folder / name, text)

        hosts.on_first(take_folder)
        stack.enter_context(jax.set_mesh(run.mesh))
        run = run.settled(_say)
        hosts.on_first(lambda: checkpoints.set_damaged_aside(run.folder, _say))
        kept = run.config.checkpoint
        store = Checkpoints(
            run.folder, keep=kept.keep, keep_stable=kept.get("keep_stable", 0), say=_say
        )
        stack.enter_context(store)
        start = store.restore(run.abstract_state()) or fresh_start(run)
        session = _open(run, start, store, stack)
        session.bar.say(run.describe(start.position))
        if changed:
            session.bar.say(f"extended: {'; '.join(changed)}")
            session.writer.event(start.progress.step, EXTENDED, changed="; ".join(changed))
        while True:
            try:
                with contextlib.closing(_Stream(run, start.position)) as stream:
                    return _advance(session, start, stream, actions or ACTIONS)
            except Diverged as raised:
                # Its frames hold the state; the next one needs the memory.
                diverged = raised.with_traceback(None)
            start = _roll_back(session, start, diverged)


@dataclasses.dataclass(frozen=True)
class Session:
    """What is open from the first step to the last.

    Attributes:
      writer: None in all processes but the one that writes.
      must_stop: see `supervision.stop_requests`.
      happened: see `supervision.watching`.
    """

    run: Run
    step: "_CompiledStep"
    store: Checkpoints
    writer: MetricsWriter | None
    bar: ProgressBar
    must_stop: Callable[[int], bool]
    happened: Callable[[], None]


def _open(run: Run, start: Snapshot, store: Checkpoints, stack: contextlib.ExitStack) -> Session:
    bar = ProgressBar(run.share(start.progress), show=hosts.is_first())
    stack.enter_context(contextlib.closing(bar))
    writer = None
    if hosts.is_first():
        writer = MetricsWriter(run.folder, run.config, step=start.progress.step, say=bar.say)
        stack.enter_context(writer)
    must_stop = stack.enter_context(supervision.stop_requests(bar.say))
    watched = supervision.watching(run.config.recovery, run.folder, bar.say)
    happened = stack.enter_context(watched)
    return Session(run, _CompiledStep(run, bar), store, writer, bar, must_stop, happened)


def fresh_start(run: Run) -> Snapshot:
    """The state of a run that has no checkpoint: initial parameters and optimizer."""
    abstract = run.abstract_state()
    everywhere = jax.tree.map(lambda x: x.sharding, abstract)
    params = run.initial_params(abstract.params)
    inherited = run.inherited(abstract)
    if inherited is None:
        init = jax.jit(run.optimizer.init, out_shardings=everywhere.optimizer_state)
        inherited = init(params), Position()
    optimizer_state, position = inherited
    step = jax.device_put(jnp.zeros((), jnp.int32), everywhere.step)
    average = None
    if abstract.average is not None:
        average = jax.tree.map(jnp.copy, params)  # both are donated to the first step
    return Snapshot(
        TrainState(params, optimizer_state, step, average), Progress(), position, Health()
    )


def _roll_back(session: Session, start: Snapshot, diverged: Diverged) -> Snapshot:
    """The last checkpoint that was due, set to skip the data that made the run diverge.

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
        f"{diverged}; rolling back to step {step:,} and skipping the data up to there (rollback "
        f"{made + 1} of {most})"
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


class Attempt:
    """Training from one snapshot, to the end or to a loss that diverges.

    Attributes:
      session: what is open.
      reporter: takes each step's metrics.
      evaluate_every, checkpoint_every: durations.
      evaluation: the last one.
    """

    def __init__(self, session: Session, start: Snapshot):
        run, config = session.run, session.run.config
        self.session = session
        self.reporter = Reporter(run, session.writer, session.bar, start, flops.peak_flops())
        self.checkpoint_every = Duration.parse(config.checkpoint.every, key="checkpoint.every")
        self.evaluate_every = Duration.parse(config.eval.every, key="eval.every")
        self.evaluation: Evaluation | None = None
        durations = (run.duration, self.checkpoint_every, self.evaluate_every)
        self._clock = Clock(start.progress, durations, config.train.price_per_gpu_hour)
        # Another stream than the one that the parameters were drawn from.
        self._dropout_key = jax.jit(
            lambda: jax.random.fold_in(jax.random.key(config.seed), 1),
            out_shardings=sharding.replicated(run.mesh),
        )()

    def is_due(self, every: Duration, point: Point) -> bool:
        """Whether a multiple of a duration was passed in this step; always at the end."""
        epoch = self.session.run.sequences_per_epoch
        return point.finished or every.passed(point.before, point.progress, epoch)

    def step(self, state: TrainState, before: Progress, batch: Batch) -> Point:
        """Dispatches one step; the state is donated."""
        session, run = self.session, self.session.run
        share = run.share(before)
        rate = run.schedule.rate(share)
        arrays = sharding.place_batch(run.mesh, run.arrays(batch, share))
        rate_array = sharding.place_everywhere(run.mesh, np.float32(rate))
        begun = time.monotonic()
        program = session.step.compiled(state, arrays, rate_array, self._dropout_key, *run.frozen)
        self._clock.exclude(time.monotonic() - begun)
        self.reporter.exclude(time.monotonic() - begun)
        session.happened()
        # Nothing crosses between host and device but by the explicit calls around this one.
        with jax.transfer_guard("disallow"):
            state, metrics = program(state, arrays, rate_array, self._dropout_key, *run.frozen)
        seconds, dollars = self._clock.read()
        progress = Progress(
            step=before.step + 1,
            sequences=before.sequences + batch.sequences,
            tokens=before.tokens + batch.tokens,
            seconds=seconds,
            dollars=dollars,
        )
        self.reporter.dispatched(progress, batch, rate, metrics)
        finished = run.share(progress) >= 1.0
        stopping = session.must_stop(progress.step) and not finished
        return Point(state, before, progress, batch.position, finished, stopping)


class _Stream:
    """The batches of a run, whose size may change with its progress.

    Args:
      position: of the data, from where they are read.
    """

    def __init__(self, run: Run, position: Position):
        self._run, self._position = run, position
        self._rows: int | None = None
        self._batches: Any = None

    def next(self, share: float) -> Batch:
        """The next batch, as large as it is at that share of the run."""
        rows = self._run.batch_rows(share)
        if self._batches is None or rows != self._rows:
            self.close()
            self._rows, self._batches = rows, self._run.batches(self._position, rows)
        batch = next(self._batches)
        self._position = batch.position
        return batch

    def close(self) -> None:
        """Ends what makes them ahead."""
        if self._batches is not None:
            self._batches.close()


def _advance(
    session: Session, start: Snapshot, stream: _Stream, actions: Sequence[Action]
) -> Evaluation | None:
    """From `start` to the end.

    Raises:
      Diverged: at a loss that training cannot resume from.
    """
    run, progress, state = session.run, start.progress, start.state
    if progress.step:
        session.bar.say(f"Resuming from step {progress.step:,}.")
    if run.share(progress) >= 1.0:
        session.bar.say("This run is complete.")
        return _evaluate(run, state.result, progress, writer=None, bar=session.bar)
    attempt = Attempt(session, start)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    kind = RESUMED if progress.step else STARTED
    attempt.reporter.event(progress, kind, devices=devices, **run.details())
    finished = False
    while not finished:
        with attempt.reporter.waiting():
            batch = stream.next(run.share(progress))
        point = attempt.step(state, progress, batch)
        state, progress, finished = point.state, point.progress, point.finished
        for action in actions:
            action(attempt, point)
    return attempt.evaluation


def evaluate_when_due(attempt: Attempt, point: Point) -> None:
    """Evaluates every eval.every and at the end."""
    session, reporter = attempt.session, attempt.reporter
    if not attempt.is_due(attempt.evaluate_every, point):
        return
    reporter.flush()
    begun = time.monotonic()
    attempt.evaluation = _evaluate(
        session.run, point.state.result, point.progress, writer=session.writer, bar=session.bar
    )
    reporter.exclude(time.monotonic() - begun)
    session.happened()


def save_when_due(attempt: Attempt, point: Point) -> None:
    """Starts saving every checkpoint.every, at the end, and where the run was asked to stop."""
    session, reporter = attempt.session, attempt.reporter
    due = attempt.is_due(attempt.checkpoint_every, point)
    if not due and not point.stopping:
        return
    reporter.flush()  # a state whose loss is not finite is not saved
    run = session.run
    stable = run.schedule.is_stable(run.share(point.progress))
    snapshot = Snapshot(point.state, point.progress, point.position, reporter.health, due, stable)
    session.store.save(snapshot, run.record)
    reporter.event(point.progress, SAVING)


def end_when_over(attempt: Attempt, point: Point) -> None:
    """Waits for the last save at the end, and where the run was asked to stop.

    Raises:
      Interrupted: it was asked to stop.
    """
    if not point.finished and not point.stopping:
        return
    attempt.session.store.wait()
    attempt.reporter.event(point.progress, FINISHED if point.finished else STOPPED)
    if point.stopping:
        raise Interrupted(
            f"stopped after step {point.progress.step:,}, which is saved; the same command resumes"
        )


# Evaluation first: one whose checkpoint is not saved yet is repeated after a kill, and one after
# its checkpoint would be lost.
ACTIONS: tuple[Action, ...] = (evaluate_when_due, save_when_due, end_when_over)


class _CompiledStep:
    """The training step, compiled once for each shape of batch; the state is donated."""

    def __init__(self, run: Run, bar: ProgressBar):
        self._step = run.train_step
        self._bar = bar
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def compiled(self, state, arrays: dict[str, jax.Array], *others: Any):
        """The program for batches of these shapes."""
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        if shapes not in self._programs:
            rows, length = arrays["tokens_BL"].shape
            self._bar.say(f"Compiling the training step for {rows} rows of {length} tokens.")
            program = self._step.lower(state, arrays, *others).compile()
            memory.check_host_holds(program, f"a training step of {rows} rows of {length} tokens")
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
