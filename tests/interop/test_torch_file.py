"""Files of torch.save, read without torch: what it wrote, what it never would, and what attacks."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from mosaicbert_jax import UserError
from mosaicbert_jax.interop.torch_file import read_torch_file

try:
    import torch
except ModuleNotFoundError:
    torch = None
needs_torch = pytest.mark.skipif(torch is None, reason="PyTorch is not installed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pytorch_model.bin"


@needs_torch
def test_every_dtype_stride_and_shared_storage_as_torch_wrote_it(path):
    base = torch.randn(6, 8)
    state = collections.OrderedDict(
        plain=base, transposed=base.T, strided=base[1::2, 3:], shared=base[2],
        bf16=torch.randn(3, 5).bfloat16(), fp16=torch.randn(7).half(), fp64=torch.randn(2).double(),
        int64=torch.arange(4), int32=torch.arange(4).int(), int16=torch.arange(4).short(),
        int8=torch.arange(4).char(), uint8=torch.arange(4).byte(), truth=torch.tensor([True]),
        scalar=torch.tensor(3.5), empty=torch.zeros(0, 4), parameter=torch.nn.Parameter(base[:2]),
    )  # fmt: skip
    torch.save(state, path)
    found = read_torch_file(path)
    assert list(found) == list(state)
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert str(found[name].dtype) == str(tensor.dtype).removeprefix("torch."), name
        expected = tensor.detach().double().numpy()
        np.testing.assert_array_equal(found[name].astype(np.float64), expected, err_msg=name)
    assert np.shares_memory(found["plain"], found["shared"])


@needs_torch
def test_the_state_dict_of_a_module_comes_with_its_metadata(path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), path)  # an OrderedDict with an attribute
    found = read_torch_file(path)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor)


@needs_torch
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: {"model": {"a": torch.zeros(1)}}, "'model' is not a tensor"),
        (lambda: [torch.zeros(1)], "holds no state dict, but list"),
        (lambda: {"a": torch.zeros(1), 3: torch.zeros(1)}, "3 is not a tensor"),
        (lambda: torch.nn.Linear(2, 2), r"names torch\.nn\.modules\.linear\.Linear"),
        (lambda: {"a": torch.zeros(2).to_sparse()}, r"names torch\._utils\._rebuild_sparse_tensor"),
        (lambda: {"a": torch.zeros(2).expand(3, 2)}, "reaches beyond its storage"),
    ],
)
def test_what_is_no_flat_state_dict(path, content, reason):
    torch.save(content(), path)
    with pytest.raises(UserError, match=reason):
        read_torch_file(path)


@needs_torch
def test_the_format_before_zip_archives(path):
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"since 1\.6.*weights_only=True"):
        read_torch_file(path)


@needs_torch
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_short(path, share):
    torch.save({"a": torch.randn(1000)}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(path)


@needs_torch
def test_a_flipped_bit_in_the_weights(path):
    torch.save({"a": torch.full((1000,), 1.5)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(1.5).tobytes() * 8) + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(path)


# From here on files are written by hand, so that they are tested where there is no torch.


class Global:
    """Something that a pickle names."""

    def __init__(self, name):
        self.module, self.name = name.rsplit(".", 1)


class Call:
    """Something that a pickle calls."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class Build:
    """A state that a pickle sets on something."""

    def __init__(self, target, state):
        self.target, self.state = target, state


class Storage:
    def __init__(self, kind="FloatStorage", key="0", elements=6):
        self.pid = ("storage", Global(f"torch.{kind}"), key, "cpu", elements)


class HandPickler(pickle._Pickler):  # in Python, since it writes names of what isn't there
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        elif isinstance(obj, Build):
            self.save(obj.target)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def write(path, content, *, compression=zipfile.ZIP_STORED, **files):
    buffer = io.BytesIO()
    HandPickler(buffer, protocol=2).dump(content)
    files = {"data.pkl": buffer.getvalue(), "data/0": np.arange(6, dtype=np.float32), **files}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(f"archive/{name}", bytes(data))


def tensor(storage=None, offset=0, shape=(2, 3), stride=(3, 1)):
    storage = Storage() if storage is None else storage
    rebuild = Global("torch._utils._rebuild_tensor_v2")
    return Call(rebuild, storage, offset, shape, stride, False, Call(ORDERED))


ORDERED = Global("collections.OrderedDict")


def test_by_hand_as_torch_would(path):
    write(path, {"a": tensor()})
    np.testing.assert_array_equal(read_torch_file(path)["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "function",
    ["os.system", "posix.system", "builtins.eval", "builtins.getattr", "subprocess.Popen",
     "torch.load", "numpy.load", "torch._utils._rebuild_sparse_tensor", "collections.deque"],
)  # fmt: skip
def test_a_pickle_that_runs_code_runs_nothing(path, tmp_path, function, monkeypatch):
    ran = tmp_path / "ran"
    monkeypatch.setattr(os, "system", lambda *_: ran.touch())
    write(path, {"a": tensor(), "b": Call(Global(function), f"touch {ran}")})
    with pytest.raises(UserError, match=f"names {function}, .*it was not called"):
        read_torch_file(path)
    assert not ran.exists()


def test_nothing_that_the_pickle_is_given_can_be_changed_by_it(path):
    """BUILD sets attributes, or calls __setstate__, of what the pickle holds."""
    rebuild = Global("torch._utils._rebuild_tensor_v2")
    for target in (rebuild, ORDERED, Global("torch.FloatStorage")):
        for state in ({"name": "other", "__call__": 1}, (None, {"dtype": "O", "x": 1}), ["other"]):
            write(path, {"a": Build(target, state)})
            with pytest.raises(UserError, match=r"data\.pkl cannot be read"):
                read_torch_file(path)
    assert not hasattr(collections.OrderedDict, "x")


@pytest.mark.parametrize(
    "broken",
    [
        tensor(offset=1), tensor(shape=(2, 4)), tensor(stride=(4, 1)), tensor(stride=(3, 2)),
        tensor(shape=(10**12,), stride=(0,)), tensor(shape=(-2, 3)), tensor(offset=-1),
        tensor(stride=(-3, 1)), tensor(shape=(2,)), tensor(shape="ab"), tensor(offset=True),
        tensor(storage="0"), tensor(Storage(elements=7)), tensor(Storage(kind="LongStorage")),
        tensor(Storage(key="../0")), tensor(Storage(key="1")), tensor(Storage(key=0)),
        Call(Global("torch._utils._rebuild_parameter"), "x", True, None), Global("os.system"),
    ],
)  # fmt: skip
def test_tensors_that_reach_beyond_what_is_there(path, broken):
    write(path, {"a": broken})
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        read_torch_file(path)


def test_archives_that_torch_does_not_write(path):
    write(path, {"a": tensor()}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)
    write(path, {"a": tensor()}, byteorder=b"big")
    with pytest.raises(UserError, match="big-endian"):
        read_torch_file(path)
    write(path, {}, **{"data.pkl": b"\x80\x02garbage"})
    with pytest.raises(UserError, match=r"data\.pkl cannot be read"):
        read_torch_file(path)
    # Dictionary, to be remembered as the object with number 2 147 483 647: 32 GB of table.
    write(path, {}, **{"data.pkl": b"\x80\x02}r\xff\xff\xff\x7f."})
    with pytest.raises(UserError, match="is number 2147483647 of those"):
        read_torch_file(path)
    write(path, {}, **{"sub/data.pkl": b""})
    with pytest.raises(UserError, match=r"2 data\.pkl"):
        read_torch_file(path)
    path.write_bytes(b"version https://git-lfs")
    with pytest.raises(UserError, match="damaged, or not in the format"):
        read_torch_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_torch_file(path.parent / "nowhere.bin")
