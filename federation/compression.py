"""Updates in fewer bytes: what travels instead of wide floats, how it is read back, what the site keeps.

A plan names one form for all its sites: ``bf16`` and ``fp16`` narrow every wider float; ``int8`` sends a
signed byte for each float and one float32 scale for each ``BLOCK`` of them. Other tensors travel whole, as
ever. What rounding loses is not lost: the site keeps it as its *residual* and adds it to the next round's
change (error feedback), so that small steps add up instead of vanishing.

Every operation is one that IEEE 754 defines exactly, element by element, so a site's update and what a
coordinator reads from it are the same bytes on any machine. Readers decode piece by piece: memory stays flat.

Letters: n elements of a tensor, B blocks of it.
Source: error feedback after Karimireddy et al. 2019 (arXiv 1901.09847), Algorithm 2; ``int8`` is absmax
scaling by blocks, after Dettmers et al. 2022 (arXiv 2110.02861), section 2.1, with linear steps.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from federation.tensors import (
    Array,
    FileDigest,
    Layout,
    TensorFile,
    TensorSpec,
    TensorWriter,
    compute_dtype,
    sorted_layout,
    to_stored,
    widen_bf16,
)
from storage.errors import Rejected, Unchecked

BLOCK = 1024  # elements that share one scale
PIECE = 64 * BLOCK  # elements of a change at a time: few enough for the processor's cache
STEPS = 127  # the largest code; -128 is not used, so that both signs reach alike

_NARROW = {"bf16": "BF16", "fp16": "F16", "int8": "I8"}
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I8": 1}
_LARGEST = {"BF16": float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0]), "F16": 65504.0}


@dataclass(frozen=True)
class Feedback:
    """How a site sends one round's update.

    Attributes:
        compression: a plan's ``compression``.
        before: the residual that the site's last round of this plan left; None when there is none.
        after: where this round's residual goes; None when no round follows.
    """

    compression: str = "none"
    before: Path | None = None
    after: Path | None = None


# --- the form that travels --------------------------------------------------------------------------------


def narrow_dtype(spec: TensorSpec, compression: str) -> str | None:
    """The type in which a float tensor travels, or None when it travels as it is.

    >>> narrow_dtype(TensorSpec("w", "F32", (2,)), "int8"), narrow_dtype(TensorSpec("w", "F16", (2,)), "bf16")
    ('I8', None)
    """
    target = _NARROW.get(compression)
    if target is None or not spec.is_float or _BYTES[target] >= _BYTES[spec.dtype]:
        return None
    return target


def scales_name(name: str) -> str:
    """Name of the tensor with the scales of tensor ``name``, shape (B,)."""
    return f"{name}#scales"


def wire_layout(layout: Layout, compression: str) -> Layout:
    """The layout of an update to weights of ``layout``.

    Raises:
        Rejected: ``E_LAYOUT``: the weights have a tensor with the name that a scale needs.

    >>> [t.name for t in wire_layout(Layout((TensorSpec("w", "F32", (2000,)),)), "int8").tensors]
    ['w#scales', 'w']
    """
    if compression == "none":
        return layout
    specs = []
    for spec in layout.tensors:
        narrow = narrow_dtype(spec, compression)
        specs.append(TensorSpec(spec.name, narrow or spec.dtype, spec.shape))
        if narrow == "I8":
            specs.append(TensorSpec(scales_name(spec.name), "F32", (-(-spec.count // BLOCK),)))
    if len({spec.name for spec in specs}) < len(specs):
        raise Rejected(
            "E_LAYOUT",
            f"compression {compression}: the weights have a tensor whose name ends in '#scales'",
            "rename the tensor, or plan without int8",
        )
    return sorted_layout(specs)


class UpdateFile(TensorFile):
    """One site's update, open for reading as the changes it stands for."""

    def __init__(
        self, path: Path, layout: Layout, compression: str = "none", *, size: int | None = None
    ) -> None:
        """Open and check the header.

        Args:
            layout: of the weights that the update is to.
            size: in bytes, as announced.
        Raises:
            As ``TensorFile``; a file in another form than the plan's is ``E_LAYOUT``.
        """
        super().__init__(path, expect=wire_layout(layout, compression), size=size)
        self._scaled = {spec.name for spec in layout.tensors if narrow_dtype(spec, compression) == "I8"}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Elements ``start`` to ``stop`` of one tensor's change, flat, shape (n,); scaled ones as float32."""
        codes = super().read(name, start, stop)
        if name not in self._scaled or codes.size == 0:
            return codes
        first, last = start // BLOCK, (start + codes.size - 1) // BLOCK
        scales = super().read(scales_name(name), first, last + 1)
        return _scaled(codes, scales, start - first * BLOCK)


def _scaled(codes: Array, scales: Array, offset: int) -> Array:
    """What codes mean, float32, shape (n,); the first is at place ``offset`` of the first scale's block."""
    spread = np.repeat(scales, BLOCK)[offset : offset + codes.size]
    with np.errstate(over="ignore", under="ignore"):
        values: Array = codes.astype(np.float32) * spread
    return values


# --- at the site ------------------------------------------------------------------------------------------


Changed = Callable[[TensorSpec, int, int], Array]


def write_update(path: Path, changed: Changed, layout: Layout, feedback: Feedback) -> FileDigest:
    """Write an update in the form of its plan, and what it leaves out as the next residual.

    Args:
        changed: elements from a start to a stop of one tensor, flat, in the tensor's own type: of a float its
            change, of any other tensor its values. Asked for in pieces, and for ``int8`` twice, so that an
            update is never in memory beside the weights.
        layout: of the weights. feedback: ``before`` is read, ``after`` written, both before this returns.
    Raises:
        Rejected: ``E_RESIDUAL``: the residual is not of these weights.
    """
    wire = wire_layout(layout, feedback.compression)
    kept = {spec.name: spec for spec in layout.tensors if narrow_dtype(spec, feedback.compression)}
    scaled = (
        {scales_name(spec.name): spec for spec in kept.values()} if feedback.compression == "int8" else {}
    )
    rests = Layout(
        tuple(
            TensorSpec(spec.name, "F64" if kept[spec.name].dtype == "F64" else "F32", spec.shape)
            for spec in wire.tensors
            if spec.name in kept
        )
    )
    with ExitStack() as stack:
        old = None if feedback.before is None else stack.enter_context(_open_residual(feedback.before, rests))
        new = None if feedback.after is None else stack.enter_context(TensorWriter(feedback.after, rests))
        writer = stack.enter_context(TensorWriter(path, wire))

        def wide(spec: TensorSpec, start: int, stop: int) -> Array:
            values: Array = changed(spec, start, stop).astype(compute_dtype(spec.dtype))
            if old is not None:
                values += old.read(spec.name, start, stop)
            return values

        for spec in wire.tensors:
            source = scaled.get(spec.name) or kept.get(spec.name) or spec
            for start, stop in _pieces(source):
                if spec.name in scaled:
                    writer.write(_scale(wide(source, start, stop))[1])
                elif spec.name in kept:
                    whole = wide(source, start, stop)
                    narrowed, meant = _encode(whole, spec.dtype)
                    writer.write(narrowed)
                    if new is not None:
                        new.write(whole - meant)
                else:
                    writer.write(changed(spec, start, stop))
        if new is not None:
            new.finish()
        return writer.finish()


def _pieces(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    """The (start, stop) pairs of a tensor's pieces; blocks are whole in each but the last."""
    for start in range(0, spec.count, PIECE):
        yield start, min(start + PIECE, spec.count)


def _encode(wide: Array, dtype: str) -> tuple[Array, Array]:
    """What stands for ``wide``, shape (n,) from a block's start, and what a reader makes of it, in its type.

    A value beyond what the type holds becomes its largest; the residual carries the rest.
    """
    if dtype == "I8":
        codes, scales = _scale(wide)
        return codes, _scaled(codes, scales, 0).astype(wide.dtype)
    most = wide.dtype.type(_LARGEST[dtype])
    stored = to_stored(np.clip(wide, -most, most), dtype)
    if dtype == "BF16":
        stored = widen_bf16(stored)  # a writer takes bfloat16 as float32
    return stored, stored.astype(wide.dtype)


def _scale(wide: Array) -> tuple[Array, Array]:
    """Codes, int8, shape (n,), and scales, float32, shape (B,): value = code times its block's scale."""
    if wide.size == 0:
        return np.empty(0, np.int8), np.empty(0, np.float32)
    largest = np.maximum.reduceat(np.abs(wide), np.arange(0, wide.size, BLOCK))
    ceiling = np.finfo(np.float32).max / (STEPS + 1)
    with np.errstate(under="ignore"):
        scales: Array = np.minimum(largest / largest.dtype.type(STEPS), ceiling).astype(np.float32)
        steps = np.where(scales > 0, scales, np.float32(1))
        ratio = wide / np.repeat(steps, BLOCK)[: wide.size].astype(wide.dtype)
    codes: Array = np.clip(np.rint(ratio), -STEPS, STEPS).astype(np.int8)
    return codes, scales


def _open_residual(path: Path, layout: Layout) -> TensorFile:
    try:
        return TensorFile(path, expect=layout)
    except (Rejected, Unchecked) as error:
        raise Rejected(
            "E_RESIDUAL",
            f"what the last update left out cannot be read: {error.message}",
            f"remove {path}: one rounding error is lost, and training goes on",
        ) from error
