"""ordered_map: the same results in the same order, errors, and no process left behind."""

import os
import signal
import subprocess
import sys
import time

import pytest

from mosaicbert_jax.errors import UserError
from mosaicbert_jax.parallel import ordered_map
from tests.conftest import ROOT


def slow_square(item: int) -> int:
    time.sleep(0.02 * (item % 3))
    return item * item


def refuse_five(item: int) -> int:
    if item == 5:
        raise UserError("five")
    return item


def die(item: int) -> None:
    os._exit(9)


@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_in_order(workers):
    assert list(ordered_map(slow_square, iter(range(20)), workers)) == [i * i for i in range(20)]


def test_items_are_taken_a_few_ahead():
    taken = []
    results = ordered_map(slow_square, (taken.append(i) or i for i in range(1000)), 2)
    next(results)
    assert len(taken) < 10
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_at_its_place(workers):
    results = ordered_map(refuse_five, iter(range(100)), workers)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match="five"):
        next(results)


def test_a_worker_that_dies_is_told():
    with pytest.raises(UserError, match="worker process died"):
        list(ordered_map(die, range(3), 2))


def test_ctrl_c_never_reaches_a_worker_even_while_it_starts():
    assert list(ordered_map(interrupts_are_blocked, range(8), 2)) == [True] * 8
    assert not interrupts_are_blocked(0)


_PARENT = """
import os, time
from mosaicbert_jax.parallel import ordered_map
from tests.test_parallel import process_id
if __name__ == "__main__":
    results = ordered_map(process_id, range(100), 2)
    print(next(results), flush=True)
    time.sleep(60)
"""


def interrupts_are_blocked(item: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def process_id(item: int) -> int:
    return os.getpid()


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat") as file:  # a zombie has ended
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.skipif(not os.path.exists("/proc"), reason="processes are looked up in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 20
        while is_running(worker) and time.monotonic() < until:
            time.sleep(0.05)
    assert not is_running(worker)


UNGUARDED = """
import functools, operator
from mosaicbert_jax.parallel import ordered_map
large = functools.partial(operator.getitem, list(range(100_000)))
print(list(ordered_map(large, range(10), 2)))
"""


def test_a_script_without_a_guard_ends_with_a_message(tmp_path):
    """Each worker runs it again, which Python refuses; what a worker gets fills a pipe."""
    (tmp_path / "script.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")], cwd=ROOT, timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    # Not always the last line: Python's resource tracker may have its say about the workers after.
    (told,) = [line for line in done.stderr.splitlines() if "UserError: a worker process" in line]
    assert "`if __name__ == '__main__':`" in told
