"""Run by a stock client's own Python: what ``mlflow-skinny`` sees of the hub in ``MLFLOW_TRACKING_URI``.

``python mlflow_client.py FOLDER [[TOKEN, MODEL, [URI…]]…]`` prints JSON, for each token: what the registry says of MODEL, and
for each URI the digests of the files that came, or the error. Nothing of the product is imported.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import mlflow
import requests
from mlflow.exceptions import MlflowException


def attempt(call, *arguments, **options):
    """What a call gives, or the error that it ends in."""
    try:
        return call(*arguments, **options)
    except MlflowException as error:
        return [error.error_code, str(error)]
    except requests.HTTPError as error:
        return [error.response.status_code, error.response.json()["error_code"]]


def fetch(uri: str, folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    place = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    root = place if place.is_dir() else place.parent
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def look(model: str, uris: list[str], folder: Path) -> dict:
    client = mlflow.MlflowClient()

    def registered():
        found = client.get_registered_model(model)
        versions = client.search_model_versions(f"name='{model}'")
        return {
            "name": found.name,
            "aliases": found.aliases,
            "latest": [int(one.version) for one in found.latest_versions],
            "versions": [int(one.version) for one in versions],
            "tags": versions[0].tags,
            "same": int(client.get_model_version(model, versions[0].version).version),
            "searched": [one.name for one in client.search_registered_models(f"name='{model}'")],
        }

    seen = {"version": mlflow.__version__, "model": attempt(registered)}
    seen["fetched"] = {uri: attempt(fetch, uri, folder / str(n)) for n, uri in enumerate(uris)}
    return seen


def main() -> None:
    folder, told = Path(sys.argv[1]), []
    for number, (token, model, uris) in enumerate(json.loads(sys.argv[2])):
        os.environ.pop("MLFLOW_TRACKING_TOKEN", None)
        if token is not None:
            os.environ["MLFLOW_TRACKING_TOKEN"] = token
        told.append(look(model, uris, folder / str(number)))
    print(json.dumps(told))


main()
