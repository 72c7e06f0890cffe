"""Writes docs/faults.md from the table of causes: ``python tests/docs/faults_page.py``."""

from pathlib import Path

from storage.causes import OWNERS, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
HEAD = """# Faults

Why a run, a site or a command stopped, whose move it is, and what that move is. The command line, the API (`cause`, `owner`, `step` of a problem
document; `error` and `faults` of a run), the run's page and the site's own log say these very words beside the code. Made from the code by
`python tests/docs/faults_page.py`; a test compares. `fedhub site check` looks for those of a site, before it joins and after.
"""


def page() -> str:
    """The page's text."""
    parts = [HEAD]
    for owner in OWNERS:
        parts.append(f"\n## For the {owner}\n\n| code | cause | next step |\n|---|---|---|\n")
        parts += [
            f"| `{each.code}` | {each.cause} | {each.step} |\n"
            for each in table().values()
            if each.owner == owner
        ]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
