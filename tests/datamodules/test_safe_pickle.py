"""Pickles of arrays: what Python and NumPy write is read exactly; what a pickle may carry besides is refused, unrun."""

import gzip
import io
import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from datamodules.errors import InputError
from datamodules.safe_pickle import load, load_dict

HERE = Path("cues.pickle")
RUN = []


def read(content: bytes):
    return load(content, HERE)


ARRAYS = npst.arrays(
    npst.integer_dtypes(endianness="?") | npst.floating_dtypes(sizes=(16, 32, 64), endianness="?") | st.just(np.bool_),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=60, deadline=None)
@given(ARRAYS, st.sampled_from([2, 3, 4]), st.booleans())
def test_arrays_come_back_as_they_were(array, protocol, fortran):
    array = np.asfortranarray(array) if fortran else array
    found = read(pickle.dumps({"a": array, "b": [array, (1, "x")]}, protocol))
    for each in (found["a"], found["b"][0]):
        np.testing.assert_array_equal(each, array)
        assert each.dtype == array.dtype.newbyteorder("=")
        assert not each.flags.writeable
    assert found["b"][1] == (1, "x")


@pytest.mark.parametrize("protocol", range(5))
def test_plain_values(protocol):
    value = {"a": None, "b": [True, False, 1, -5, 2**50, 1.5, "äö"], 7: (), "c": ((), [], {}, (1, 2, 3, 4))}
    assert read(pickle.dumps(value, protocol)) == value
    assert read(pickle.dumps({"n": np.float32(2.5), "i": np.int64(3)}, protocol)) == {"n": 2.5, "i": 3}


class Call:
    """What a pickle may carry: a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def ran(*arguments):
    RUN.append(arguments)


NAMES = {
    "os.system": b"cos\nsystem\n(S'touch ran'\ntR.",
    "builtins.eval": b"c__builtin__\neval\n(S'RUN.append(1)'\ntR.".replace(b"__builtin__", b"builtins"),
    "numpy.core.multiarray.fromfile": b"cnumpy.core.multiarray\nfromfile\n(S'/dev/zero'\ntR.",
    "numpy.load": b"cnumpy\nload\n(S'x.npy'\ntR.",
    "numpy.dtype.__class__": b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93.",
    "functools.reduce": b"cfunctools\nreduce\n(cos\nsystem\n]S'touch ran'\natR.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n(cnumpy\ndtype\nNNtR.",
    "numpy.core.multiarray._reconstruct.__globals__": b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x18"
    b"_reconstruct.__globals__\x93.",
    "datamodules.safe_pickle.load_dict": b"cdatamodules.safe_pickle\nload_dict\n(S'/dev/zero'\ntR.",
    "torch.load": b"ctorch\nload\n(S'x.pt'\ntR.",
}


@pytest.mark.parametrize("name", NAMES)
def test_no_other_name_is_known(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"names {name}, .*nothing of it was run") as caught:
        read(NAMES[name])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", range(5))
def test_nothing_runs_wherever_it_hides(protocol):
    hidden = [Call(ran), {"a": Call(ran, 1)}, [(Call(ran),)], {"a": np.array([Call(ran)], object)}, np.array(Call(ran))]
    for value in hidden:
        with pytest.raises(InputError, match="nothing of it was run"):
            read(pickle.dumps(value, protocol))
    assert not RUN


# An array as Python 2 writes it: shape, type, order in memory, contents
SHELL = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
FLOATS = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
OBJECTS = FLOATS.replace(b"f8", b"O8").replace(b"<", b"|")
EIGHT = b"U\x08" + bytes(8)


def array(shape: bytes, dtype: bytes = FLOATS, content: bytes = EIGHT, shell: bytes = SHELL) -> bytes:
    return b"\x80\x02" + shell + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb."


def test_the_hand_made_array_is_one():
    np.testing.assert_array_equal(read(array(b"(K\x01t")), [0.0])


HOSTILE = {
    "a shape far beyond the bytes": (
        array(b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft"),
        "not a pickle of arrays, or damaged",
    ),
    "a shape of a billion digits": (array(b"(\x8a\x10" + b"\x7f" * 16 + b"t"), "not a pickle of arrays, or damaged"),
    "a negative side": (array(b"(J\xff\xff\xff\xfft"), "not a pickle of arrays, or damaged"),
    "a shape that is no tuple": (array(b"]"), "not a pickle of arrays, or damaged"),
    "sides that are not integers": (array(b"(G" + b"\x3f\xf0" + bytes(6) + b"t"), "not a pickle of arrays, or damaged"),
    "fewer bytes": (array(b"(K\x02t"), "not a pickle of arrays, or damaged"),
    "contents that are none": (array(b"(K\x01t", content=b"N"), "not a pickle of arrays, or damaged"),
    "objects": (array(b"(K\x01t", OBJECTS, b"]" + EIGHT + b"a"), "array of objects"),
    "objects from bytes": (array(b"(K\x01t", OBJECTS), "array of objects"),
    "objects without a shell's shape": (array(b"(K\x02t", OBJECTS, b"](NNe"), "array of objects"),
    "texts": (array(b"(K\x01t", FLOATS.replace(b"f8", b"S8")), "other than numbers"),
    "a type with fields": (array(b"(K\x01t", FLOATS.replace(b"U\x02f8", b"U\x05f8,O8")), "other than numbers"),
    "an unknown order": (array(b"(K\x01t", FLOATS.replace(b"<", b"O")), "not a pickle of arrays, or damaged"),
    "attributes set on a class": (b"cnumpy\ndtype\n}U\x01aNsb.", "not a pickle of arrays, or damaged"),
    "a text called": (b"S'os.system'\n(S'x'\ntR.", "not a pickle of arrays, or damaged"),
    "bytes of a size": (b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.", "not a pickle of arrays, or damaged"),
    "an object's class": (b"(cnumpy\ndtype\no.", "uses OBJ"),
    "an instance": (b"(S'x'\nios\nsystem\n.", "uses INST"),
    "a registered extension": (b"\x82\x01.", "uses EXT1"),
    "a persistent id": (b"P/etc/passwd\n.", "uses PERSID"),
    "arrays as keys": (b"}" + array(b"(K\x01t")[2:-1] + b"Ns.", "not a pickle of arrays, or damaged"),
    "a memo never written": (b"h\x05.", "not a pickle of arrays, or damaged"),
    "a mark never set": (b"t.", "not a pickle of arrays, or damaged"),
    "items of nothing": (b"(K\x01K\x02u.", "not a pickle of arrays, or damaged"),
    "keys without values": (b"}(K\x01u.", "not a pickle of arrays, or damaged"),
    "a value before the mark taken": (b"K\x01(\x85.", "not a pickle of arrays, or damaged"),
    "nothing": (b"", "not a pickle of arrays, or damaged"),
    "only a stop": (b".", "not a pickle of arrays, or damaged"),
    "no opcode": (b"\xff\xfe", "not a pickle of arrays, or damaged"),
    "not a name": (b"\x80\x04NN\x93.", "not a pickle of arrays, or damaged"),
    "a name without a module": (b"\x80\x04\x8c\x01a\x93.", "not a pickle of arrays, or damaged"),
    "a list as a name": (b"\x80\x04]\x8c\x01a\x93.", "not a pickle of arrays, or damaged"),
    "extensions of two bytes": (b"\x83\x01\x00.", "uses EXT2"),
    "extensions of four bytes": (b"\x84\xff\xff\xff\x7f.", "uses EXT4"),
    "a value as a persistent id": (b"NQ.", "uses BINPERSID"),
    "a new object": (b"cnumpy\ndtype\n)\x81.", "uses NEWOBJ"),
    "a new object with keywords": (b"cnumpy\ndtype\n)}\x92.", "uses NEWOBJ_EX"),
    "a set": (b"\x8f(N\x90.", "uses EMPTY_SET"),
    "a set of tuples": (b"()\x91.", "uses FROZENSET"),
    "a buffer of a size": (b"\x96" + b"\xff" * 7 + b"\x7f.", "not a pickle of arrays, or damaged"),
    "a buffer from elsewhere": (b"\x97.", "uses NEXT_BUFFER"),
    "a value doubled": (b"N2.", "uses DUP"),
    "a value dropped": (b"NN0.", "uses POP"),
    "a newer protocol": (b"\x80\xffN.", "not a pickle of arrays, or damaged"),
    "a memo below zero": (b"Np-1\n.", "not a pickle of arrays, or damaged"),
    "a memo beyond counting": (b"Np4294967296\n.", "numbers its values as pickles never do"),
    "a memo of no number": (b"Npx\n.", "not a pickle of arrays, or damaged"),
    "an integer of a negative size": (b"\x8b\xff\xff\xff\xff.", "not a pickle of arrays, or damaged"),
    "an integer cut short": (b"\x8b\xff\xff\xff\x7f.", "not a pickle of arrays, or damaged"),
    "an integer of many digits": (b"I" + b"9" * 100_000 + b"\n.", "not a pickle of arrays, or damaged"),
    "a float of many letters": (b"F" + b"x" * 100_000 + b"\n.", "not a pickle of arrays, or damaged"),
    "a text without quotes": (b"Sx\n.", "not a pickle of arrays, or damaged"),
    "a text that is none": (b"\x8c\x01\xff.", "not a pickle of arrays, or damaged"),
    "a frame beyond any file": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "not a pickle of arrays, or damaged"),
    "an integer as a key that shares its hash": (
        b"}" + pickle.dumps(2**61 - 1, 2)[2:-1] + b"Ns.",
        "not a pickle of arrays, or damaged",
    ),
    "a negative integer as a key that shares its hash": (
        b"}" + pickle.dumps(1 - 2**61, 2)[2:-1] + b"Ns.",
        "an integer of more than 60 bits",
    ),
    "sides that take long to multiply": (
        array(b"(" + 7 * (b"\x8b" + (10**6).to_bytes(4, "little") + b"\x7f" * 10**6) + b"t"),
        "not a pickle of arrays, or damaged",
    ),
    "bytes for a list of arguments": (b"cnumpy\ndtype\nU\x02f8R.", "not a pickle of arrays, or damaged"),
    "hundreds of arguments": (b"cnumpy\ndtype\n(" + b"N" * 300 + b"tR.", "not a pickle of arrays, or damaged"),
    "an array of no arguments": (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "not a pickle of arrays, or damaged"),
    "a class with a type's state": (b"cnumpy\ndtype\n(NU\x01<NNNtb.", "not a pickle of arrays, or damaged"),
    "a type's state as attributes": (
        FLOATS[: FLOATS.index(b"(K\x03")] + b"}U\x04codeU\x02O8sb.",
        "not a pickle of arrays, or damaged",
    ),
    "a type's state as slots": (
        FLOATS[: FLOATS.index(b"(K\x03")] + b"N}U\x04codeU\x02O8s\x86b.",
        "not a pickle of arrays",
    ),
    "a type's state too short": (FLOATS[: FLOATS.index(b"(K\x03")] + b")b.", "not a pickle of arrays, or damaged"),
    "a list as a byte order": (FLOATS.replace(b"U\x01<", b"]") + b".", "not a pickle of arrays, or damaged"),
    "an array's state too short": (SHELL + b")b.", "not a pickle of arrays, or damaged"),
    "an array's state as attributes": (SHELL + b"}U\x05builtNsb.", "not a pickle of arrays, or damaged"),
    "an array's state with no type": (array(b"(K\x01t", b"N"), "not a pickle of arrays, or damaged"),
    "a second state of an array": (array(b"(K\x01t")[:-1] + b"(K\x01)Ntb.", "not a pickle of arrays, or damaged"),
    "an item set in an array": (array(b"(K\x01t")[:-1] + b"K\x00K\x01s.", "not a pickle of arrays, or damaged"),
    "an item appended to an array": (array(b"(K\x01t")[:-1] + b"Na.", "not a pickle of arrays, or damaged"),
    "a number of objects": (
        b"cnumpy.core.multiarray\nscalar\n(" + OBJECTS + b"]NatR.",
        "not a pickle of arrays, or damaged",
    ),
    "a number of many bytes": (
        b"cnumpy.core.multiarray\nscalar\n(" + FLOATS + b"U\x09" + bytes(9) + b"tR.",
        "not a pickle of arrays, or damaged",
    ),
    "a name with a line's end": (b"\x80\x04\x8c\x01\n\x8c\x02\xc3\xa4\x93.", r"names \\n.\\xe4, which"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_array_is_refused(name):
    content, message = HOSTILE[name]
    with pytest.raises(InputError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("cues.pickle ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


HARMLESS = {
    "a type with no fields": array(b"(K\x01t", FLOATS.replace(b"NNN", b"N)}")),
    "too many sides": array(b"(" + b"K\x01" * 40 + b"t"),
    "another kind of array": array(b"(K\x01t", shell=SHELL.replace(b"cnumpy\nndarray\n", b"N")),
    "a type as a kind": array(b"(K\x01t", shell=SHELL.replace(b"cnumpy\nndarray\n", b"cnumpy\ndtype\n")),
    "an array called": b"cnumpy\nndarray\n((K\x09K\x09tU\x01btR.",
    "attributes set on a function": b"cnumpy.core.multiarray\n_reconstruct\n}U\x08__code__NsNb.",
    "another encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00aU\x03zlbtR.",
    "tuples as keys": b"})K\x01s.",
    "two values": b"NN.",
    "a frame within a frame": b"\x80\x04\x95\x0b" + bytes(7) + b"\x95\x01" + bytes(7) + b"N.",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_runs_nothing_may_be_read(name):
    assert isinstance(read(HARMLESS[name]), dict | np.ndarray | bytes | None)


def deep(levels: int, between: bytes = b"") -> bytes:
    """Tuples of two of the one before: hashing, showing or comparing the last takes 2^levels steps."""
    return b")q\x00" + b"".join(b"h%ch%c\x86%sq%c" % (i, i, between, i + 1) for i in range(levels)) + b"."


def test_bombs_take_neither_memory_nor_time():
    tracemalloc.start()
    bombs = [
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x04B\xff\xff\xff\x7f",  # two thousand million bytes promised
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
        deep(60),
        b"}" + deep(60)[:-1] + b"Ns.",
        deep(60)[:-1] + b"N\x93.",
        deep(60, b"Nb")[:-1] + b"}h\x3cNs.",  # opcodes that change nothing, before a tuple is stored
        deep(60, b"(e")[:-1] + b"}h\x3cNs.",
        deep(60, b"(u")[:-1] + b"}h\x3cNs.",
        deep(60, b"\x80\x02")[:-1] + b"}h\x3cNs.",
        deep(60)[:-1] + b"}h\x3cNs.",
        deep(60)[:-1] + b"}(h\x3cNu.",
        deep(60)[:-1] + b"(h\x3cNd.",
        b"\x80\x02N" + b"".join(b"r" + (2**32 - 1 - i).to_bytes(4, "little") for i in range(1000)) + b".",
        b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(100_000)) + b".",  # all of one hash
        b"}(" + b"".join(pickle.dumps(i * (2**61 - 1), 2)[2:-1] + b"N" for i in range(100_000)) + b"u.",
        b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"(.",
        b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"(.",
        b"(" * 50_000 + b"." + b"t" * 50_000,
        b"]" * 50_000 + b"a" * 49_999 + b".",
    ]
    for bomb in bombs:
        try:
            read(bomb)
        except InputError:
            continue
    with pytest.raises(InputError, match="uses a tuple twice"):
        read(deep(60)[:-1] + b"}h\x3cNs.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_bytes_are_not_used_over_and_over():
    content = b"T" + (80_000).to_bytes(4, "little") + bytes(80_000) + b"q\x01"
    each = SHELL + b"(K\x01(M\x10\x27t" + FLOATS + b"\x89h\x01tb"
    assert len(read(b"\x80\x02(" + content + each + b"l.")) == 2
    tracemalloc.start()
    with pytest.raises(InputError, match="builds arrays of more bytes than it has"):
        read(b"\x80\x02(" + content + 1000 * each + b"l.")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


def test_a_function_cannot_be_changed():
    encode, ignored = b"c_codecs\nencode\nq\x00", b"cnumpy\nndarray\n"
    for name in (b"_spend", b"_function"):
        slots = b"N}U%c%s%ss\x86b" % (len(name), name, ignored)
        with pytest.raises(InputError, match="'NoneType' object is not callable"):
            read(b"\x80\x02" + encode + slots + b".")


def test_no_more_opcodes_than_files_of_arrays_have(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.safe_pickle.MAX_OPCODES", 1000)
    assert read(b"(" + b"N" * 997 + b"l.") == [None] * 997
    (tmp_path / "a.pickle").write_bytes(gzip.compress(b"]" * 100_000))
    with pytest.raises(InputError, match="has more than 1000 opcodes"):
        load_dict(tmp_path / "a.pickle")


def test_nothing_is_left_of_a_hostile_pickle():
    before = pickle.dumps(np.arange(3), 2)
    for content, _ in HOSTILE.values():
        with pytest.raises(InputError):
            read(content)
    assert read(before).tolist() == [0, 1, 2]


def test_a_shared_array_is_one():
    one = np.arange(3)
    found = read(pickle.dumps([one, {"a": one}], 2))
    assert found[1]["a"] is found[0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_one_sentence_or_other_values(data):
    content = bytearray(pickle.dumps({"1_cues": np.arange(6).reshape(3, 2), "1_labels": np.arange(2)}, 2))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] = data.draw(st.integers(0, 255))
    try:
        read(bytes(content))
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_file_may_be_gzipped(tmp_path):
    content = pickle.dumps({"a": np.arange(3)}, 2)
    for name, written in (("a.pickle", content), ("b.pickle", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        assert load_dict(tmp_path / name)["a"].tolist() == [0, 1, 2]
    whole = gzip.compress(content)
    flipped = whole[:20] + bytes(byte ^ 255 for byte in whole[20:30]) + whole[30:]
    for damaged in (whole[:-9], whole[:30], flipped, b"\x1f\x8bxyz"):
        (tmp_path / "c.pickle").write_bytes(damaged)
        with pytest.raises(InputError, match=r"c\.pickle cannot be read"):
            load_dict(tmp_path / "c.pickle")
    with pytest.raises(InputError, match=r"d\.pickle cannot be read: No such file"):
        load_dict(tmp_path / "d.pickle")


def test_a_zip_that_swells(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.safe_pickle.MAX_BYTES", 1000)
    (tmp_path / "a.pickle").write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(InputError, match="contains more than 1000 bytes"):
        load_dict(tmp_path / "a.pickle")


TENSOR_CASES = [
    torch.arange(6, dtype=torch.int64),
    torch.linspace(0, 1, 24).view(2, 3, 4),
    torch.linspace(0, 1, 12).view(4, 3).T,
    torch.linspace(0, 1, 10)[3:7],
    torch.nonzero(torch.tensor([0, 1, 0, 1]))[:, 0],
    torch.zeros(0, 3, 4),
    torch.ones(3, dtype=torch.float16),
    torch.tensor([True, False]),
    torch.tensor(2.5, dtype=torch.float64),
    torch.linspace(0, 1, 3).expand(2, 3)[:1],
]


@pytest.mark.parametrize("tensor", TENSOR_CASES, ids=str)
def test_tensors(tensor, tmp_path):
    np.save(tmp_path / "a.npy", {"t": tensor, "a": tensor.numpy()})
    found = load_dict(tmp_path / "a.npy")
    np.testing.assert_array_equal(found["t"], tensor.numpy())
    np.testing.assert_array_equal(found["a"], tensor.numpy())
    assert found["t"].dtype == tensor.numpy().dtype
    for protocol in (2, 3, 4):  # as older versions of NumPy write
        np.testing.assert_array_equal(read(pickle.dumps(tensor, protocol)), tensor.numpy())


def storage(tensor) -> bytes:
    (call, arguments) = tensor._typed_storage().__reduce__()
    assert call.__name__ == "_load_from_bytes"
    return arguments[0]


def test_hostile_tensors():
    rebuild, from_bytes = torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes

    def tensor(offset, shape, strides, content=None):
        inner = Call(from_bytes, storage(torch.arange(4.0)) if content is None else content)
        strides = tuple(iter(strides))  # another object than the shape
        return pickle.dumps(Call(rebuild, inner, offset, shape, strides, False, OrderedDict()))

    assert read(tensor(1, (2,), (2,))).tolist() == [1.0, 3.0]
    for given_wrong in ((0, (5,), (1,)), (3, (2,), (1,)), (0, (2,), (9,)), (0, (4, 10**9), (1, 0)), (0, (2,), ())):
        with pytest.raises(InputError, match="pickle of arrays"):
            read(tensor(*given_wrong))
    for given_wrong in ((-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2.0,), (1,))):
        with pytest.raises(InputError, match="pickle of arrays"):
            read(tensor(*given_wrong))
    for given_wrong in (
        (0, (2**200,), (1,)),
        (0, (1,) * 40, (1,) * 40),
        ("0", (1,), (1,)),
    ):
        with pytest.raises(InputError, match="pickle of arrays"):
            read(tensor(*given_wrong))
    with pytest.raises(InputError):
        read(tensor(0, (0, 2**62), (1, 1)))
    run = io.BytesIO()
    torch.save(Call(ran), run, _use_new_zipfile_serialization=False)
    zipped = io.BytesIO()
    torch.save(torch.ones(2), zipped)
    good = storage(torch.arange(4.0))
    wrong = {
        "unknown format": [good.replace(b"\x19", b"\x18", 1), good.replace(b"ctorch\nFloatStorage\n", b"]")],
        "format or type": [good.replace(b"FloatStorage", b"QInt8Storage")],
        "does not fit|buffer size": [good + b"x", good + bytes(4), good.replace(b"Float", b"Double")],
    }
    for message, contents in wrong.items():
        for content in contents:
            with pytest.raises(InputError, match=message):
                read(tensor(0, (2,), (1,), content))
    for content in (run.getvalue(), zipped.getvalue(), b"", good[:-1], good[:40], 5):
        with pytest.raises(InputError):
            read(tensor(0, (2,), (1,), content))
    assert not RUN


def test_a_storage_is_shared_by_its_tensors():
    inner = Call(torch.storage._load_from_bytes, storage(torch.zeros(10_000)))
    views = [
        Call(torch._utils._rebuild_tensor_v2, inner, 0, tuple(iter([10_000])), tuple(iter([1])), False)
        for _ in range(500)
    ]
    tracemalloc.start()
    assert {each.shape for each in read(pickle.dumps(views))} == {(10_000,)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6
