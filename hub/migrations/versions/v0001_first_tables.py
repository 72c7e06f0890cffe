"""The first tables.

Revision 0001, after none.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One step forward."""
    op.create_table(
        "answer",
        sa.Column("caller", sa.String(length=253), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("request", sa.String(length=64), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_answer")),
    )
    with op.batch_alter_table("answer", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_answer_created_at"), ["created_at"], unique=False)

    op.create_table(
        "attachment",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_attachment")),
    )
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("checked_by", sa.String(length=8), nullable=False),
        sa.Column("content", sa.String(length=16), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_table(
        "capability",
        sa.Column("capability_digest", sa.String(length=64), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("grant", sa.String(length=64), nullable=True),
        sa.Column("receipt", sa.String(length=64), nullable=True),
        sa.Column("duo", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("capability_digest", name=op.f("pk_capability")),
    )
    with op.batch_alter_table("capability", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_capability_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "institution",
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("pin", sa.String(length=64), nullable=False),
        sa.Column("contact", sa.String(length=500), nullable=False),
        sa.Column("keyring_bundle", sa.LargeBinary(), nullable=True),
        sa.Column("joined_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_institution")),
    )
    op.create_table(
        "invitation",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_invitation")),
    )
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "log_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("published_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_head")),
    )
    op.create_table(
        "log_sequence",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("next_index", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_log_sequence")),
    )
    op.create_table(
        "model",
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("owner", sa.String(length=253), nullable=False),
        sa.Column("visibility", sa.String(length=8), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model")),
    )
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_model_owner"), ["owner"], unique=False)

    op.create_table(
        "plan",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("issuer", sa.String(length=253), nullable=False),
        sa.Column("recipe", sa.String(length=64), nullable=False),
        sa.Column("config", sa.String(length=64), nullable=False),
        sa.Column("base_asset", sa.String(length=64), nullable=False),
        sa.Column("weights", sa.String(length=64), nullable=False),
        sa.Column("participants", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan")),
    )
    with op.batch_alter_table("plan", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_plan_issuer"), ["issuer"], unique=False)

    op.create_table(
        "seen_assertion",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_seen_assertion")),
    )
    with op.batch_alter_table("seen_assertion", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_seen_assertion_expires_at"), ["expires_at"], unique=False)

    op.create_table(
        "statement",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("log_index", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("issuer", sa.String(length=253), nullable=False),
        sa.Column("hint", sa.String(length=64), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=True),
        sa.Column("audience", sa.String(length=8), nullable=False),
        sa.Column("issued_at", sa.BigInteger(), nullable=True),
        sa.Column("logged_at", sa.BigInteger(), nullable=False),
        sa.Column("bundle", sa.LargeBinary(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_statement")),
        sa.UniqueConstraint("log_index", name=op.f("uq_statement_log_index")),
    )
    with op.batch_alter_table("statement", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_statement_issuer"), ["issuer"], unique=False)
        batch_op.create_index(batch_op.f("ix_statement_kind"), ["kind"], unique=False)
        batch_op.create_index(batch_op.f("ix_statement_plan"), ["plan"], unique=False)

    op.create_table(
        "upload",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("uploader", sa.String(length=253), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("plan", sa.String(length=64), nullable=True),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("multipart", sa.String(length=1024), nullable=True),
        sa.Column("etags", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
    )
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_upload_plan"), ["plan"], unique=False)
        batch_op.create_index(batch_op.f("ix_upload_sha256"), ["sha256"], unique=False)
        batch_op.create_index(batch_op.f("ix_upload_state_expires_at"), ["state", "expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_upload_uploader_sha256"), ["uploader", "sha256"], unique=False)

    op.create_table(
        "version_file",
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=1024), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("asset_id", "name", name=op.f("pk_version_file")),
    )
    with op.batch_alter_table("version_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_file_sha256"), ["sha256"], unique=False)

    op.create_table(
        "decline",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("declined_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.id"], name=op.f("fk_decline_plan")),
        sa.PrimaryKeyConstraint("plan", "institution", name=op.f("pk_decline")),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["plan.id"], name=op.f("fk_event_plan")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_event_plan_id"), ["plan", "id"], unique=False)

    op.create_table(
        "personal_token",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["institution"], ["institution.name"], name=op.f("fk_personal_token_institution")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_personal_token")),
        sa.UniqueConstraint("digest", name=op.f("uq_personal_token_digest")),
    )
    with op.batch_alter_table("personal_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_personal_token_institution"), ["institution"], unique=False)

    op.create_table(
        "ring",
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("statement", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["institution"], ["institution.name"], name=op.f("fk_ring_institution")),
        sa.PrimaryKeyConstraint("institution", "version", name=op.f("pk_ring")),
    )
    op.create_table(
        "run",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["plan"], ["plan.id"], name=op.f("fk_run_plan")),
        sa.PrimaryKeyConstraint("plan", name=op.f("pk_run")),
    )
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_run_state"), ["state"], unique=False)

    op.create_table(
        "site",
        sa.Column("key_hint", sa.String(length=64), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("public_key", sa.Text(), nullable=False),
        sa.Column("node_id", sa.String(length=20), nullable=True),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("last_seen", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["institution"], ["institution.name"], name=op.f("fk_site_institution")),
        sa.PrimaryKeyConstraint("key_hint", name=op.f("pk_site")),
        sa.UniqueConstraint("institution", "name", name=op.f("uq_site_institution_name")),
    )
    op.create_table(
        "statement_party",
        sa.Column("statement", sa.String(length=64), nullable=False),
        sa.Column("institution", sa.String(length=253), nullable=False),
        sa.ForeignKeyConstraint(
            ["statement"], ["statement.id"], name=op.f("fk_statement_party_statement"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("statement", "institution", name=op.f("pk_statement_party")),
    )
    with op.batch_alter_table("statement_party", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_statement_party_institution"), ["institution"], unique=False)

    op.create_table(
        "statement_subject",
        sa.Column("statement", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["statement"], ["statement.id"], name=op.f("fk_statement_subject_statement"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("statement", "digest", name=op.f("pk_statement_subject")),
    )
    with op.batch_alter_table("statement_subject", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_statement_subject_digest"), ["digest"], unique=False)

    op.create_table(
        "tag",
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("tag", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["model.name"], name=op.f("fk_tag_name")),
        sa.PrimaryKeyConstraint("name", "tag", name=op.f("pk_tag")),
    )
    op.create_table(
        "version",
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("asset_id", sa.String(length=64), nullable=False),
        sa.Column("statement", sa.String(length=64), nullable=False),
        sa.Column("license", sa.String(length=128), nullable=True),
        sa.Column("plan", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["name"], ["model.name"], name=op.f("fk_version_name")),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_version")),
    )
    with op.batch_alter_table("version", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_version_asset_id"), ["asset_id"], unique=False)

    op.create_table(
        "attempt",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("flower_run", sa.String(length=20), nullable=True),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("detail", sa.String(length=500), nullable=True),
        sa.Column("first_round", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heard_at", sa.BigInteger(), nullable=True),
        sa.Column("beats", sa.Boolean(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["plan"], ["run.plan"], name=op.f("fk_attempt_plan")),
        sa.PrimaryKeyConstraint("plan", "number", name=op.f("pk_attempt")),
    )
    op.create_table(
        "round",
        sa.Column("plan", sa.String(length=64), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("statement", sa.String(length=64), nullable=False),
        sa.Column("input", sa.String(length=64), nullable=False),
        sa.Column("aggregate", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("receipts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("sites", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("metrics", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["plan"], ["run.plan"], name=op.f("fk_round_plan")),
        sa.PrimaryKeyConstraint("plan", "round", name=op.f("pk_round")),
    )
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_round_aggregate"), ["aggregate"], unique=False)

    # The log is empty: one row counts what is sequenced, one says what is published.
    op.bulk_insert(
        sa.table("log_sequence", sa.column("id", sa.Integer), sa.column("next_index", sa.BigInteger)),
        [{"id": 1, "next_index": 0}],
    )
    op.bulk_insert(
        sa.table(
            "log_head",
            sa.column("id", sa.Integer),
            sa.column("size", sa.BigInteger),
            sa.column("note", sa.Text),
            sa.column("published_at", sa.BigInteger),
        ),
        [{"id": 1, "size": 0, "note": "", "published_at": 0}],
    )


def downgrade() -> None:
    """The same step back."""
    with op.batch_alter_table("round", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_round_aggregate"))

    op.drop_table("round")
    op.drop_table("attempt")
    with op.batch_alter_table("version", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_version_asset_id"))

    op.drop_table("version")
    op.drop_table("tag")
    with op.batch_alter_table("statement_subject", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_statement_subject_digest"))

    op.drop_table("statement_subject")
    with op.batch_alter_table("statement_party", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_statement_party_institution"))

    op.drop_table("statement_party")
    op.drop_table("site")
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_run_state"))

    op.drop_table("run")
    op.drop_table("ring")
    with op.batch_alter_table("personal_token", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_personal_token_institution"))

    op.drop_table("personal_token")
    with op.batch_alter_table("event", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_event_plan_id"))

    op.drop_table("event")
    op.drop_table("decline")
    with op.batch_alter_table("version_file", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_version_file_sha256"))

    op.drop_table("version_file")
    with op.batch_alter_table("upload", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_upload_uploader_sha256"))
        batch_op.drop_index(batch_op.f("ix_upload_state_expires_at"))
        batch_op.drop_index(batch_op.f("ix_upload_sha256"))
        batch_op.drop_index(batch_op.f("ix_upload_plan"))

    op.drop_table("upload")
    with op.batch_alter_table("statement", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_statement_plan"))
        batch_op.drop_index(batch_op.f("ix_statement_kind"))
        batch_op.drop_index(batch_op.f("ix_statement_issuer"))

    op.drop_table("statement")
    with op.batch_alter_table("seen_assertion", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_seen_assertion_expires_at"))

    op.drop_table("seen_assertion")
    with op.batch_alter_table("plan", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_plan_issuer"))

    op.drop_table("plan")
    with op.batch_alter_table("model", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_model_owner"))

    op.drop_table("model")
    op.drop_table("log_sequence")
    op.drop_table("log_head")
    op.drop_table("lease")
    op.drop_table("invitation")
    op.drop_table("institution")
    with op.batch_alter_table("capability", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_capability_expires_at"))

    op.drop_table("capability")
    op.drop_table("blob")
    op.drop_table("attachment")
    with op.batch_alter_table("answer", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_answer_created_at"))

    op.drop_table("answer")
