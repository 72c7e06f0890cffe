"""What a verification found, as data: one ``Step`` for each of V1 to V15, in their order.

A step holds, fails, or was not checked, with the reason; ``not checked`` never counts as ``ok``. A step
that holds may still have left a part unchecked, such as the files of an asset when nobody gave a folder;
those parts are counted too.
"""

from dataclasses import dataclass
from typing import Any, Literal

from storage.encoding import format_time
from storage.errors import Exit, Misuse, Rejected
from storage.links import AssetLevels

Outcome = Literal["ok", "failed", "not checked"]

STEP_NAMES: tuple[str, ...] = (
    "inputs and limits",
    "checkpoint",
    "witnesses",
    "saved checkpoint",
    "key rings",
    "bundles",
    "signatures",
    "log proofs",
    "statements",
    "keys in force",
    "status lists",
    "assets and files",
    "use of a grant",
    "receipts and rounds",
    "links and levels",
)


@dataclass(frozen=True)
class Finding:
    """What one step has to say when nothing failed.

    Attributes:
        what: what was checked, empty when nothing was.
        unchecked: parts that were not, each with its reason in brackets.
    """

    what: str
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """The outcome of one numbered step.

    Attributes:
        number: 1 to 15.
        outcome: ``ok``, ``failed`` or ``not checked``.
        what: what was checked, or the error's message.
        unchecked: parts that were not checked, with the reason.
        code: the error's name, when the step failed.
    """

    number: int
    outcome: Outcome
    what: str
    unchecked: tuple[str, ...] = ()
    code: str | None = None

    @property
    def id(self) -> str:
        """``V1`` to ``V15``."""
        return f"V{self.number}"

    @property
    def name(self) -> str:
        """What the step is about."""
        return STEP_NAMES[self.number - 1]

    def __str__(self) -> str:
        parts = [self.what] if self.what else []
        if self.code:
            parts.insert(0, self.code)
        if self.unchecked:
            parts.append(f"not checked: {', '.join(self.unchecked)}" if parts else ", ".join(self.unchecked))
        return f"{self.id:<4}{self.outcome:<12} {self.name}: {'; '.join(parts)}"


@dataclass(frozen=True)
class Report:
    """All steps taken, up to the first that failed.

    Attributes:
        steps: in order.
        error: the first failure, or None.
        at: the moment that was checked for, seconds since 1970.
        size, root: the pack's checkpoint (entries, 32 bytes); 0 and empty before V2 held.
        assets: the levels of each asset, when all steps held.
        institutions: whose rings were checked.
    """

    steps: tuple[Step, ...]
    error: Rejected | None
    at: int
    size: int
    root: bytes
    assets: tuple[AssetLevels, ...]
    institutions: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when no step failed."""
        return self.error is None

    @property
    def exit(self) -> Exit:
        """The exit code that this report means."""
        return Exit.DONE if self.ok else Exit.REFUSED

    @property
    def not_checked(self) -> tuple[str, ...]:
        """What was not checked, each with its step and the reason."""
        return tuple(f"{step.id} {part}" for step in self.steps for part in step.unchecked)

    @property
    def summary(self) -> str:
        """The last line of an answer: the verdict, and how much of it was not checked."""
        if self.error is not None:
            left = [f"V{number}" for number in range(len(self.steps) + 1, len(STEP_NAMES) + 1)]
            rest = f"; not taken: {left[0]} to V{len(STEP_NAMES)}" if left else ""
            return f"REFUSED by {self.steps[-1].id}: {self.error.code}{rest}"
        count = len(self.not_checked)
        rest = f"not checked: {count}" + (f" ({'; '.join(self.not_checked)})" if count else "")
        return f"VERIFIED as of {format_time(self.at)}; {rest}"

    def lines(self) -> list[str]:
        """The whole answer for a person."""
        shown = [str(step) for step in self.steps]
        for asset in self.assets:
            reached = "revoked by its owner" if asset.revoked else ", ".join(asset.levels)
            shown.append(f"  {asset.type} {asset.name} version {asset.version}: {reached}")
        if self.error is not None and self.error.hint:
            shown.append(f"  what to do: {self.error.hint}")
        return [*shown, self.summary]

    def as_json(self) -> dict[str, Any]:
        """The whole answer for a program."""
        error = self.error
        return {
            "verified": self.ok,
            "exit": int(self.exit),
            "at": format_time(self.at),
            "checkpoint": {"size": self.size, "root": self.root.hex()},
            "steps": [
                {
                    "step": step.id,
                    "name": step.name,
                    "outcome": step.outcome,
                    "what": step.what,
                    "not_checked": list(step.unchecked),
                    "error": step.code,
                }
                for step in self.steps
            ],
            "not_checked": list(self.not_checked),
            "assets": [
                {
                    "asset_id": asset.asset_id,
                    "name": asset.name,
                    "version": asset.version,
                    "type": asset.type,
                    "levels": list(asset.levels),
                    "revoked": asset.revoked,
                }
                for asset in self.assets
            ],
            "institutions": list(self.institutions),
            "error": None
            if error is None
            else {
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
                "step": self.steps[-1].id,
            },
        }


class Recorder:
    """Collects the steps of one verification; numbers must come in order, each once."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def hold(self, number: int, finding: Finding) -> None:
        """The step did not fail."""
        self._add(Step(number, "ok" if finding.what else "not checked", finding.what, finding.unchecked))

    def fail(self, number: int, error: Rejected) -> None:
        """The step failed; nothing comes after it."""
        self._add(Step(number, "failed", error.message, (), error.code))

    def _add(self, step: Step) -> None:
        if step.number != len(self.steps) + 1:
            raise Misuse("E_MISUSE", f"step {step.id} recorded after {len(self.steps)} others")
        self.steps.append(step)
