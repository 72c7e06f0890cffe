"""Bodies in chunks with a trailing digest, read as RFC 9112 reads them."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from storage import aws_chunked

SIZES = st.one_of(
    st.integers(0, 3 * aws_chunked.CHUNK_BYTES),
    st.builds(
        lambda count, more: max(0, count * aws_chunked.CHUNK_BYTES + more),
        st.integers(0, 640),
        st.integers(-1, 1),
    ),
)


@given(SIZES)
def test_chunks_are_all_of_a_body_and_its_length_is_known_before(size: int) -> None:
    frames, bytes_of_frames = list(aws_chunked.chunks(size)), 0
    assert sum(length for _, length in frames) == size
    for before, length in frames:
        assert int(before.removesuffix(b"\r\n"), 16) == length
        assert 0 < length <= aws_chunked.CHUNK_BYTES
        bytes_of_frames += len(before) + length + len(aws_chunked.END)
    end = aws_chunked.end_of_body(hashlib.sha256(b"").hexdigest())
    assert aws_chunked.chunked_length(size) == bytes_of_frames + len(end)
    assert all(length >= 8192 for _, length in frames[:-1])


def test_digest_is_written_as_s3_writes_it() -> None:
    empty = (
        "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="  # openssl dgst -sha256 -binary < /dev/null | base64
    )
    end = aws_chunked.end_of_body(hashlib.sha256(b"").hexdigest())
    assert end == b"0\r\nx-amz-checksum-sha256:" + empty.encode() + b"\r\n\r\n"
