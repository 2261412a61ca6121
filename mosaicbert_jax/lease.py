"""A lease on a folder in a bucket, by which two processes don't write there at once."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from mosaicbert_jax.buckets import BucketPath
from mosaicbert_jax.errors import UserError

LEASE_FILE = ".lease"
RENEW_SECONDS = 15.0
EXPIRES_SECONDS = 60.0  # without being renewed
_POLL_SECONDS = 2.0
_SETTLE_SECONDS = 2.0  # longer than a check and a write that follows it


class LeaseLostError(UserError):
    """Another process has taken the folder."""


@contextlib.contextmanager
def held(folder: BucketPath, on_loss: Callable[[str], None]) -> Iterator["Lease"]:
    """Holds a lease while the block runs; a thread renews it.

    Args:
      on_loss: is called, in that thread, with a line that says who has taken it, if somebody has.

    Raises:
      UserError: another process has it.
      OSError: the bucket can't be reached.
    """
    lease = Lease(folder)
    lease.take()
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                lease.renew()
            except LeaseLostError as error:
                on_loss(str(error))
                return
            except OSError:  # whoever writes there next tells; it is tried again
                continue

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):  # it expires
            lease.release()


class Lease:
    """Held on a folder from `take` to `release`; to be renewed every RENEW_SECONDS, see `held`.

    It is a file that says who holds it and is rewritten at each renewal. No clock but that of the
    reader matters: a lease that doesn't change for EXPIRES_SECONDS is that of a dead process.

    Args:
      folder: which is held.
    """

    def __init__(self, folder: BucketPath):
        self._folder, self._path = folder, folder / LEASE_FILE
        self._id = uuid.uuid4().hex
        self._renewed = 0

    def take(self) -> None:
        """Takes the lease; waits for EXPIRES_SECONDS if a process may be dead that has it.

        Raises:
          UserError: another process has it.
          OSError: the bucket can't be reached.
        """
        told = False
        seen, since = None, time.monotonic()
        while True:
            found = self._read()  # first, as not all servers know conditional writes
            if found is None:
                with contextlib.suppress(FileExistsError):
                    self._write(new=True)
                    break
                continue
            if found != seen:
                if seen is not None:
                    raise UserError(
                        f"{self._folder} is in use: {_holder(found)} trains there, and renewed its "
                        "lease just now"
                    )
                seen, since = found, time.monotonic()
            if _is_dead(found) or time.monotonic() - since > EXPIRES_SECONDS:
                self._path.unlink(missing_ok=True)
                continue
            if not told:
                told = True
                print(
                    f"{self._folder} was last used by {_holder(found)}; waiting for up to "
                    f"{EXPIRES_SECONDS:.0f} s to see whether it still is",
                    file=sys.stderr,
                )
            time.sleep(_POLL_SECONDS)
        if seen is not None:  # others may have waited for it too
            time.sleep(_SETTLE_SECONDS)
        self.check()

    def check(self) -> None:
        """Raises LeaseLostError if another process has it; one that was deleted is renewed."""
        found = self._read()
        if found is None:
            with contextlib.suppress(FileExistsError):
                self._write(new=True)
            found = self._read()
        if found is None or found["id"] != self._id:
            holder = "another process" if found is None else _holder(found)
            raise LeaseLostError(f"{self._folder} was taken by {holder}, which uses it now")

    def renew(self) -> None:
        """Shows that this process is alive.

        Raises:
          LeaseLostError: another process has taken it.
        """
        self.check()
        self._renewed += 1
        self._write()

    def release(self) -> None:
        """Lets others have it."""
        with contextlib.suppress(LeaseLostError):
            self.check()
            self._path.unlink(missing_ok=True)

    def _write(self, *, new: bool = False) -> None:
        record = {
            "id": self._id,
            "renewed": self._renewed,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "boot": _boot(),
        }
        self._path.write_bytes(json.dumps(record).encode(), new=new)

    def _read(self) -> dict | None:
        try:
            found = json.loads(self._path.read_bytes())
            return found if isinstance(found, dict) and "id" in found else {"id": None}
        except FileNotFoundError:
            return None
        except ValueError:
            return {"id": None}


def _holder(record: dict) -> str:
    return f"process {record.get('process')} on {record.get('host')}"


def _is_dead(record: dict) -> bool:
    """Whether it was a process of this machine that is no more."""
    if not _boot() or record.get("boot") != _boot():
        return False
    try:
        os.kill(int(record["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError):
        return False
    return False


def _boot() -> str:
    """What tells one start of one machine from all others; "" where there is no such thing.

    Containers on one machine share it, and number their processes alike: their host's name is
    added.
    """
    try:
        found = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{found} {socket.gethostname()}"
    except OSError:
        return ""
