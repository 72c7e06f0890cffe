"""A ClientApp that does nothing: sites run lab agents, which never load code that came with a run."""

from flwr.clientapp import ClientApp

app = ClientApp()
