"""A dataset's public description, a Croissant 1.1 file: what the data look like and what they are for.

It names file sets and never a file, column names and types and never a value, rounded row counts and never
a size or a digest. The exact files stand in the salted manifest, which stays at the site. Where the owner
shares the files on purpose (a manifest without salt) they are described one by one as well.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

from storage.encoding import canonical, format_time
from storage.errors import Rejected
from storage.kinds import NAMESPACE
from storage.manifests import FileEntry, Manifest
from storage.members import duo_term
from storage.members import license_id as check_license
from storage.tables import Table, read_tables, told_rows

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
MAX_DESCRIPTION = 4096

# The context of the specification's appendix 1; it stands in the file, so that nobody has to fetch it.
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "annotation": "cr:annotation",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "duo": "http://purl.obolibrary.org/obo/DUO_",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "excludes": "cr:excludes",
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "readLines": "cr:readLines",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "sdVersion": "cr:sdVersion",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
    "unArchive": "cr:unArchive",
    "value": "cr:value",
}

# Labels of the Data Use Ontology (GA4GH), for people; the codes are what grants repeat.
DUO_LABELS = {
    "DUO:0000004": "no restriction",
    "DUO:0000006": "health or medical or biomedical research",
    "DUO:0000007": "disease specific research",
    "DUO:0000011": "population origins or ancestry research only",
    "DUO:0000012": "research specific restrictions",
    "DUO:0000015": "no general methods research",
    "DUO:0000016": "genetic studies only",
    "DUO:0000018": "not for profit, non commercial use only",
    "DUO:0000019": "publication required",
    "DUO:0000020": "collaboration required",
    "DUO:0000021": "ethics approval required",
    "DUO:0000022": "geographical restriction",
    "DUO:0000024": "publication moratorium",
    "DUO:0000025": "time limit on use",
    "DUO:0000026": "user specific restriction",
    "DUO:0000027": "project specific restriction",
    "DUO:0000028": "institution specific restriction",
    "DUO:0000029": "return to database or resource",
    "DUO:0000042": "general research use",
    "DUO:0000043": "clinical care use",
    "DUO:0000044": "population origins or ancestry research prohibited",
    "DUO:0000045": "not for profit organisation use only",
    "DUO:0000046": "non-commercial use only",
}

_FORMATS = {
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".parquet": "application/vnd.apache.parquet",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".dcm": "application/dicom",
    ".txt": "text/plain",
    ".wav": "audio/wav",
}
ON_SITE = "Files that stay at the site of their owner."
SHARED = "Files that their owner put into the hub on purpose."
SHARED_FILES = 500  # described one by one
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,7}")
_SPDX_ID = re.compile(r"(?!LicenseRef-|DocumentRef-)[A-Za-z0-9.-]+\+?")


def make_croissant(
    folder: Path,
    manifest: Manifest,
    *,
    description: str,
    license_id: str,
    duo: Sequence[str] = (),
    now: int | None = None,
) -> bytes:
    """The bytes of ``croissant.json`` for the files of a manifest; tables among them are read through once.

    Args:
        folder: where the files are.
        manifest: of these files. With a salt they stay on-site: only its name and the suffixes of its files
            are used. Without one they are shared: files are described by name, size and digest too.
        description: for people, one to 4,096 characters.
        license_id: SPDX expression.
        duo: terms of use, such as ``DUO:0000042``, which grants repeat in their condition ``duo``.
        now: date of publication, seconds since 1970; today when absent.
    Raises:
        Rejected: ``E_DATA`` for a table without a proper header, ``E_STATEMENT`` for a bad term or licence.
        Unchecked: ``E_INPUT``; a file cannot be read.
    Source: Croissant format specification 1.1, with "Data Use Conditions" for ``usageInfo``.
    """
    if not 0 < len(description) <= MAX_DESCRIPTION:
        raise Rejected("E_DATA", f"description: expected 1 to {MAX_DESCRIPTION} characters")
    check_license(license_id, "license")
    names = [entry.name for entry in manifest.files]
    tables = read_tables(folder, names)
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "description": description,
        "url": f"{NAMESPACE}dataset/{manifest.name}",
        "license": _license(license_id),
        "creator": {"@type": "sc:Organization", "name": manifest.name.partition("/")[0]},
        "datePublished": format_time(int(time()) if now is None else now)[:10],
        "usageInfo": [_term(code) for code in sorted(set(duo))],
        "distribution": _distribution(manifest),
        "recordSet": [_record_set(table, number) for number, table in enumerate(tables, start=1)],
    }
    return canonical({name: value for name, value in document.items() if value != []}, code="E_DATA")


def _license(license_id: str) -> str:
    return f"https://spdx.org/licenses/{license_id}" if _SPDX_ID.fullmatch(license_id) else license_id


def _term(code: str) -> dict[str, Any]:
    duo_term(code, "duo")
    return {
        "@type": "sc:DefinedTerm",
        "name": DUO_LABELS.get(code, code),
        "termCode": code,
        "url": code.replace("DUO:", "duo:"),
    }


def _suffix(name: str) -> str:
    """The kind of a file; a suffix that could tell more than a kind is left out."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in _FORMATS or _SUFFIX.fullmatch(suffix) else ""


def _set_id(suffix: str) -> str:
    return f"{suffix[1:]}-files" if suffix else "files"


def _distribution(manifest: Manifest) -> list[dict[str, Any]]:
    """Kinds of files; where they are shared also the files themselves, the first so many by name."""
    shared = manifest.salt is None
    where = SHARED if shared else ON_SITE
    files = [_file_object(entry) for entry in manifest.files[:SHARED_FILES]] if shared else []
    return files + [_file_set(suffix, where) for suffix in sorted({_suffix(e.name) for e in manifest.files})]


def _file_object(entry: FileEntry) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"file/{quote(entry.name)}",
        "name": entry.name,
        "contentUrl": quote(entry.name),  # beside this description, in the folder that a pull gives
        "contentSize": f"{entry.size} B",
        "encodingFormat": _FORMATS.get(_suffix(entry.name), "application/octet-stream"),
        "sha256": entry.sha256,
    }


def _file_set(suffix: str, where: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": _set_id(suffix),
        "name": _set_id(suffix),
        "description": where,
        "encodingFormat": _FORMATS.get(suffix, "application/octet-stream"),
        "includes": f"**/*{suffix}",
    }


def _record_set(table: Table, number: int) -> dict[str, Any]:
    identity = f"table-{number}"
    return {
        "@type": "cr:RecordSet",
        "@id": identity,
        "name": identity,
        "description": f"{len(table.columns)} columns, {told_rows(table.rows)}.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{identity}/{quote(column.name, safe='')}",
                "name": column.name,
                "dataType": column.data_type,
                "source": {"fileSet": {"@id": _set_id(table.suffix)}, "extract": {"column": column.name}},
            }
            for column in table.columns
        ],
    }
