"""The error tree, its exit codes, and the table of steps."""

import re

import pytest

import storage.errors
from storage.errors import STEPS, Exit, FedhubError, Misuse, Refused, Rejected, Unchecked, shown, step_of


def drawn_tree() -> dict[str, str]:
    """Class -> parent as the docstring of the module draws it."""
    lines = re.findall(r"^    ([├└│─ ]*)([A-Z][A-Za-z]+) ", storage.errors.__doc__ or "", re.MULTILINE)
    root = lines[0][1]
    return {name: root for _, name in lines[1:]} | {root: "Exception"}


def test_drawn_tree_is_the_tree_of_classes() -> None:
    classes = {
        name: value.__bases__[0].__name__
        for name, value in vars(storage.errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert drawn_tree() == classes


@pytest.mark.parametrize(
    ("kind", "status"),
    [(Rejected, Exit.REFUSED), (Refused, Exit.REFUSED), (Unchecked, Exit.FAILED), (Misuse, Exit.FAILED)],
)
def test_each_error_knows_its_exit_code(kind: type[FedhubError], status: Exit) -> None:
    error = kind("E_X", "what went wrong", "what to do")
    assert error.exit is status
    assert (error.code, error.message, error.hint) == ("E_X", "what went wrong", "what to do")
    assert str(error) == "E_X: what went wrong"


def test_refusal_carries_status_and_field() -> None:
    error = Refused("E_X", "no", status=409, field="version")
    assert (error.status, error.field) == (409, "version")


def test_name_used_by_one_step_tells_its_step() -> None:
    assert Rejected("E_BUNDLE", "x").step == "V6"
    assert Rejected("E_PATH", "x").step == "V12"


def test_name_used_by_several_steps_tells_none_unless_said() -> None:
    assert step_of("E_REVOKED") is None
    assert Rejected("E_REVOKED", "x").step is None
    assert Rejected("E_REVOKED", "x", step="V14").step == "V14"


def test_steps_are_v1_to_v15_in_order() -> None:
    assert list(STEPS) == [f"V{number}" for number in range(1, 16)]
    assert all(re.fullmatch(r"E_[A-Z_]+", code) for codes in STEPS.values() for code in codes)


def test_strangers_value_is_shown_short_and_harmless() -> None:
    assert shown("\x1b[2J\u202eevil") == "'\\x1b[2J\\u202eevil'"
    assert len(shown("x" * 1000)) == 60
