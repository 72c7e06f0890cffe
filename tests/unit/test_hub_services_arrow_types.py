"""Files that ``pyarrow`` wrote, with a column of the type that its versions before 14.0.1 unpickled."""

import base64
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.services import arrow_types
from hub.services.arrow_types import PICKLED_TYPE, TooLarge, names_pickled_type

# pyarrow 26.0.1: one column with the metadata ARROW:extension:name and ARROW:extension:metadata.
PARQUET = zlib.decompress(
    base64.b64decode(
        "eNqVUstOg1AQHZCQmrioJpdAwoKFEk18tFVMatwMtQ/ro5bah+xaiqD2gdUWdeUHuvSDvPfS1o0bz+IOnDNzZobLDTpZIhGDbF7S"
        "ABsA6VMBEojzSIBsEGWX6mkiE1lXUwtFTS1yFdj+g11fp8eqwQRJEFZEImm7Fqjyixf6wy4RgUhboiq8gSJpuqaboNMMC+S0Rkki"
        "KpLyJSjfglkxU//rqrFpgTUAOrQIpzuyZoLESqijZKaoK2i6uoaOU2ufJPOonysHDG+BjYh1THCBGKMdYAkxwELAOZsmXLGHAuI5"
        "J34jRZEdd/P6BiumeWVED8/mSSXGJ7AxZK0KmbnfwiQBkyrBUrpdkmdFNmp5+Y6XvGku/1EYXVveoTPo1cfI9WKp0XzKd2rD1lG/"
        "3Jp6ucGs9xi9uh0ndMulzF2y6Tnfk0fe72k5iu2xI/RG1Vn/3Yr9Vn7gV6j/6Drq5az7fmUQu3Vs8kla1cZt1jt2O2HGbVsf3XZ+"
        "WhtaYa/NZbbEFfO34+R7cTR/1wXViLqT56n/uudF0V53MhnHxsyfvDyMR0bueD+zn9V0nV5jlV77Df13fwAyFZIw"
    )
)
FEATHER = zlib.decompress(
    base64.b64decode(
        "eNrlUrFOwzAQPYdQrGChCEUiQ6cKpExI3VCndGOgQurCWCLwwJCkaiLRbIivYOQj+AT+C57PFyhR/4CLzj6f3r17Z2e+XN7eTYm+"
        "YKkiislZRIZGdEgaEUyFOBNOGmsoK9LwlPGn2DUqjhgXU4IMFwYJ1g+u7bl93RYewG+E69P1l/gY/lA3UdM1rS0j7jF3Omd229qq"
        "eaqrWWnb4rFoC2Juw6pcj3PhOIMXm039fLnuVj9lq7ZbW0r28FVFaXsujTm0SM1Fs7ufN+yJnA1U+RsyPDMdhDTGltGvGWRiVuYx"
        "1/CxcAQ7uJC/v7mhXezEag+2v9twskjv89cThBMF5MsA6Obo8QZKRqwu9jNAxZXM0L9vpnzdu9Rng77/9Z/IleCn398SYao="
    )
)


def look(data: bytes, head: int = 65_536, size: int | None = None) -> bool:
    return names_pickled_type(
        data[:head], size or len(data), lambda offset, length: data[offset : offset + length]
    )


FILES = {
    "parquet": PARQUET,
    "arrow file": FEATHER,
    "arrow stream": FEATHER[8:],
    "arrow stream of the oldest form": FEATHER[12:],
}


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_column_that_is_described_by_a_pickle_is_found(data: bytes) -> None:
    assert look(data) and look(data, 20)


@pytest.mark.parametrize("data", FILES.values(), ids=FILES.keys())
def test_column_of_another_type_is_none(data: bytes) -> None:
    other = data.replace(PICKLED_TYPE, b"arrow.an_extension_type")
    if data is PARQUET:
        mark = b"ARROW:schema"
        begin = data.index(mark) + len(mark)
        begin = data.index(b"/////", begin)
        end = next(at for at in range(begin, len(data)) if data[at : at + 1] in (b"\x00", b"\x18"))
        schema = base64.b64decode(data[begin:end]).replace(PICKLED_TYPE, b"arrow.an_extension_type")
        other = data[:begin] + base64.b64encode(schema) + data[end:]
    assert len(other) == len(data) and other != data
    assert not look(other)


@pytest.mark.parametrize("before", range(3))
def test_name_is_found_in_base64_wherever_it_stands_in_a_group(before: int) -> None:
    footer = base64.b64encode(bytes(before) + PICKLED_TYPE + b"behind it")
    data = b"PAR1" + bytes(100_000) + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    assert look(data)
    assert not look(data[:-4])
    assert not look(data[:50_000])


def test_schema_that_is_too_large_to_look_at_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_types, "SCHEMA_BYTES", 100)
    for data in FILES.values():
        with pytest.raises(TooLarge):
            look(data)


def test_numbers_are_not_taken_for_the_oldest_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no mark, so a schema that is too large would else be seen in many a file of weights."""
    monkeypatch.setattr(arrow_types, "SCHEMA_BYTES", 100)
    numbers = random.Random(1)
    for _ in range(2000):
        data = numbers.randbytes(3) + b"\0" + numbers.randbytes(2) + b"\0\0" + numbers.randbytes(70_000)
        assert not look(data, size=1 << 30)


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"]), st.booleans()
)
def test_any_bytes_get_an_answer(data: bytes, mark: bytes, twice: bool) -> None:
    assert look(mark + data + (mark if twice else b"")) in (True, False)
