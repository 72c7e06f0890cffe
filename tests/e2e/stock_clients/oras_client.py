"""Run by a stock client's own Python: what the ``oras`` library pulls.

``python oras_client.py FOLDER TARGET [TOKEN]`` prints one JSON object: digests of files and the tags that it lists.
"""

import hashlib
import json
import sys
from pathlib import Path

import oras.client


def main() -> None:
    folder, target, token = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    client = oras.client.OrasClient(insecure=True)
    if token:
        client.auth.set_basic_auth("anybody", token[0])
    files = client.pull(target=target, outdir=str(folder))
    tags = client.get_tags(target.rpartition(":")[0])
    found = {
        str(Path(p).relative_to(folder)): hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in files
    }
    print(json.dumps({"files": found, "tags": tags}))


main()
