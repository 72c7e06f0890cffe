"""The S3 store. The only file that imports ``minio``.

Upload orders are plain S3 requests signed in their headers (SigV4) with ``x-amz-content-sha256`` set to the
announced digest: any S3 server then refuses other bytes by itself, unlike with a presigned PUT. Reads are
presigned GETs. Both are signed for the public address, our own requests for the internal one.
"""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from urllib.parse import quote, urlsplit

import certifi
import urllib3
from minio import Minio, S3Error
from minio.credentials.credentials import Credentials
from minio.datatypes import Part
from minio.error import MinioException
from minio.helpers import DictType
from minio.signer import sign_v4_s3

from storage.aws_chunked import TRAILER, UNSIGNED_CHUNKS, trailing_digest
from storage.blobs import (
    NOT_THERE,
    ORDER_S,
    STREAM_BYTES,
    Order,
    blob_exists,
    check_key,
    check_parts,
    no_blob,
    no_upload,
)
from storage.encoding import format_time
from storage.errors import Unchecked

CONNECT_S, READ_S = 5.0, 60.0
RETRIES = 3
CONNECTIONS = 32
_KEY_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
_MEND_KEY = "mend FEDHUB_STORE_ACCESS_KEY and FEDHUB_STORE_SECRET_KEY, or what the store lets that key do"
_COPIES_PARTS = "VERSITYGW"  # as it names itself in ``Server``
_FULL = {"InsufficientStorage", "XMinioStorageFull"}  # with status 507
_MISSING = {"NoSuchKey", "NoSuchObject", "NotFound"}


class MinioStore:
    """Objects of one bucket."""

    def __init__(
        self,
        endpoint: str,
        public_url: str,
        bucket: str,
        access: str,
        secret: str,
        *,
        region: str = "us-east-1",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``endpoint`` and ``public_url`` are ``http(s)://host[:port]``, for us and for clients."""
        self._bucket, self._region, self._clock = bucket, region, clock
        self._credentials = Credentials(access, secret)
        self._public = _without_default_port(public_url)
        self._client = _client(_without_default_port(endpoint), access, secret, region)
        self._signer = _client(self._public, access, secret, region)

    def check_bucket(self, *, make: bool = True) -> None:
        """Return only when the bucket is there, or now made.

        Raises:
            Unchecked: ``E_STORE``.
        """
        with self._errors(f"bucket {self._bucket}"):
            there = self._client.bucket_exists(self._bucket)
            if not there and make:
                self._client.make_bucket(self._bucket)
        if not there and not make:
            raise Unchecked("E_STORE", f"the S3 store has no bucket {self._bucket}", NOT_THERE)

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        headers: DictType = {"Content-Type": "application/octet-stream", "Cache-Control": "no-cache"}
        if create_only:
            headers["If-None-Match"] = "*"
        with self._errors(key):
            self._client._put_object(self._bucket, check_key(key), data, headers)

    def get(self, key: str) -> bytes:
        return b"".join(self.stream(key))

    def read(self, key: str, offset: int, length: int) -> bytes:
        if length == 0:
            return b""
        try:
            return b"".join(self._pieces(key, offset, length))
        except S3Error as error:
            if error.code != "InvalidRange":
                raise
            return b""  # past the end, like a file

    def stream(self, key: str) -> Generator[bytes, None, None]:
        yield from self._pieces(key, 0, 0)

    def _pieces(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        with self._errors(key):
            answer = self._client.get_object(self._bucket, check_key(key), offset=offset, length=length)
            try:
                yield from answer.stream(STREAM_BYTES)
            finally:
                answer.close()
                answer.release_conn()

    def size(self, key: str) -> int | None:
        try:
            with self._errors(key):
                return self._client.stat_object(self._bucket, check_key(key)).size
        except Unchecked as error:
            if error.code != "E_NO_BLOB":
                raise
            return None

    def written_at(self, key: str) -> float | None:
        try:
            with self._errors(key):
                at = self._client.stat_object(self._bucket, check_key(key)).last_modified
        except Unchecked as error:
            if error.code != "E_NO_BLOB":
                raise
            return None
        return None if at is None else at.timestamp()

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.remove_object(self._bucket, check_key(key))

    def list(self, prefix: str) -> Iterator[str]:
        with self._errors(prefix):
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                yield item.object_name

    def sync(self, key: str) -> None:
        if self.size(key) is None:  # an S3 server has answered the PUT, so it is durable already
            raise no_blob(key)

    # --- orders --------------------------------------------------------------------------------------

    @cached_property
    def one_stream(self) -> bool:
        """S3 servers hash a stream in one thread, MD5 besides, so several parts take several cores.

        A server that copies every part to join them gives that back: it is asked once what it is.
        """
        with self._errors(f"bucket {self._bucket}"):
            answer = self._client._execute("HEAD", self._bucket)
        return answer.headers.get("Server") == _COPIES_PARTS

    def order(self, key: str, sha256: str, size: int, *, lasting: bool = False) -> Order:
        del lasting  # what an S3 server has answered for is durable
        return self._order(check_key(key), "", sha256, {})

    def _order(
        self, key: str, query: str, content: str, more: Mapping[str, str], *, trailer: bool = False
    ) -> Order:
        """A PUT signed over ``content``, a digest or S3's word for what takes its place, and more headers."""
        now = self._clock()
        url = urlsplit(f"{self._public}/{self._bucket}/{key}{query}")
        headers = sign_v4_s3(
            method="PUT",
            url=url,
            region=self._region,
            headers={
                "Host": url.netloc,
                "x-amz-content-sha256": content,
                "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
                **more,
            },
            credentials=self._credentials,
            content_sha256=content,
            date=now,
        )
        sent = {
            name: str(value) for name, value in headers.items() if name != "Host"
        }  # clients send their own
        return Order("PUT", url.geturl(), sent, format_time(int(now.timestamp()) + ORDER_S), trailer)

    def unhashed_order(self, key: str, size: int) -> tuple[Order, str | None]:
        # Content-Encoding stays away: Versity's gateway would tell it to whoever reads the object.
        more = {
            "if-none-match": "*",  # so nobody can change what has been taken
            "x-amz-decoded-content-length": str(size),
            "x-amz-trailer": TRAILER,
        }
        return self._order(check_key(key), "", UNSIGNED_CHUNKS, more, trailer=True), None

    def take_unhashed(self, key: str, upload_id: str | None, sha256: str, size: int) -> bool:
        del upload_id
        with self._errors(key):
            asked: DictType = {"x-amz-checksum-mode": "ENABLED"}
            found = self._client._execute("HEAD", self._bucket, check_key(key), headers=asked).headers
        digest = found.get(TRAILER, ""), found.get("x-amz-checksum-type", "")
        return digest == (trailing_digest(sha256), "FULL_OBJECT") and found.get("Content-Length") == str(size)

    def begin_parts(self, key: str) -> str:
        with self._errors(key):
            return self._client._create_multipart_upload(self._bucket, check_key(key), {})

    def part_order(self, key: str, upload_id: str, number: int, sha256: str, size: int) -> Order:
        return self._order(
            check_key(key), f"?partNumber={number}&uploadId={quote(upload_id, safe='')}", sha256, {}
        )

    def stored_parts(self, key: str, upload_id: str) -> dict[int, str]:
        found: dict[int, str] = {}
        marker: str | None = None
        while True:
            with self._errors(key, upload_id):
                page = self._client._list_parts(
                    self._bucket, check_key(key), upload_id, part_number_marker=marker
                )
            found |= {part.part_number: part.etag.strip('"') for part in page.parts}
            if not page.is_truncated:
                return found
            marker = str(page.next_part_number_marker)

    def put_part(self, key: str, upload_id: str, number: int, data: bytes) -> None:
        with self._errors(key, upload_id):
            self._client._upload_part(self._bucket, check_key(key), data, None, upload_id, number)

    def complete_parts(self, key: str, upload_id: str, etags: dict[int, str]) -> None:
        try:
            numbers = check_parts(upload_id, etags, self.stored_parts(key, upload_id))
            with self._errors(key, upload_id):
                parts = [Part(number, etags[number]) for number in numbers]
                self._client._complete_multipart_upload(self._bucket, key, upload_id, parts)
        except Unchecked as error:
            if error.code != "E_NO_UPLOAD" or self.size(key) is None:
                raise

    def abort_parts(self, key: str, upload_id: str) -> None:
        try:
            with self._errors(key, upload_id):
                self._client._abort_multipart_upload(self._bucket, check_key(key), upload_id)
        except Unchecked as error:
            if error.code != "E_NO_UPLOAD":
                raise

    def unfinished(self) -> Iterator[tuple[str, str, float]]:
        key_marker, id_marker = None, None
        while True:
            with self._errors(self._bucket):
                page = self._client._list_multipart_uploads(
                    self._bucket, key_marker=key_marker, upload_id_marker=id_marker
                )
            for upload in page.uploads:
                begun = upload.initiated_time
                yield upload.object_name, str(upload.upload_id), begun.timestamp() if begun else 0.0
            if not page.is_truncated:
                return
            key_marker, id_marker = page.next_key_marker, page.next_upload_id_marker

    def signed_url(self, key: str, *, expires_s: int, filename: str | None = None) -> str:
        headers: DictType = {}
        if filename:
            headers["response-content-disposition"] = (
                f"attachment; filename*=UTF-8''{quote(filename, safe='')}"
            )
        return self._signer.presigned_get_object(
            self._bucket,
            check_key(key),
            expires=timedelta(seconds=expires_s),
            response_headers=headers or None,
            request_date=self._clock(),
        )

    def part_url(self, key: str, upload_id: str, number: int, size: int, *, expires_s: int) -> str:
        return self._signer.get_presigned_url(
            "PUT",
            self._bucket,
            check_key(key),
            expires=timedelta(seconds=expires_s),
            request_date=self._clock(),
            extra_query_params={"partNumber": str(number), "uploadId": upload_id},
        )

    @contextmanager
    def _errors(self, key: str, upload_id: str = "") -> Iterator[None]:
        """What went wrong, in the words that every store uses."""
        try:
            yield
        except S3Error as error:
            if error.code in _MISSING:
                raise no_blob(key) from error
            if error.code == "NoSuchUpload":
                raise no_upload(upload_id) from error
            if error.code == "PreconditionFailed":
                raise blob_exists(key) from error
            if error.code == "InvalidRange":
                raise
            if error.code in _FULL:
                hint = "Tell the hub's operator, and repeat it when there is room."
                raise Unchecked("E_HUB_FULL", f"the S3 store has no room for {key}", hint) from error
            hint = _MEND_KEY if error.code in _KEY_REFUSED else "see its log"
            raise Unchecked("E_STORE", f"the S3 store refused {key}: {error.code}", hint) from error
        except (MinioException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise Unchecked(
                "E_STORE", f"the S3 store did not answer for {key}: {type(error).__name__}", "is it up?"
            ) from error


def _without_default_port(url: str) -> str:
    """The URL as HTTP clients write its host in their requests, since signatures cover that."""
    split = urlsplit(url)
    default = {"http": ":80", "https": ":443"}[split.scheme]
    return f"{split.scheme}://{split.netloc.removesuffix(default)}"


def _client(url: str, access: str, secret: str, region: str) -> Minio:
    split = urlsplit(url)
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_S, read=READ_S),
        maxsize=CONNECTIONS,
        retries=urllib3.Retry(total=RETRIES, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]),
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )
    return Minio(
        split.netloc,
        access_key=access,
        secret_key=secret,
        region=region,
        secure=split.scheme == "https",
        http_client=pool,
    )
