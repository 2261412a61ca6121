"""Reads weights from a file of torch.save, without torch and without calling what the file names.

Such a file is a zip archive with a pickle, which can name any function of any module for its reader
to call, and beside it the bytes of the tensors. This reader calls collections.OrderedDict and, in
place of the two functions of torch that rebuild a tensor, our own. Any other name is an error.
"""

import collections
import io
import math
import pathlib
import pickle
import pickletools
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mosaicbert_jax.errors import UserError

_STORAGE_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def read_torch_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict that torch.save wrote, by name.

    Those that shared memory share it here too; strides are kept.

    Raises:
      UserError: no such file, not a zip archive (PyTorch before 1.6), damaged, compressed, with
        anything else in it than a flat dict of tensors, or asking for anything to be called.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _state_dict(_Archive(path, archive))
    except (zipfile.BadZipFile, RuntimeError) as error:  # the second of one that is encrypted
        raise UserError(
            f"{path}: damaged, or not in the format that PyTorch writes since 1.6 ({error}); a "
            "file of an older one is converted by a PyTorch of today with "
            "torch.save(torch.load(path, weights_only=True), path)"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


class _Archive:
    """The parts of the zip archive, all in one folder of any name."""

    def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
        self.path = path
        self._archive = archive
        self._names = set(archive.namelist())
        found = [name for name in self._names if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise UserError(f"{path}: not a file of torch.save, it holds {len(found)} data.pkl")
        self._folder = found[0].removesuffix("data.pkl")
        if "byteorder" in self and self.read("byteorder").strip() != b"little":
            raise UserError(f"{path}: written by a big-endian machine, which is not supported")

    def __contains__(self, name: str) -> bool:
        return self._folder + name in self._names

    def read(self, name: str) -> bytes:
        if name not in self:
            raise UserError(f"{self.path}: damaged, {self._folder}{name} is not in it")
        info = self._archive.getinfo(self._folder + name)
        # torch.save never compresses; so no more memory is asked for than the file is long.
        if info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self.path}: {info.filename} is compressed; torch.save never does")
        return self._archive.read(info)


# Named tuples, because of what a pickle can do to an object that it was given: set attributes,
# where there is a __dict__, a __setattr__ or a __setstate__, of which these have none.
class _StorageKind(NamedTuple):
    """What a class such as torch.FloatStorage stands for in the pickle."""

    dtype: np.dtype


class _Rebuild(NamedTuple):
    """What the pickle may call in place of a function of torch."""

    name: str

    def __call__(self, *arguments: Any) -> np.ndarray:
        if self.name == "_rebuild_parameter":
            tensor, *_ = arguments
            if not isinstance(tensor, np.ndarray):
                raise pickle.UnpicklingError("a parameter that is no tensor")
            return tensor
        storage, offset, shape, stride, *_ = arguments
        return _strided(storage, offset, tuple(shape), tuple(stride))


def _strided(
    storage: np.ndarray, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray:
    """A view of `shape` into a flat storage; offset and strides count elements."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, np.ndarray) or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor without storage, or with another number of strides")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise pickle.UnpicklingError(f"a tensor with the sizes {numbers}")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    # As many elements as the storage at most: a stride of 0 could ask for any number.
    if elements and (last >= storage.size or elements > storage.size):
        raise pickle.UnpicklingError(f"a tensor of {shape} reaches beyond its storage")
    bytes_apart = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(
        storage[offset:] if elements else storage[:0], shape, bytes_apart, writeable=False
    )


class _Unpickler(pickle.Unpickler):
    """Admits what a state dict is made of. Every lookup and every storage goes through here."""

    def __init__(self, archive: _Archive):
        data = archive.read("data.pkl")
        for opcode, argument, _ in pickletools.genops(data):
            # The library would make its table of remembered objects as long as the number says.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > len(data):
                raise pickle.UnpicklingError(f"an object is number {argument} of those before it")
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._archive = archive
        self._storages: dict[tuple, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch", _ if name in _STORAGE_DTYPES:
                return _StorageKind(_STORAGE_DTYPES[name])
            case "torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter":
                return _Rebuild(name)
        raise UserError(
            f"{self._archive.path}: names {module}.{name}, which weights do not need; it was "
            "not called. Is it a whole training checkpoint? Save its state dict alone"
        )

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", _StorageKind() as kind, str() as key, _, int() as elements):
                if pid[1:3] not in self._storages:
                    self._storages[pid[1:3]] = self._read_storage(kind.dtype, key)
                storage = self._storages[pid[1:3]]
                if storage.size == elements:
                    return storage
        raise pickle.UnpicklingError(f"a storage that is not there as it is described: {pid!r}")

    def _read_storage(self, dtype: np.dtype, key: str) -> np.ndarray:
        data = self._archive.read(f"data/{key}")
        if len(data) % dtype.itemsize:
            raise pickle.UnpicklingError(f"data/{key} does not hold numbers of {dtype}")
        return np.frombuffer(data, dtype)


def _state_dict(archive: _Archive) -> dict[str, np.ndarray]:
    try:
        found = _Unpickler(archive).load()
    except (UserError, zipfile.BadZipFile):
        raise
    except Exception as error:  # bytes that are no pickle raise whatever they come upon
        raise UserError(f"{archive.path}: its data.pkl cannot be read ({error})") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{archive.path}: holds no state dict, but {type(found).__name__}")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
            raise UserError(
                f"{archive.path}: {name!r} is not a tensor; only a flat state dict can be read, "
                "save model.state_dict() alone"
            )
    return dict(found)
