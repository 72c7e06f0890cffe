"""Writes docs/settings.md from the settings themselves: ``python tests/docs/settings_page.py``."""

from pathlib import Path

from hub.settings import FROM_FILE, PREFIX, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
HEAD = """# Settings

Every setting of the hub's processes. A name marked with * can also come from a file: `NAME_FILE=/path`. Made from the code by
`python tests/docs/settings_page.py`; a test compares.

| variable | default | unit | meaning |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = []
    for name, field in Settings.model_fields.items():
        unit = field.json_schema_extra["unit"]
        default = "" if field.default is None else f"`{field.default}`" if str(field.default) else ""
        mark = "*" if name in FROM_FILE else ""
        rows.append(f"| `{PREFIX}{name.upper()}`{mark} | {default} | {unit} | {field.description} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
