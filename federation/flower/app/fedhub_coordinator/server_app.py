"""The ServerApp that Flower starts for a run."""

from federation.flower.coordinator import make_app

app = make_app()
