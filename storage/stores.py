"""Opens the object store that a URL names.

``file:///folder`` is a folder on this machine, served by ``storage.blob_server``;
``s3+http://host:port/bucket`` and ``s3+https://…`` are S3 servers (``?region=NAME`` where it is not
``us-east-1``). The store is named twice: as we reach it, and as clients reach it, since a signature covers
the host that it was made for.
"""

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from storage.blobs import NOT_THERE, BlobStore, FolderStore, store_secret
from storage.errors import Unchecked

HINT = "use file:///folder or s3+http(s)://host:port/bucket"


def folder_of(url: str) -> Path | None:
    """The folder that a ``file:`` URL names, or None for a store that is no folder."""
    split = urlsplit(url)
    if split.scheme != "file":
        return None
    if (
        split.netloc not in ("", "localhost")
        or not split.path.startswith("/")
        or split.query
        or split.fragment
    ):
        raise Unchecked("E_STORE_URL", f"the store URL {url} does not name a folder of this machine", HINT)
    return Path(unquote(split.path))


def open_store(
    url: str,
    public_url: str | None = None,
    access: str | None = None,
    secret: str | None = None,
    *,
    make: bool = True,
) -> BlobStore:
    """The store at ``url``, ready for use.

    Args:
        public_url: ``http(s)://host:port`` at which clients reach the same store. An S3 store without one is
            reached by clients as by us; a folder needs the address of its blob server.
        access: access key of an S3 store.
        secret: secret key of an S3 store; of a folder, the secret that its blob server knows too (unset: the
            file ``.secret`` in the folder).
        make: whether to make a missing folder or bucket; without it that is an error.
    Raises:
        Unchecked: ``E_STORE_URL`` (the addresses), ``E_STORE`` (no answer, or nothing there), ``E_INPUT``
            (the secret's file).
    """
    if public_url is not None:
        public = urlsplit(public_url)
        if (
            public.scheme not in ("http", "https")
            or not public.netloc
            or public.path.strip("/")
            or public.query
        ):
            raise Unchecked(
                "E_STORE_URL",
                f"the store's public URL {public_url} is not http(s)://host:port",
                "leave out the bucket",
            )
    folder = folder_of(url)
    if folder is not None:
        if public_url is None:
            raise Unchecked("E_STORE_URL", f"the folder store {url} needs the public URL of its blob server")
        if not make and not folder.is_dir():
            raise Unchecked("E_STORE", f"the store's folder {folder} is not there", NOT_THERE)
        return FolderStore(folder, public_url, secret.encode() if secret else store_secret(folder))
    split = urlsplit(url)
    bucket, region = split.path.strip("/"), parse_qs(split.query).get("region", ["us-east-1"])[0]
    if (
        split.scheme not in ("s3+http", "s3+https")
        or not split.hostname
        or not bucket
        or "/" in bucket
        or "@" in split.netloc
    ):
        raise Unchecked("E_STORE_URL", f"the store URL with scheme {split.scheme!r} is not understood", HINT)
    if not access or not secret:
        raise Unchecked("E_STORE_URL", f"the S3 store at {split.netloc} needs an access key and a secret key")
    from storage.blobs_minio import MinioStore  # only where S3 is used: the base install has no S3 client

    endpoint = f"{split.scheme.removeprefix('s3+')}://{split.netloc}"
    store = MinioStore(endpoint, public_url or endpoint, bucket, access, secret, region=region)
    store.check_bucket(make=make)
    return store
