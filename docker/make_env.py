"""Secrets and addresses for compose.yaml: random, mode 0600, never overwritten. Needs nothing but Python."""

import os
import secrets
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECRETS = ROOT / "secrets"
CONTAINER_USER = 10001  # who the containers run as when root prepares them


def write(path: Path, text: str, owner: int) -> None:
    """Create the file for its owner alone; an existing one is kept."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"kept  {path.relative_to(ROOT)}")
        return
    with os.fdopen(handle, "w") as file:
        file.write(text)
    if os.geteuid() == 0:
        os.chown(path, owner, owner)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> None:
    """Write what is missing."""
    user = os.geteuid() or CONTAINER_USER
    group = os.getegid() or CONTAINER_USER
    SECRETS.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(SECRETS, user, group)
    write(SECRETS / "postgres_password", secrets.token_hex(24), user)
    password = (SECRETS / "postgres_password").read_text()
    write(SECRETS / "database_url", f"postgresql+psycopg://fedhub:{password}@postgres:5432/fedhub", user)
    write(SECRETS / "store_access_key", f"fedhub{secrets.token_hex(7)}", user)
    write(SECRETS / "store_secret_key", secrets.token_hex(20), user)
    write(ROOT / ".env", f"FEDHUB_UID={user}\nFEDHUB_GID={group}\n", os.geteuid())


if __name__ == "__main__":
    main()
