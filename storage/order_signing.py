"""The folder store's own signatures: upload orders in headers, read URLs in the query.

The same rules as S3's: an order binds method, place, digest, size and expiry; a part's URL binds all of
these but the digest; a read URL binds place, file name and expiry. HMAC-SHA256 under a secret that only the
hub and its blob server hold, compared in constant time.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode

from storage.encoding import is_digest
from storage.errors import Refused

DIGEST, SIZE = "x-fedhub-content-sha256", "x-fedhub-content-size"
EXPIRES, SIGNATURE = "x-fedhub-expires", "x-fedhub-signature"
LASTING = "x-fedhub-lasting"  # a wish, no right, so not signed: write to the disk as it comes
MAX_BODY_BYTES = 5 << 30  # S3's limit for one PUT


class OrderSigner:
    """Signs and checks for one store."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _sign(self, *words: str) -> str:
        return hmac.new(self._secret, json.dumps(words).encode(), hashlib.sha256).hexdigest()

    def order_headers(self, key: str, query: str, sha256: str, size: int, expires: int) -> dict[str, str]:
        """Headers that let their bearer PUT these bytes at ``key`` + ``query`` until ``expires`` (Unix s)."""
        return {
            DIGEST: sha256,
            SIZE: str(size),
            EXPIRES: str(expires),
            SIGNATURE: self._sign("fedhub-put-v1", key, query, sha256, str(size), str(expires)),
        }

    def check_order(self, key: str, query: str, headers: Mapping[str, str], now: int) -> tuple[str, int]:
        """Digest and size that these headers allow at ``key`` + ``query``, or ``Refused`` (403).

        Header names are lower-case.
        """
        sha256, size, expires = headers.get(DIGEST, ""), headers.get(SIZE, ""), headers.get(EXPIRES, "")
        expected = self._sign("fedhub-put-v1", key, query, sha256, size, expires)
        if not hmac.compare_digest(expected, _ascii(headers.get(SIGNATURE, ""))):
            raise Refused("E_ORDER_SIGNATURE", f"the upload order does not allow a PUT of {key}")
        if int(expires) < now:
            raise Refused(
                "E_ORDER_EXPIRED", f"the upload order for {key} has expired", "ask for a fresh order"
            )
        if not is_digest(sha256) or int(size) > MAX_BODY_BYTES:
            raise Refused(
                "E_ORDER_SIGNATURE", f"the upload order for {key} names no digest, or more than 5 GiB"
            )
        return sha256, int(size)

    def part_query(self, key: str, upload_id: str, number: int, size: int, expires: int) -> str:
        """Query string that lets its bearer PUT any ``size`` bytes as a part of an upload until ``expires``.

        For clients that can send no headers: what they sent is nobody's word until it has been hashed.
        """
        fields = [("expires", str(expires)), ("partNumber", str(number)), ("size", str(size))]
        fields.append(("uploadId", upload_id))
        words = [value for _name, value in fields]
        return urlencode([*fields, ("signature", self._sign("fedhub-part-v1", key, *words))])

    def check_part(self, key: str, query: str, now: int) -> tuple[str, int, int]:
        """Upload's id, part number and size that this query allows at ``key``.

        Raises:
            Refused: (403) it is not one of ``part_query``, or it has expired.
        """
        try:
            fields = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=5))
            numbers = [int(fields.get(name, "")) for name in ("partNumber", "size", "expires")]
            number, size, expires = numbers
            upload_id = fields.get("uploadId", "")
            expected = self.part_query(key, upload_id, number, size, expires)
        except ValueError:
            expected = ""
        if not expected or not hmac.compare_digest(expected, _ascii(query)):
            raise Refused("E_URL_SIGNATURE", f"the URL does not allow a PUT of {key}")
        if expires < now:
            raise Refused("E_URL_EXPIRED", f"the URL for {key} has expired", "ask for a fresh one")
        if size > MAX_BODY_BYTES:
            raise Refused("E_URL_SIGNATURE", f"the URL for {key} names more than 5 GiB")
        return upload_id, number, size

    def read_query(self, key: str, expires: int, filename: str | None) -> str:
        """Query string that lets its bearer read ``key`` until ``expires`` (Unix seconds)."""
        name = filename or ""
        fields = [("expires", str(expires)), *([("filename", name)] if name else [])]
        return urlencode([*fields, ("signature", self._sign("fedhub-get-v1", key, str(expires), name))])

    def check_read(self, key: str, query: str, now: int) -> str | None:
        """File name that this query asks the answer to bear, if any, or ``Refused`` (403)."""
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=3)
        except ValueError:  # more fields than we ever sign
            pairs = []
        fields = dict(pairs)
        name, expires = fields.get("filename", ""), fields.get("expires", "")
        expected = self._sign("fedhub-get-v1", key, expires, name)
        extra = len(fields) != len(pairs) or set(fields) - {"expires", "filename", "signature"}
        if extra or not hmac.compare_digest(expected, _ascii(fields.get("signature", ""))):
            raise Refused("E_URL_SIGNATURE", f"the URL does not allow reading {key}")
        if int(expires) < now:
            raise Refused("E_URL_EXPIRED", f"the URL for {key} has expired", "ask for a fresh one")
        return name or None


def _ascii(text: str) -> str:
    """Text that ``compare_digest`` takes: anything else than ASCII equals no signature."""
    return text if text.isascii() else ""
