"""Every setting of the hub's processes: unit, default and meaning, read from ``FEDHUB_*`` variables.

Secrets and addresses can also come from a file: ``FEDHUB_STORE_SECRET_KEY_FILE=/run/secrets/s3`` reads the
value from there, so that no secret need stand in an environment listing. Giving both forms is refused.
"""

import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from storage.errors import Unchecked

PREFIX = "FEDHUB_"
FROM_FILE = (
    "database_url",
    "store_url",
    "store_public_url",
    "store_access_key",
    "store_secret_key",
    "control_url",
    "control_token",
)


def _setting(default: Any, description: str, unit: str, **rules: Any) -> Any:
    return Field(default=default, description=description, json_schema_extra={"unit": unit}, **rules)


class Settings(BaseSettings):
    """What one hub is told; see the field descriptions."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    # --- who this hub is ---
    origin: str = _setting(
        "hub.example",
        "Name of the hub in every signed statement and of its log. Choose it once: it can never change.",
        "bare host name",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$",
    )
    operator: str = _setting(
        "operator.example",
        "Institution that runs the hub; its key ring is made at the first start.",
        "institution name",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?$",
    )
    data_dir: Path = _setting(
        Path(".fedhub/hub"),
        "Folder of the hub's own keys; of the SQLite database and the objects too, when no others are named.",
        "path",
    )
    operator_home: Path | None = _setting(
        None,
        "Home folder with the operator's signing keys; unset: `operator` beside the data folder.",
        "path",
    )

    # --- database and objects ---
    database_url: SecretStr | None = _setting(
        None,
        "Address of the database, sqlite:///… or postgresql+psycopg://…; unset: SQLite in the data folder.",
        "URL",
    )
    database_busy_s: float = _setting(
        30.0, "How long a writer waits for another one before it gives up.", "seconds", gt=0, le=600
    )
    database_pool: int = _setting(
        40, "Most database connections of one process.", "connections", ge=2, le=500
    )
    store_url: SecretStr | None = _setting(
        None,
        "Where objects lie, file:///folder or s3+http(s)://host:port/bucket; unset: in the data folder.",
        "URL",
    )
    store_public_url: SecretStr | None = _setting(
        None,
        "Address of the same store as clients reach it, in orders and signed reads. Unset: the blob port.",
        "URL",
    )
    store_access_key: SecretStr | None = _setting(None, "Access key of an S3 store.", "text")
    store_secret_key: SecretStr | None = _setting(None, "Secret key of an S3 store.", "text")

    # --- addresses ---
    listen: str = _setting(
        "127.0.0.1", "Address that the API, download and blob ports bind to.", "IP address"
    )
    port: int = _setting(8000, "Port of API and pages.", "TCP port", ge=0, le=65535)
    public_url: str | None = _setting(
        None, "Address of the API as clients reach it. Unset: listen address and port.", "URL"
    )
    download_port: int = _setting(
        8001,
        "Port of the download origin. A second origin, so that clients drop their token when sent there.",
        "TCP port",
        ge=0,
        le=65535,
    )
    download_url: str | None = _setting(
        None, "Address of the download origin as clients reach it. Unset: listen address and port.", "URL"
    )
    blob_port: int = _setting(
        8002, "Port of the folder store's own server; unused with an S3 store.", "TCP port", ge=0, le=65535
    )
    fleet_port: int = _setting(
        8003, "Public TLS port of SuperLink: lab agents connect here.", "TCP port", ge=0, le=65535
    )
    fleet_body: int = _setting(
        1 << 20,
        "Largest body from a site, where SuperLink is a child. Runs of stock Flower apps send tensors in it.",
        "bytes",
        ge=1 << 20,
        le=1 << 31,
    )
    fleet_public: str | None = _setting(
        None, "host:port at which labs reach SuperLink. Unset: listen address and fleet port.", "host:port"
    )
    superlink: Literal["child", "external", "off"] = _setting(
        "child",
        "SuperLink: child (of the hub), external (a service of its own) or off (no runs can start).",
        "choice",
    )
    shared_dir: Path | None = _setting(
        None,
        "Folder of tokens and certificates shared with an external SuperLink. Unset: the data folder.",
        "path",
    )
    control_port: int = _setting(
        8004, "Loopback port of SuperLink's Control API when it is a child.", "TCP port", ge=0, le=65535
    )
    control_url: SecretStr | None = _setting(
        None, "Address of the Control API. Unset: the control port on loopback.", "URL"
    )
    control_token: SecretStr | None = _setting(
        None, "Bearer token of the Control API. Unset: made in the data folder.", "text"
    )
    fleet_ca: Path | None = _setting(
        None,
        "Authority (PEM) of the Fleet port of an external SuperLink. Unset: made in the data folder.",
        "path",
    )
    internal_url: str | None = _setting(
        None, "Address of the API as the coordinator reaches it. Unset: the public address.", "URL"
    )

    trusted_proxies: str = _setting(
        "",
        "Reverse proxies whose X-Forwarded-For is believed, separated by commas; unset: none.",
        "addresses",
    )

    # --- limits ---
    json_limit: int = _setting(1 << 20, "Largest JSON body of a request.", "bytes", ge=1 << 16, le=1 << 26)
    statement_limit: int = _setting(
        4 << 20,
        "Largest JSON body where signed documents travel (statements, plans, versions, enrolment).",
        "bytes",
        ge=1 << 16,
        le=1 << 26,
    )
    json_depth: int = _setting(16, "Deepest nesting of a JSON body.", "levels", ge=4, le=64)
    attachment_limit: int = _setting(
        1 << 20, "Largest file that travels with a statement (Croissant, recipe, config).", "bytes", ge=1024
    )
    upload_limit: int = _setting(
        1 << 40,
        "Largest file that may be uploaded. Files of models and data sets: never over 50 GB.",
        "bytes",
        ge=1 << 20,
    )
    plain_part_bytes: int = _setting(
        32 << 20,
        "Largest part in which stock Hugging Face clients send a file to the store.",
        "bytes",
        ge=5 << 20,
        le=1 << 30,
    )
    commit_limit: int = _setting(
        1 << 30,
        "Most bytes of one commit request of a stock client, small files included.",
        "bytes",
        ge=1 << 20,
    )
    xorb_hours: int = _setting(
        6, "How long chunks that a Xet client posted wait for the file that names them.", "hours", ge=1, le=72
    )
    institution_bytes: int = _setting(
        0,
        "Most bytes that one institution may keep in the store, updates of runs aside; 0: no limit.",
        "bytes",
        ge=0,
    )
    uploads_open: int = _setting(10_000, "Most unfinished uploads of one institution.", "uploads", ge=1)
    unused_hours: int = _setting(
        168,
        "How long uploaded bytes are kept that nothing needs: no version, draft, log entry or run.",
        "hours",
        ge=1,
        le=8760,
    )
    sweep_hours: int = _setting(
        6, "How often the hub removes what nothing needs by itself; 0: never.", "hours", ge=0, le=720
    )
    version_files: int = _setting(10_000, "Most files of one model version.", "files", ge=1, le=100_000)
    plan_participants: int = _setting(
        1000, "Most participants of one training plan.", "participants", ge=1, le=10_000
    )
    open_pages: bool = _setting(
        False,
        "Show the web pages to anybody who reaches the hub, as an auditor sees them; else only to members.",
        "yes or no",
    )
    page_size: int = _setting(100, "Most items of one page of a list.", "items", ge=1, le=1000)
    requests_per_minute: int = _setting(
        6000,
        "Most requests of one caller (token, else address) per process; 0: no limit.",
        "per minute",
        ge=0,
    )
    logins_per_minute: int = _setting(
        120, "Most failed logins and enrolments of one address per process; 0: no limit.", "per minute", ge=0
    )

    # --- lifetimes ---
    access_token_s: int = _setting(300, "Life of an access token.", "seconds", ge=10, le=300)
    assertion_s: int = _setting(60, "Longest life of the JWT that asks for one.", "seconds", ge=10, le=60)
    idempotency_hours: int = _setting(
        24, "How long an answer is kept under its Idempotency-Key.", "hours", ge=1, le=168
    )
    capability_s: int = _setting(300, "Life of a pull's download addresses.", "seconds", ge=10, le=300)
    signed_url_s: int = _setting(
        30, "Life of one signed address of the store that a download is sent to.", "seconds", ge=5, le=30
    )
    upload_hours: int = _setting(
        24, "How long an unfinished upload is kept after its last order.", "hours", ge=1, le=720
    )
    plain_upload_s: int = _setting(
        6 * 3600,
        "Life of the address to which a stock Hugging Face client sends a file.",
        "seconds",
        ge=300,
        le=604_800,
    )
    slow_link_bytes: int = _setting(
        1_000_000,
        "Slowest link for which a stock client's download address is to last: it lives 5 minutes and as long"
        " as the file takes at this rate. Each request to it is decided anew.",
        "bytes per second",
        ge=1000,
    )
    weights_url_s: int = _setting(
        3600,
        "Life of the signed address at which a run's participants read its weights.",
        "seconds",
        ge=60,
        le=86_400,
    )

    # --- runs ---
    run_attempts: int = _setting(
        5, "Attempts in a row that close no round before the run is stopped.", "attempts", ge=1, le=100
    )
    run_backoff_s: float = _setting(
        1.0,
        "Pause before the second attempt in a row; it doubles each time, up to 30 s.",
        "seconds",
        gt=0,
        le=30,
    )
    attempt_start_s: int = _setting(
        90, "How long a coordinator may take to ask for its work.", "seconds", ge=5, le=3600
    )
    coordinator_silence_s: int = _setting(
        15, "How long a coordinator that reports itself alive may be silent.", "seconds", ge=2, le=3600
    )
    round_grace_s: int = _setting(
        300, "How long after a round's deadline its aggregate may take.", "seconds", ge=10, le=86_400
    )
    sites_patience_s: int = _setting(
        60, "How long an attempt waits for enough lab agents to be connected.", "seconds", ge=0, le=3600
    )
    superlink_patience_s: int = _setting(
        600, "How long runs wait for a SuperLink that is away before they stop.", "seconds", ge=10, le=86_400
    )

    # --- background work ---
    publish_batch_s: float = _setting(
        0.5,
        "How long the publisher gathers new log entries before it signs a checkpoint.",
        "seconds",
        ge=0,
        le=5,
    )
    publish_poll_s: float = _setting(
        1.0, "How often the publisher looks for entries of other processes.", "seconds", gt=0, le=60
    )
    supervise_s: float = _setting(
        1.0, "How often the supervisor of runs looks at the work it holds.", "seconds", gt=0, le=60
    )
    lease_s: int = _setting(
        10, "Life of the supervisor's lease; another process takes over after it.", "seconds", ge=2, le=600
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = _setting(
        "INFO", "Least severity that the hub writes to its log.", "level"
    )

    @field_validator("public_url", "download_url", "internal_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http(s) address without query")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _two_origins(self) -> "Settings":
        if self.port and self.port == self.download_port:
            raise ValueError(
                "FEDHUB_PORT and FEDHUB_DOWNLOAD_PORT must differ: downloads need an origin of their own"
            )
        own = origin_of(self.public)
        for variable, address in (
            ("FEDHUB_DOWNLOAD_URL", self.downloads),
            ("FEDHUB_STORE_PUBLIC_URL", self.store_public),
        ):
            if origin_of(address) == own and own[2]:  # port 0: a free one is taken
                raise ValueError(
                    f"{variable} and FEDHUB_PUBLIC_URL must differ in scheme, host or port: clients would"
                    " send their token along, and stores refuse an address that is signed and bears one"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Explicit values, then variables, then files that variables name."""
        return init_settings, env_settings, FileVariables(settings_cls)

    # --- what follows from the settings ---
    @property
    def database(self) -> str:
        """SQLAlchemy address in use; a plain postgresql:// is given the psycopg driver."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir.absolute() / 'fedhub.db'}"
        return self.database_url.get_secret_value()

    @property
    def store(self) -> str:
        """Address of the object store in use."""
        if self.store_url is None:
            return (self.data_dir.absolute() / "store").as_uri()
        return self.store_url.get_secret_value()

    @property
    def store_public(self) -> str:
        """Address of the object store that clients are sent to."""
        if self.store_public_url is not None:
            return self.store_public_url.get_secret_value().rstrip("/")
        if self.store.startswith("file:"):
            return f"http://{self._reachable}:{self.blob_port}"
        return self.store.removeprefix("s3+").rsplit("/", 1)[0]

    @property
    def superlink_dir(self) -> Path:
        """SuperLink's folder: certificates, its work, its log."""
        return self.shared_dir or self.data_dir / "superlink"

    @property
    def operator_folder(self) -> Path:
        """Home folder of the operator's keys."""
        return self.operator_home or self.data_dir.absolute().parent / "operator"

    @property
    def public(self) -> str:
        """Address of the API that clients are told."""
        return self.public_url or f"http://{self._reachable}:{self.port}"

    @property
    def downloads(self) -> str:
        """Address of the download origin."""
        return self.download_url or f"http://{self._reachable}:{self.download_port}"

    @property
    def fleet(self) -> str:
        """host:port at which labs reach SuperLink."""
        return self.fleet_public or f"{self._reachable}:{self.fleet_port}"

    @property
    def control(self) -> str:
        """Address of SuperLink's Control API."""
        if self.control_url is not None:
            return self.control_url.get_secret_value().rstrip("/")
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def internal(self) -> str:
        """Address of the API that the coordinator is given."""
        return self.internal_url or self.public

    @property
    def _reachable(self) -> str:
        everywhere = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
        return "127.0.0.1" if self.listen in everywhere else self.listen


def origin_of(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of a web address: what clients compare before they send a token on.

    >>> origin_of("https://Hub.example/x") == origin_of("https://hub.example:443")
    True
    """
    parts = urlsplit(address)
    default = {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", default if parts.port is None else parts.port


class FileVariables(PydanticBaseSettingsSource):
    """``FEDHUB_X_FILE``: the setting's value is that file's text without its final newline."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """The text of the file that the variable names, or None."""
        variable = f"{PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        if field_name not in FROM_FILE or not path:
            return None, field_name, False
        if os.environ.get(variable.removesuffix("_FILE")):
            raise Unchecked(
                "E_SETTING",
                f"{variable}: set beside {variable.removesuffix('_FILE')}",
                "Keep one of the two.",
            )
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\r\n"), field_name, False
        except (OSError, UnicodeDecodeError) as error:
            raise Unchecked("E_SETTING", f"{variable}: cannot read {path}: {error}") from error

    def __call__(self) -> dict[str, Any]:
        """Values of all settings that come from files."""
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, name)
            if value is not None:
                found[name] = value
        return found


def load_settings(**given: Any) -> Settings:
    """Settings from ``given``, then the environment; a wrong one is named by its variable.

    Raises:
        Unchecked: ``E_SETTING``, with the variable's name and the rule it breaks; never its value.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = f"{PREFIX}{str(first['loc'][0]).upper()}" if first["loc"] else "settings"
        raise Unchecked(
            "E_SETTING", f"{where}: {first['msg']}", "`docs/settings.md` lists every setting."
        ) from None
