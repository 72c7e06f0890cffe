"""Many sites in one process: real Fleet connections and agents, each with its own home, in threads.

``python tests/bench/many_sites.py HOME...`` serves until it is told to stop. For benchmarks with more sites than
this machine could hold processes for; what differs from ``fedhub site up`` is that the sites share one
interpreter and train one after another.
"""

import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))


from federation import training
from federation.agent import Agent
from federation.flower.node import GIVE_UP_S, Node, fleet_client
from federation.flower.quiet import keep_quiet
from federation.home import Home
from federation.ledger import SiteLedger


def serve(home: Home) -> None:
    """Be one home's node for ever."""
    from flwr.supernode.fleet_http_connection import http_request_response

    private = home.key("node")
    with ExitStack() as stack:
        client = stack.enter_context(home.client("snapshot"))
        ledger = stack.enter_context(SiteLedger(home.site / "ledger.db"))
        keys, roots = (private, private.public_key()), (home.path / "fleet-ca.pem").read_bytes()
        connection = stack.enter_context(
            http_request_response(
                home.fleet,
                insecure=False,
                root_certificates=roots,
                authentication_keys=keys,
                max_retries=None,
                max_wait_time=GIVE_UP_S,
            )
        )
        fleet = stack.enter_context(fleet_client(home, keys, roots))
        Node(connection, fleet, Agent(home, client, ledger)).serve()


def main() -> None:
    homes = [Home.open(Path(path)) for path in sys.argv[1:]]
    for home in homes:
        home.site.mkdir(parents=True, exist_ok=True, mode=0o700)
    keep_quiet(homes[0].site / "flower")
    import federation.recipes.loop  # noqa: F401 - torch, once

    one_at_a_time, train = threading.Lock(), training.train

    def take_turns(*arguments: Any, **options: Any) -> Any:
        with one_at_a_time:  # torch's seeds and thread count are the process's
            return train(*arguments, **options)

    training.train = take_turns
    threads = [threading.Thread(target=serve, args=(home,), daemon=True) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
