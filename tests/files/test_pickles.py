"""Files of torch.save: read as torch reads them, within their own size, with their checksums; nothing is run."""

import io
import pickle
import resource
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch

from lenscope.contents import same
from lenscope.errors import LenscopeError
from lenscope.files.pickles import read_pickle


def saved(value, path, **options):
    torch.save(value, path, **options)
    return path


def state():
    base = torch.arange(24.0).reshape(4, 6)
    return OrderedDict(
        {
            "w": base.T,
            "part": base[1:3, ::2],
            "shared": base[0],
            "half": torch.ones(3, dtype=torch.float16),
            "bfloat": torch.ones(2, 2, dtype=torch.bfloat16),
            "number": torch.tensor(3.5),
            "empty": torch.zeros(0, 4),
            "ids": torch.arange(3),
            "flags": torch.tensor([True, False]),
            "complex": torch.ones(2, dtype=torch.complex64),
            "eight": torch.ones(4).to(torch.float8_e4m3fn),
            "weight": torch.nn.Parameter(torch.ones(2)),
            "more": {"a": [1, -5, 2.5, None, True, "é", 10**15], 3: (1, 2), "size": torch.Size([2, 3])},
        }
    )


@pytest.mark.parametrize("old", [False, True])
def test_tensors_and_plain_values_are_read_as_torch_reads_them(tmp_path, old):
    value = state()
    if old:
        del value["eight"]
    path = saved(value, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    wanted, found = torch.load(path, weights_only=True), read_pickle(path)
    assert list(found) == list(wanted)
    for name, one in wanted.items():
        if isinstance(one, torch.Tensor):
            assert found[name].dtype == one.dtype
            assert found[name].shape == one.shape
            assert found[name].float().equal(one.detach().float()) or one.is_complex()
        else:
            assert same(found[name], one)
    assert found["complex"].equal(wanted["complex"])


def test_the_state_of_a_module_is_read(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    found = read_pickle(saved(module.state_dict(), tmp_path / "a.pt"))
    assert all(found[k].equal(v) for k, v in module.state_dict().items())


class Runs:
    def __reduce__(self):
        return print, ("ran",)


class Allocates:
    def __reduce__(self):
        return bytearray, (10**10,)


@pytest.mark.parametrize("value", [Runs(), Allocates(), {"a": {1, 2}}, torch.nn.Linear(1, 1), bytearray(8), 1j])
@pytest.mark.parametrize("old", [False, True])
def test_what_is_more_than_tensors_is_not_loaded(tmp_path, capsys, value, old):
    path = saved({"a": value}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(LenscopeError, match="could run code; it was not loaded"):
        read_pickle(path)
    assert capsys.readouterr().out == ""


def test_tensors_that_are_not_dense_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {
            "sparse": torch.eye(2).to_sparse(),
            "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "meta": torch.ones(2, device="meta"),
        }
        for kind, tensor in kinds.items():
            path = saved({"w": tensor}, tmp_path / "a.pt")
            with pytest.raises(LenscopeError, match=f"holds a {kind} tensor|could run code"):
                read_pickle(path)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """A zip with its entries changed, checksums and all."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, change(name, content))
    return path


def test_a_wrong_checksum_is_seen(tmp_path):
    path = saved({"w": torch.arange(1000.0)}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0)[500:504].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)  # does not see it
    with pytest.raises(LenscopeError, match=r"is damaged.*CRC"):
        read_pickle(path)


def test_every_entry_is_checked(tmp_path):
    path = saved({"w": torch.ones(2)}, tmp_path / "a.pt")
    content = path.read_bytes()
    at = content.index(b"3\n")  # the entry that says the version, which nothing is read from
    path.write_bytes(content[:at] + b"2\n" + content[at + 2 :])
    with pytest.raises(LenscopeError, match="is damaged"):
        read_pickle(path)


@pytest.fixture
def little_memory():
    """At most 1 GB more than now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


HUGE = (10**10).to_bytes(8, "little")
BOMBS = {
    "bytearray": program(b"c__builtin__\nbytearray\n", b"\x8a\x08" + HUGE, b"\x85R"),
    "length of a string": program(b"X\xff\xff\xff\x7f"),
    "length of a byte array": program(b"\x96" + HUGE),
    "frame": program(b"\x95" + HUGE + b"N"),
    "list twice": program(b"]q\x00(h\x00h\x00e"),
    "number": program(b"I" + b"9" * 100_000 + b"\n"),
    "deep": program(b"(" * 20_000 + b"t" * 19_999),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("zipped", [True, False])
def test_small_pickles_that_want_much_memory(tmp_path, little_memory, name, zipped):
    path = tmp_path / "a.pt"
    if zipped:
        rewritten(saved({}, path), lambda entry, content: BOMBS[name] if entry.endswith("data.pkl") else content)
    else:
        path.write_bytes(BOMBS[name])
    with pytest.raises(LenscopeError) as told:
        read_pickle(path)
    assert str(told.value).isprintable()


def test_a_far_place_in_the_memo_takes_no_room(tmp_path, little_memory):
    path = saved({}, tmp_path / "a.pt")
    far = program(b"Nr\xff\xff\xff\xff")
    assert read_pickle(rewritten(path, lambda name, raw: far if name.endswith("data.pkl") else raw)) is None


def test_entries_that_unpack_to_much_more_than_the_file(tmp_path, little_memory):
    path = saved({"w": torch.zeros(80_000_000, dtype=torch.uint8)}, tmp_path / "a.pt")
    small = rewritten(path, lambda _, content: content, zipfile.ZIP_DEFLATED)
    assert read_pickle(small)["w"].sum() == 0
    rewritten(path, lambda name, content: content * 4 if "/data/" in name else content, zipfile.ZIP_DEFLATED)
    with pytest.raises(LenscopeError, match=r"say that they hold 320,000,\d+ bytes"):
        read_pickle(path)


@pytest.mark.parametrize("old", [False, True])
def test_storages_and_tensors_that_are_larger_than_what_is_there(tmp_path, little_memory, old):
    """torch.load reads past the end of the one, or makes the other."""
    wide = torch.arange(4.0).as_strided((2, 2), (1, 1))
    for change in (
        lambda raw: raw.replace(b"K\x04", b"J\xff\xff\xff\x7f"),  # of the storage
        lambda raw: raw.replace(b"K\x02K\x02\x86", b"J\xff\xff\xff\x7fK\x02\x86"),  # of the tensor
    ):
        path = saved({"w": wide}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        if old:
            path.write_bytes(change(path.read_bytes()))
        else:
            rewritten(path, lambda name, raw, change=change: change(raw) if name.endswith("data.pkl") else raw)
        with pytest.raises(LenscopeError, match="is damaged"):
            read_pickle(path)


def test_files_that_are_none(tmp_path):
    plain = io.BytesIO()
    pickle.dump({"a": 1}, plain, 2)
    for content in (b"", b"PK\x03\x04", b"\x80", plain.getvalue(), b"x" * 100):
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(LenscopeError, match=r"is damaged|could run code"):
            read_pickle(tmp_path / "a.pt")
