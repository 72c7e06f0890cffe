"""What a loader would do with a file decides, and loaders are Python's own, in C and in Python."""

import io
import pickle
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hub.services import pickles
from hub.services.pickles import TooLong, is_pickle


def look(data: bytes, head: int = 64, *, sized: bool = True) -> bool:
    behind = len(data[:head])

    def forward(at: int, length: int) -> bytes:
        nonlocal behind
        assert at >= behind
        behind = at + length
        return data[at:behind]

    return is_pickle(data[:head], len(data) if sized else None, forward)


class Named(type):
    """What a pickle names: it notes whatever is done to it."""

    acted = 0

    def note(cls, *_values: object, **_named: object) -> None:
        Named.acted += 1

    append = extend = add = update = __setitem__ = note


class Thing(metaclass=Named):
    def __new__(cls, *_values: object, **_named: object) -> "Thing":
        Named.acted += 1
        return super().__new__(cls)

    @classmethod
    def __setstate__(cls, _state: object) -> None:
        Named.acted += 1


class InC(pickle.Unpickler):
    def find_class(self, _module: str, _name: str) -> type:
        return Thing


class InPython(pickle._Unpickler):  # type: ignore[name-defined,misc]
    find_class = InC.find_class


def acts(data: bytes) -> bool:
    """Whether one of the loaders does something with what the file names, in its first three pickles."""
    before = Named.acted
    for loader in (InC, InPython):
        loading = loader(io.BytesIO(data))
        try:
            for _ in range(3):
                loading.load()
        except Exception:
            continue
    return Named.acted > before


CALL = b"cos\nsystem\n(S'id'\ntR"
HIDDEN = {
    "nothing behind the call": CALL,
    "garbage behind the call": CALL + b"\xff\xff",
    "a number to base 16": b"I0x10\n0" + CALL,
    "a number that ends at a zero byte": b"I5\0x\n0" + CALL,
    "a long number with its letter": b"L0x10L\n0" + CALL,
    "a float with underscores": b"F1_0.5e1_0\n0" + CALL,
    "a long text before it": b"S'" + b"a" * 3_000_000 + b"'\n0" + CALL,
    "a text with another quote": b'S"\'\0"\n0' + CALL,
    "counted bytes before it": b"B" + (2_500_000).to_bytes(4, "little") + bytes(2_500_000) + b"0" + CALL,
    "many instructions before it": b"N0" * 40_000 + CALL,
    "a pickle before it": b"N." + CALL,
    "names in other letters": "cé\nü.ö\n0".encode() + CALL,
    "a mark taken from the stack": b"(0" + CALL,
    "out of the memo": b"cos\nsystem\np7\n0g7\n(tR",
    "out of the memo of the pickle before": b"cos\nsystem\nq\x07.h\x07)R",
    "of protocol 4": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x94)R",
    "of protocol 4 without its mark": b"\x8c\x02os\x8c\x06system\x93)R",
    "an instance": b"(ios\nsystem\n",
    "an object": b"(cos\nsystem\no",
    "by state": b"cos\nsystem\n}b",
    "an item of what is named": b"cos\nenviron\nS'a'\nS'b'\ns",
    "more of what is named": b"csys\npath\nS'/tmp'\na",
    "at the end without an end of the line": b"(ios\nsystem",
    "across the end of a frame, of which C drops the rest": b"\x95\x03"
    + bytes(7)
    + b"U\x02osecos\nsystem\n)R",
    "behind a mark, on a name that is none": b"\x80\x04cunittest.mock\ncall.a b\n)R",
    "in a folder that is taken for a module": b"clib-dynload\n__name__\n0" + CALL,
}


@pytest.mark.parametrize("data", HIDDEN.values(), ids=HIDDEN.keys())
def test_call_is_found_wherever_it_hides(data: bytes) -> None:
    assert acts(data), "a loader does it"
    assert look(data) and look(data, sized=False)


PIECES = [
    b"N", b"]", b"}", b")", b"(", b"t", b"0", b"1", b"2", b".", b"R", b"b", b"o", b"a", b"e", b"s", b"u", b"l", b"d",
    b"\x80\x02", b"\x80\x05", b"\x81", b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93",
    b"\x94", b"\x97", b"\x98", b"Q", b"P1\n", b"p0\n", b"p5\0x\n", b"g0\n", b"g5\n", b"q\x01", b"h\x01", b"h\x00",
    b"r\x02\0\0\0", b"j\x02\0\0\0", b"K\x05", b"M\x05\0", b"J\xff\xff\xff\xff", b"\x8a\x01\x05", b"\x8b\x01\0\0\0\x05",
    b"G" + bytes(8), b"I5\n", b"I01\n", b"I0x10\n", b"I 7\0z\n", b"I-1\n", b"I\n", b"L5L\n", b"L0b1\n", b"Fnan\n",
    b"F-inf\n", b"F1e5\n", b"F.\n", b"S'a'\n", b'S"a\'\n', b"S'a'  \n", b"Va\n", b"V\xc3\xa9\n", b"cos\nsystem\n",
    b"(ios\nsystem\n", b"X\x02\0\0\0os", b"\x8c\x02os", b"U\x02os", b"T\x02\0\0\0os", b"T\xff\xff\xff\xff", b"C\x01a",
    b"B\x01\0\0\0a", b"\x8d\x01" + bytes(7) + b"a", b"\x8e\x01" + bytes(7) + b"a", b"\x96\x01" + bytes(7) + b"a",
    b"\x95\x03" + bytes(7), b"\x82\x01", b"\xff",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from([b"", CALL, b"cos\nsystem\n)R"]))
@example([b"(", b"0"], CALL)
def test_whatever_a_loader_acts_on_is_found(pieces: list[bytes], end: bytes) -> None:
    data = b"".join(pieces) + end
    if acts(data):
        assert look(data, 1) and look(data, len(data), sized=False)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=20,
    ),
    st.integers(0, 5),
)
def test_whole_pickle_without_calls_is_found(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert look(data) or len(data) <= 2


@pytest.mark.parametrize("mark", [2, 3, 4, 5])
def test_mark_of_a_pickle_that_stands_there_by_chance_is_none(mark: int) -> None:
    follow: list[Callable[[bytes], bytes]] = [
        bytes,
        lambda m: b"\xff" + m,
        lambda m: b"R" + m,
        lambda _m: b"",
    ]
    for behind in follow:
        assert not look(b"\x80" + bytes([mark]) + behind(b"\x00\x01" * 50))
    assert not look(b"\x95" + bytes([mark]) * 8 + b"\x95" + bytes(100)), "no frame is as long as that"
    assert look(b"\x80" + bytes([mark]) + b"N.more")


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\nhorse\nmouse\n",
        "carbon\nchlorine\nhelium\n",
        "c-a/b.py,sha256=1\nc-a/c.py,sha256=2\nscripts\n" * 3,
        "Very long text in one line, " * 5000,
        "Sentences 'quoted' at last'\n" * 100,
        "I am a text\n" * 100,
        "PARIS\nLONDON\n",
        "NNNN\n" * 1000,
        "((((\n",
        "5.1,3.5,1.4,0.2\n",
        "]",
    ],
)
def test_text_is_none(text: str) -> None:
    assert not look(text.encode())
    assert not look(text.encode(), 65_536)


@pytest.mark.parametrize("more", [b"N0" * 60, b"V" + b"a" * 6000 + b"\n0"])
def test_more_than_is_followed_is_told(more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not look(more + b"\xff")
    monkeypatch.setattr(pickles, "INSTRUCTIONS", 100)
    monkeypatch.setattr(pickles, "SCANNED_BYTES", 4000)
    monkeypatch.setattr(pickles, "STEP_BYTES", 1000)
    assert not look(more[-80:] + b"\xff")
    with pytest.raises(TooLong):
        look(more + b"\xff")
