"""Pretraining, from a config and a folder to a trained model."""

import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from mosaicbert_jax.data.pipeline import Batch, Position, batches
from mosaicbert_jax.training import checkpoints, flops, sharding, workdir
from mosaicbert_jax.training.durations import Duration, Progress
from mosaicbert_jax.training.evaluation import Evaluation, evaluate
from mosaicbert_jax.training.host_memory import keep_freed_memory
from mosaicbert_jax.training.metrics import MetricsWriter, ProgressBar
from mosaicbert_jax.training.reporter import Reporter
from mosaicbert_jax.training.run import Run
from mosaicbert_jax.training.schedule import learning_rate
from mosaicbert_jax.training.start import starting_point
from mosaicbert_jax.training.step import evaluation_step, train_step


def pretrain(config: ConfigDict, folder: str | pathlib.Path) -> Evaluation | None:
    """Trains the run in `folder` from where it is to its end; returns its last evaluation.

    Raises:
      UserError: settings that cannot be, a folder that is another run's, or a loss that is not
        finite.
    """
    folder = pathlib.Path(folder)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    with contextlib.ExitStack() as stack:
        run = Run.prepare(config, folder)
        stack.enter_context(workdir.locked(folder))
        workdir.claim(folder, run.record, run.dataset.metadata)
        stack.enter_context(jax.set_mesh(run.mesh))
        store = checkpoints.Checkpoints(run.folder, keep=config.checkpoint.keep)
        stack.enter_context(store)
        start = starting_point(run, store)
        writer = MetricsWriter(run.folder, config, step=start.progress.step)
        stack.enter_context(writer)
        bar = ProgressBar(run.share(start.progress), show=jax.process_index() == 0)
        stack.enter_context(contextlib.closing(bar))
        train_batches = stack.enter_context(contextlib.closing(_batches(run, start.position)))
        return _train(run, start, train_batches, store, writer, bar)


def _train(
    run: Run,
    start: checkpoints.Restored,
    train_batches: Iterator[Batch],
    store: checkpoints.Checkpoints,
    writer: MetricsWriter,
    bar: ProgressBar,
) -> Evaluation | None:
    state, progress = start.state, start.progress
    bar.say(run.describe())
    if progress.step:
        bar.say(f"Going on from step {progress.step:,}.")
    if run.share(progress) >= 1.0:
        bar.say("This run is complete.")
        return _evaluate(run, state.params, progress, writer=None, bar=bar)
    config = run.config
    first = next(train_batches)
    # Another stream than the one that the parameters were drawn from.
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    dropout_key = jax.device_put(dropout_key, sharding.replicated(run.mesh))
    bar.say("Compiling the training step.")
    step = _compile(run, state, first, dropout_key)
    reporter = Reporter(run, writer, bar, progress, flops.peak_flops())
    checkpoint_every = Duration.parse(config.checkpoint.every, key="checkpoint.every")
    evaluate_every = Duration.parse(config.eval.every, key="eval.every")
    epoch = len(run.dataset)
    evaluation = None
    started = time.monotonic() - progress.seconds
    for batch in itertools.chain([first], reporter.timed(train_batches)):
        before = progress
        rate = _learning_rate(run, before)
        arrays = sharding.place_batch(run.mesh, batch.arrays)
        rate_array = jax.device_put(np.float32(rate), sharding.replicated(run.mesh))
        # Nothing crosses between host and device but by the explicit calls around this one.
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, arrays, rate_array, dropout_key)
        progress = Progress(
            step=before.step + 1,
            sequences=before.sequences + batch.sequences,
            tokens=before.tokens + batch.tokens,
            seconds=time.monotonic() - started,
        )
        reporter.dispatched(progress, batch, rate, metrics)
        finished = run.share(progress) >= 1.0
        # Evaluation first: one whose checkpoint is not saved yet is done again after a kill,
        # and one behind its checkpoint would be lost.
        if finished or evaluate_every.passed(before, progress, epoch):
            reporter.flush()
            begun = time.monotonic()
            evaluation = _evaluate(run, state.params, progress, writer=writer, bar=bar)
            reporter.leave_out(time.monotonic() - begun)
        if finished or checkpoint_every.passed(before, progress, epoch):
            reporter.flush()  # a state whose loss is not finite is not saved
            store.save(state, progress, batch.position, run.record)
        if finished:
            break
    return evaluation


def _batches(run: Run, position: Position) -> Iterator[Batch]:
    config = run.config
    return batches(
        run.dataset,
        position=position,
        workers=config.data.workers,
        rows_per_batch=run.shape.rows,
        masking_rate=config.data.masking_rate,
        **_stream_settings(config),
    )


def _stream_settings(config: ConfigDict) -> dict:
    return {
        "row_length": config.data.row_length,
        "packing": config.data.packing,
        "window_size": config.data.window_size,
        "seed": config.seed,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _learning_rate(run: Run, progress: Progress) -> float:
    optimizer = run.config.optimizer
    return learning_rate(
        run.share(progress),
        peak=optimizer.learning_rate,
        warmup=optimizer.warmup,
        final_fraction=optimizer.final_fraction,
    )


def _compile(run: Run, state, batch: Batch, dropout_key):
    """The training step, compiled for the shapes of the first batch; the state is donated."""
    step = functools.partial(
        train_step,
        graph=run.graph,
        optimizer=run.optimizer,
        microbatches=run.shape.microbatches,
        row_shards=sharding.row_shards(run.mesh),
    )
    arrays = sharding.place_batch(run.mesh, batch.arrays)
    rate = jax.device_put(np.float32(0.0), sharding.replicated(run.mesh))
    return jax.jit(step, donate_argnums=0).lower(state, arrays, rate, dropout_key).compile()


@functools.lru_cache(maxsize=1)
def _evaluation_step(graph, row_shards: int):
    return jax.jit(functools.partial(evaluation_step, graph=graph, row_shards=row_shards))


def _evaluate(
    run: Run, params, progress: Progress, *, writer: MetricsWriter | None, bar: ProgressBar
) -> Evaluation | None:
    """Evaluates on the validation split, if there is one, and writes the row."""
    if run.validation is None:
        return None
    shards = sharding.row_shards(run.mesh)
    # A thread's: workers would take longer to start than many an evaluation lasts.
    stream = batches(
        run.validation,
        rows_per_batch=run.shape.rows // run.shape.microbatches,
        masking_rate=run.config.eval.masking_rate,
        epochs=1,
        **_stream_settings(run.config),
    )
    with contextlib.closing(stream):
        evaluation = evaluate(
            functools.partial(_evaluation_step(run.graph, shards), params),
            stream,
            run.mesh,
            vocab_size=run.model.vocab_size,
            max_tokens=run.config.eval.max_tokens,
        )
    if writer is not None:
        writer.write({"step": progress.step, **evaluation.row()})
    bar.say(f"step {progress.step:,}: {evaluation}")
    return evaluation
