"""Folds the updates of one round into the next weights: streaming, in fixed order, in flat memory.

An update is a safetensors file with the layout of the base weights: float tensors hold the site's delta,
other tensors (buffers) the site's whole value; a plan may have floats travel in fewer bytes
(``compression``). New weights are the input moved by the merged deltas. Tensors
are read in pieces and written through a hashing writer, so peak memory depends neither on
the model nor on the number of sites: ``BLOCK`` elements over all sites together. Same files in, same bytes
out, on any machine. Strategies that pick sites (Krum, Multi-Krum, Bulyan) read the updates twice.

Letters: S sites, n elements of a piece. Deliberately without network, torch and flwr.
"""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federation.ahead import ahead
from federation.compression import UpdateFile
from federation.errors import UpdateRejected
from federation.strategies import Strategy
from federation.tensors import (
    Array,
    FileDigest,
    Layout,
    TensorFile,
    TensorSpec,
    TensorWriter,
    compute_dtype,
    to_stored,
    widen_bf16,
)
from storage.errors import Misuse, Rejected, Unchecked

BLOCK = (
    1 << 19
)  # elements in memory at a time, over all sites together: few enough for the processor's caches
_NORM_PIECE = 1 << 13  # elements added up at a time for a distance: few enough for the processor's cache


@dataclass(frozen=True)
class SiteUpdate:
    """One site's update, ready to be folded in.

    Attributes:
        site: how messages name it.
        weight: a whole number above 0, from ``site_weight``.
    """

    site: str
    path: Path
    weight: int


@dataclass(frozen=True)
class AggregationResult:
    """What one round made.

    Attributes:
        sha256, size: of the new weights.
        folded: sites in the order they were folded in; with Krum, only those picked.
        state: the server optimiser's files by slot, empty for strategies that remember nothing.
    """

    sha256: str
    size: int
    folded: tuple[str, ...]
    state: dict[str, FileDigest]


def site_weight(site: str, examples: object, weighting: str, max_examples: int) -> int:
    """What one site weighs in the mean, from its own word on its examples.

    Args:
        weighting: "examples", capped so that no site can take the whole average, or "equal".
    Raises:
        UpdateRejected: ``E_EXAMPLES``: not a whole number from 1 to 2^53.
    """
    if type(examples) is not int or not 1 <= examples < 1 << 53:
        raise UpdateRejected("E_EXAMPLES", f"{site}: examples should be a whole number above 0", site=site)
    return 1 if weighting == "equal" else min(examples, max_examples)


def check_update(
    site: str, path: Path, layout: Layout, *, size: int | None = None, compression: str = "none"
) -> None:
    """Check one update alone, as soon as it has landed.

    Args:
        layout: of the weights that the round began with.
        size: in bytes, as announced. compression: the plan's.
    Raises:
        UpdateRejected: ``E_TENSORS``, ``E_LAYOUT`` or ``E_NOT_FINITE``.
    """
    with _open_update(site, path, layout, compression, size) as file:
        for spec in layout.tensors:
            for start, stop in file.pieces(spec.name):
                _check_values(site, spec, file.read(spec.name, start, stop))


def aggregate(
    strategy: Strategy,
    start: Path,
    updates: Sequence[SiteUpdate],
    out: Path,
    *,
    compression: str = "none",
    round_number: int = 1,
    state: Path | None = None,
    next_state: Path | None = None,
) -> AggregationResult:
    """Fold updates into weights.

    Args:
        start: the weights that the round began with.
        updates: in the plan's order of participants.
        out: where the new weights go; nothing stands there unless all went well.
        compression: the form of the updates, as the plan says.
        state: folder of the server optimiser's state after the round before; None before round 1.
        next_state: existing folder for its state after this round; needed by FedAvgM, FedAdam, FedYogi and
            FedAdagrad, unused by the others. It must outlive the process for a run to go on after a crash.
    Raises:
        Refused: ``E_TOO_FEW_UPDATES``.
        UpdateRejected: one site's update is at fault; ``site`` says whose.
        Rejected: ``E_NOT_FINITE``: the sum is beyond what the tensor's type holds; ``E_STATE``: the state is
            not of the round before; ``E_TENSORS``: the start weights are malformed.
    """
    if not updates:
        raise Misuse("E_NO_UPDATES", "a round without updates has no aggregate")
    strategy.check_count(len(updates))
    with ExitStack() as stack:
        base = stack.enter_context(TensorFile(start))
        files = [
            stack.enter_context(_open_update(one.site, one.path, base.layout, compression)) for one in updates
        ]
        if strategy.select is not None:
            picked = strategy.select(_distances(base.layout, updates, files))
            updates, files = [updates[i] for i in picked], [files[i] for i in picked]
        memory = stack.enter_context(_Memory(strategy, base.layout, round_number, state, next_state))
        writer = stack.enter_context(TensorWriter(out, base.layout, base.metadata))
        made_pieces = _folded(strategy, _read_pieces(base, updates, files), updates, memory, round_number)
        with closing(ahead(made_pieces)) as pieces:  # read, fold, write and hash: side by side
            for piece in pieces:
                writer.write(piece)
        saved = memory.finish()
        made = writer.finish()
    return AggregationResult(made.sha256, made.size, tuple(one.site for one in updates), saved)


@dataclass(frozen=True)
class _Piece:
    """One piece of one tensor: of the weights (floats only), and of all updates, each of shape (n,)."""

    spec: TensorSpec
    start: int
    stop: int
    old: Array | None
    values: list[Array]


def _read_pieces(
    base: TensorFile, updates: Sequence[SiteUpdate], files: Sequence[TensorFile]
) -> Generator[_Piece, None, None]:
    for spec in base.layout.tensors:
        for start, stop in base.pieces(spec.name, max(1, BLOCK // len(files))):
            values = [file.read(spec.name, start, stop) for file in files]
            for one, piece in zip(updates, values, strict=True):
                _check_values(one.site, spec, piece)
            old = base.read(spec.name, start, stop) if spec.is_float else None
            yield _Piece(spec, start, stop, old, values)


def _folded(
    strategy: Strategy,
    pieces: Generator[_Piece, None, None],
    updates: Sequence[SiteUpdate],
    memory: "_Memory",
    round_number: int,
) -> Generator[Array, None, None]:
    """The new weights, piece by piece."""
    with closing(ahead(pieces)) as read:
        for piece in read:
            if piece.old is None:
                yield _settle(strategy, piece.values, updates)
            else:
                place = (piece.start, piece.stop)
                yield _move(
                    strategy, piece.spec, piece.old, piece.values, updates, memory, place, round_number
                )


def _move(
    strategy: Strategy,
    spec: TensorSpec,
    old: Array,
    deltas: Sequence[Array],
    updates: Sequence[SiteUpdate],
    memory: "_Memory",
    piece: tuple[int, int],
    round_number: int,
) -> Array:
    """New weights of one piece, shape (n,), in the type the sum was kept in."""
    dtype = compute_dtype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        wide = [delta.astype(dtype, copy=False) for delta in deltas]
        delta = strategy.merge(wide, [one.weight for one in updates])
        new, kept = strategy.step(
            old.astype(dtype, copy=False), delta, memory.read(spec, *piece), round_number
        )
        stored = to_stored(new, spec.dtype)
        fits = widen_bf16(stored) if spec.dtype == "BF16" else stored
        finite = np.isfinite(fits).all() and all(np.isfinite(slot).all() for slot in kept)
    if not finite:
        raise Rejected(
            "E_NOT_FINITE",
            f"tensor {spec.name}: the new weights are no finite {spec.dtype}, or those before were not",
            "look at the sites' norms and lower the learning rate",
        )
    memory.write(kept)
    return new


def _settle(strategy: Strategy, values: Sequence[Array], updates: Sequence[SiteUpdate]) -> Array:
    """One value for a buffer, always one that a site has sent: blends of indices or counts mean nothing.

    The heaviest site's (the first among equals); the lower middle one of each element for robust strategies.
    """
    if strategy.merge.robust:
        middle: Array = np.sort(np.stack(values), axis=0)[(len(values) - 1) // 2]
        return middle
    heaviest = max(range(len(updates)), key=lambda place: (updates[place].weight, -place))
    return values[heaviest]


def _open_update(
    site: str, path: Path, layout: Layout, compression: str, size: int | None = None
) -> UpdateFile:
    try:
        return UpdateFile(path, layout, compression, size=size)
    except Rejected as error:
        raise UpdateRejected(
            error.code, f"update of {site}: {error.message}", error.hint, site=site
        ) from error


def _check_values(site: str, spec: TensorSpec, values: Array) -> None:
    """Refuse NaN and infinity in floats, and bytes that are neither 0 nor 1 in booleans."""
    if spec.is_float:
        good = np.isfinite(values).all()
    elif spec.dtype == "BOOL":
        good = (values.view(np.uint8) <= 1).all()
    else:
        return
    if not good:
        raise UpdateRejected(
            "E_NOT_FINITE",
            f"update of {site}: tensor {spec.name} holds a value that is no finite {spec.dtype}",
            "the site should lower its learning rate or look at its data",
            site=site,
        )


def _distances(
    layout: Layout, updates: Sequence[SiteUpdate], files: Sequence[TensorFile]
) -> list[list[float]]:
    """Squared L2 distances between all pairs of updates over their float tensors, S x S, in float64.

    By differences rather than by a Gram matrix: equal updates are at distance 0 exactly, and there is no
    cancellation. The price is S (S - 1) / 2 passes over each piece in memory.
    """
    sites = len(files)
    total = np.zeros((sites, sites))
    for spec in (tensor for tensor in layout.tensors if tensor.is_float):
        for start, stop in files[0].pieces(spec.name, max(1, min(_NORM_PIECE, BLOCK // sites))):
            block = np.empty((sites, stop - start))
            for place, (one, file) in enumerate(zip(updates, files, strict=True)):
                block[place] = piece = file.read(spec.name, start, stop)
                _check_values(one.site, spec, piece)
            for place in range(sites - 1):
                total[place, place + 1 :] += sums_of_squares(block[place + 1 :] - block[place])
    both: list[list[float]] = (total + total.T).tolist()
    return both


def sums_of_squares(values: Array) -> Array:
    """The sum of squares of each row, shape (S, n) to (S,), float64, added in halves; ``values`` is used up.

    Library sums and dot products choose their order by the processor; element-wise addition cannot.

    >>> sums_of_squares(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.5]])).tolist()
    [14.0, 0.25]
    """
    with np.errstate(over="ignore"):
        values *= values
        count = values.shape[1]
        while count > 1:
            half = count // 2
            values[:, :half] += values[:, count - half : count]
            count -= half
    sums: Array = values[:, 0]
    return sums


class _Memory:
    """The server optimiser's memory: one safetensors file per slot, read and written beside the weights."""

    def __init__(
        self,
        strategy: Strategy,
        layout: Layout,
        round_number: int,
        state: Path | None,
        next_state: Path | None,
    ) -> None:
        self._slots = strategy.step.slots
        self._old: list[TensorFile] = []
        self._new: list[TensorWriter] = []
        if not self._slots:
            return
        if next_state is None:
            raise Misuse("E_STATE", f"{strategy.name} needs a folder for its state")
        if (state is None) != (round_number == 1):
            raise Misuse(
                "E_STATE", f"{strategy.name}: round {round_number} needs the state of the round before"
            )
        slots = Layout(
            tuple(
                TensorSpec(spec.name, "F64" if spec.dtype == "F64" else "F32", spec.shape)
                for spec in layout.tensors
                if spec.is_float
            )
        )
        with ExitStack() as undo:
            for slot in self._slots:
                name = f"{slot}.safetensors"
                if state is not None:
                    self._old.append(
                        undo.enter_context(_open_state(state / name, slots, strategy, round_number))
                    )
                metadata = {"strategy": strategy.name, "round": str(round_number)}
                self._new.append(undo.enter_context(TensorWriter(next_state / name, slots, metadata)))
            self._open_files = undo.pop_all()

    def read(self, spec: TensorSpec, start: int, stop: int) -> list[Array]:
        """The memory of one piece, one array of shape (n,) per slot; zeros before round 1."""
        if not self._slots:
            return []
        if not self._old:
            return [np.zeros(stop - start, compute_dtype(spec.dtype)) for _ in self._slots]
        return [file.read(spec.name, start, stop) for file in self._old]

    def write(self, kept: Sequence[Array]) -> None:
        for writer, values in zip(self._new, kept, strict=True):
            writer.write(values)

    def finish(self) -> dict[str, FileDigest]:
        return {slot: writer.finish() for slot, writer in zip(self._slots, self._new, strict=False)}

    def __enter__(self) -> "_Memory":
        return self

    def __exit__(self, *details: Any) -> None:
        if self._slots:
            self._open_files.close()


def _open_state(path: Path, layout: Layout, strategy: Strategy, round_number: int) -> TensorFile:
    try:
        file = TensorFile(path, expect=layout)
    except (Rejected, Unchecked) as error:
        raise type(error)("E_STATE", f"state of {strategy.name}: {error.message}", error.hint) from error
    expected = {"strategy": strategy.name, "round": str(round_number - 1)}
    if file.metadata != expected:
        file.close()
        raise Rejected("E_STATE", f"{path.name}: expected the state {expected}, found {file.metadata}")
    return file
