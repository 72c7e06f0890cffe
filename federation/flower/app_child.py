"""The process in which a lab's own code runs: one ClientApp of one bundle, shut in before it is loaded.

``python -m federation.flower.app_child PARENT`` reads one line of JSON (what to load, what it may use), shuts
itself in (``federation.confinement``), loads the ClientApp and then answers one line of JSON for each line.
Weights come and go as safetensors files in its own folder; the app sees a stock Message with one ArrayRecord
and one ConfigRecord, as Flower's own strategies send it. What it prints stays at the site. An exception in
it ends the process; only the name of its type is told.

Nothing that could start a thread (numpy, flwr, torch) may be imported before ``confine``.
"""

import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from federation.confinement import Bounds, confine, system_paths
from federation.lifeline import die_with
from storage.errors import FedhubError

NODE = RUN = 1  # an app at a site sees one node and one run
MOST_METRICS = 32


class _Unfit(Exception):
    """A reply of the app that cannot be used; the text is one of ``app_process.UNFIT``."""


class _Line:
    """The line to the agent, which the app's prints cannot get into by accident."""

    def __init__(self) -> None:
        self._orders = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._answers = os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any] | None:
        line = self._orders.readline()
        return json.loads(line) if line else None

    def answer(self, told: dict[str, Any]) -> None:
        data = json.dumps(told, allow_nan=True).encode() + b"\n"
        while data:
            data = data[os.write(self._answers, data) :]

    def tell_fault(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """The last words of a process that an exception ends."""
        sys.__excepthook__(kind, error, trace)
        told: dict[str, Any] = {"fault": kind.__name__[:60]}
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            told = {"fault": "MemoryError"}
        elif isinstance(error, ModuleNotFoundError):
            told["missing"] = str(error.name)[:60]
        elif isinstance(error, _Unfit):
            told = {"unfit": str(error)}
        elif isinstance(error, FedhubError) and error.code == "E_APP_PROTECTION":
            told = {"protection": error.message[:300]}
        self.answer(told)


def main() -> int:
    """Serve until the agent closes the line."""
    die_with(int(sys.argv[1]))
    line = _Line()
    sys.excepthook = line.tell_fault
    setup = line.receive()
    if setup is None:
        return 0
    os.umask(0o077)
    work, data = Path(setup["work"]), Path(setup["data"])
    confine(
        Bounds(
            read=(*system_paths(), Path(setup["code"]), data),
            write=(work, Path(os.devnull)),
            memory=setup["memory"],
            file_size=setup["disk"],
        )
    )
    app, context = _load(setup)
    line.answer({"ready": True})
    while (order := line.receive()) is not None:
        line.answer(_perform(app, context, order, work))
    return 0


def _load(setup: dict[str, Any]) -> tuple[Any, Any]:
    """The ClientApp by Flower's own loader, and the context that it keeps from round to round."""
    from federation.flower.quiet import keep_quiet

    keep_quiet(Path(setup["work"]) / "flower")
    from flwr.app import Context, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.supercore.object_ref import load_app
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = RUN
    app = load_app(setup["client"], TypeError, setup["code"])
    if not isinstance(app, ClientApp):
        raise TypeError(f"{setup['client']} is no ClientApp")
    context = Context(
        run_id=RUN,
        node_id=NODE,
        node_config={"data": setup["data"]},
        state=RecordDict(),
        run_config=setup["settings"],
    )
    return app, context


def _perform(app: Any, context: Any, order: dict[str, Any], work: Path) -> dict[str, Any]:
    """One message to the app, and what it answered; tensors lie in ``output`` then."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from federation.tensors import TensorFile

    with TensorFile(work / order["input"]) as file:
        arrays = ArrayRecord({spec.name: Array(file.array(spec.name)) for spec in file.layout.tensors})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": order["round"]})})
    message = Message(content, dst_node_id=NODE, message_type=order["action"], group_id=str(order["round"]))
    message.metadata.__dict__["_message_id"] = "0" * 64  # a reply wants to name it
    reply = app(message, context)
    if not isinstance(reply, Message) or not reply.has_content():
        raise _Unfit("content")
    examples, metrics = _metrics(reply.content)
    if order["action"] == "train":
        _write(reply.content, work / order["output"])
    return {"done": True, "examples": examples, "metrics": metrics}


def _write(content: Any, path: Path) -> None:
    from federation.tensors import write_tensors
    from storage.errors import Misuse

    records = list(content.array_records.values())
    if len(records) != 1:
        raise _Unfit("arrays")
    try:
        write_tensors(path, {name: array.numpy() for name, array in records[0].items()})
    except Misuse as error:
        raise _Unfit("types") from error


def _metrics(content: Any) -> tuple[int, dict[str, int | float]]:
    """``num-examples`` and the other numbers; the agent checks both again."""
    found = {name: value for record in content.metric_records.values() for name, value in record.items()}
    examples = found.pop("num-examples", None)
    if not isinstance(examples, int | float) or examples != int(examples):
        raise _Unfit("examples")
    if len(found) > MOST_METRICS or not all(isinstance(value, int | float) for value in found.values()):
        raise _Unfit("metrics")
    return int(examples), found


def _run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    _run()
