"""Updates that tests make up."""

from collections.abc import Mapping

from federation.compression import Changed
from federation.tensors import Array


def as_changed(changes: Mapping[str, Array]) -> Changed:
    """Whole arrays as ``write_update`` asks for them."""
    return lambda spec, start, stop: changes[spec.name].reshape(-1)[start:stop]
