"""flwr's internal names that we stand on. A failure here names what moved, and which of our files uses it."""

import ast
import dataclasses
import importlib
import inspect
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from federation.flower.quiet import QUIET, keep_quiet

keep_quiet()

FOLDER = Path(__file__).resolve().parents[2] / "federation" / "flower"


def imported() -> Iterator[tuple[str, str, str]]:
    """(our file, module of flwr, name) of everything that we import from flwr."""
    for path in sorted(FOLDER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "flwr":
                for alias in node.names:
                    yield path.name, node.module, alias.name


USED = sorted(set(imported()))


def find(path: str) -> Any:
    """A thing of flwr by its dotted path, told plainly when it has moved."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"flwr {version('flwr')} has no {path} any more: {error}")


@pytest.mark.parametrize(("file", "module", "name"), USED)
def test_every_name_that_we_import_from_flwr_is_there(file: str, module: str, name: str) -> None:
    try:
        found = importlib.import_module(module)
        moved = not hasattr(found, name)
        if moved:
            importlib.import_module(f"{module}.{name}")
    except ImportError as error:
        pytest.fail(f"federation/flower/{file}: flwr {version('flwr')} has moved {module}.{name}: {error}")


def test_flwr_is_imported_in_one_folder_only() -> None:
    root = FOLDER.parents[1]
    others = [
        path
        for package in ("hub", "federation", "storage")
        for path in (root / package).rglob("*.py")
        if FOLDER not in path.parents
    ]
    bad = [
        str(path.relative_to(root))
        for path in others
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "flwr" for alias in node.names))
    ]
    assert bad == []


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        (
            "flwr.supernode.fleet_http_connection.http_request_response",
            {
                "server_address",
                "insecure",
                "root_certificates",
                "authentication_keys",
                "max_retries",
                "max_wait_time",
            },
        ),
        (
            "flwr.supercore.inflatable.inflatable_utils.pull_objects",
            {"object_ids", "pull_object_fn", "initial_backoff", "backoff_cap"},
        ),
        (
            "flwr.superlink.runtime.run_serverapp",
            {
                "runtime_api_address",
                "log_queue",
                "token",
                "insecure",
                "certificates",
                "parent_pid",
                "runtime_dependency_install",
            },
        ),
        ("flwr.superlink.main.create_app", {"config", "superlink_lifespan_class"}),
        ("flwr.cli.build.build_fab_from_files", {"files"}),
        ("flwr.superlink.servicer.runtime.runtime_handlers.acquire_task", {"request", "state"}),
    ],
)
def test_functions_take_what_we_give_them(path: str, needed: set[str]) -> None:
    missing = needed - parameters(find(path))
    assert not missing, f"{path} of flwr {version('flwr')} takes no {', '.join(sorted(missing))} any more"


def test_the_configuration_of_superlink_has_exactly_the_fields_that_we_set() -> None:
    source = (FOLDER / "superlink.py").read_text()
    (call,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SuperLinkLifespanConfig"
    ]
    ours = {keyword.arg for keyword in call.keywords}
    theirs = {
        field.name
        for field in dataclasses.fields(find("flwr.superlink.config_loader.SuperLinkLifespanConfig"))
    }
    assert ours == theirs, f"SuperLinkLifespanConfig has changed: {sorted(ours ^ theirs)}"


def test_superlinks_middlewares_are_those_we_know() -> None:
    """``Calls`` takes the steps of the last three; the control ones look at no other path."""
    from federation.flower import superlink

    names = {one.cls.__name__ for one in find("flwr.superlink.main._get_middleware")()}
    control = {"ControlSensitiveResponseMiddleware", "ControlAuthenticationMiddleware"}
    taken = {"BaseHTTPMiddleware", "ProtobufTranslationMiddleware", "NodeAuthMiddleware"}
    known = {*superlink._IDLE, *control, *taken}
    assert names == known, f"read the source of {sorted(names ^ known)} and decide what Calls has to do"


def test_flwrs_functions_behind_the_frequent_calls_ask_for_nothing_that_we_do_not_give() -> None:
    from federation.flower.calls import OFTEN

    for module, given in (
        ("flwr.superlink.routers.fleet.router", {"request", "state"}),
        ("flwr.supercore.routers.runtime.router", {"request", "state", "handlers", "task"}),
    ):
        for route in find(f"{module}.router").routes:
            if route.path.rpartition("/")[2] in OFTEN:
                asked = parameters(inspect.unwrap(route.endpoint))
                assert asked <= given, f"{route.path} asks for {sorted(asked - given)} too"


def test_grid_nodes_messages_and_state_have_the_members_that_we_use() -> None:
    grid = find("flwr.superlink.grid.HttpGrid")
    assert {"get_nodes", "run", "_runtime_client"} <= set(dir(grid))
    runtime = find("flwr.supercore.runtime.RuntimeHttpClient")
    assert {"PushMessages", "PullMessages", "PushObject", "PullObject", "ConfirmMessageReceived"} <= set(
        dir(runtime)
    )
    node = find("flwr.proto.node_pb2.NodeInfo")
    assert {"node_id", "status", "name", "public_key", "last_activated_at"} <= set(
        node.DESCRIPTOR.fields_by_name
    )
    state = find("flwr.server.superlink.linkstate.LinkState")
    assert {"get_run_info", "activate_task", "finish_task"} <= set(dir(state))
    metadata = find("flwr.app.Metadata")
    assert "reply_to_message_id" in dir(metadata)
    fleet = find("flwr.supernode.fleet_http_client.FleetHttpClient")
    assert {"DeactivateNode", "PullMessages", "PushMessages"} <= set(dir(fleet))
    control = find("flwr.supercore.control.control_http_client.ControlHttpClient")
    calls = {"StartRun", "StopRun", "ListRuns", "StreamLogs", "RegisterNode", "UnregisterNode", "ListNodes"}
    assert calls <= set(dir(control))


def test_flwr_reads_the_variables_that_keep_it_quiet() -> None:
    telemetry = importlib.import_module("flwr.supercore.telemetry")
    assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
    constants = (
        importlib.import_module("flwr.supercore.constant"),
        importlib.import_module("flwr.common.constant"),
    )
    known = {value for module in constants for value in vars(module).values() if isinstance(value, str)}
    ours = {name for name in QUIET if name.startswith("FLWR_")} - {"FLWR_TELEMETRY_ENABLED"}
    assert ours <= known
    assert all(os.environ[name] == value for name, value in QUIET.items())


def test_flwr_is_pinned_to_the_minor_version_that_was_read() -> None:
    assert version("flwr").startswith("1.42.")
