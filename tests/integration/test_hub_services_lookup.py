"""What is asked most costs few statements over indexes, and says what the long way says."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import pytest
from pydantic import TypeAdapter
from sqlalchemy import delete, event, insert, text
from sqlalchemy.engine import Engine

from federation import wire
from hub.access import ANONYMOUS, Actor
from hub.glances import Question
from hub.services import catalogue, lookup, registry, repo_files, revisions
from hub.services.catalogue import Wanted
from hub.services.revisions import Repo
from hub.tables import ModelRow, VersionRow
from storage.errors import Refused, Unchecked
from tests.bench.registry_rows import TOKEN, fill, name_of, owner_of
from tests.databases import DATABASES, database_url
from tests.hubs import HubInProcess, running_hub

MODELS, EACH = 40, 3
PUBLIC, GATED, PRIVATE = 7, 1, 21  # by registry_rows' rule of visibility
VERSIONS = VersionRow.__table__.select()  # type: ignore[attr-defined]
VERSIONS_OF = VersionRow.__table__.c  # type: ignore[attr-defined]
MEMBER = Actor(owner_of(50), "lab", "personal", frozenset({"read"}))


@pytest.fixture(scope="module", params=DATABASES)
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubInProcess]:
    folder = tmp_path_factory.mktemp("lookup")
    with database_url(request.param, folder) as url, running_hub(folder, database_url=url) as made:
        fill(made.hub, MODELS, MODELS * EACH)
        with made.hub.database.session_scope(write=False) as session, made.hub.ledger.evidence(session):
            pass
        yield made


@contextmanager
def statements(engine: Engine) -> Iterator[list[tuple[str, object]]]:
    """What is sent to the database inside the block."""
    sent: list[tuple[str, object]] = []

    def note(_connection: object, _cursor: object, said: str, given: object, *_rest: object) -> None:
        sent.append((said, given))

    def note_glance(question: Question, asked: Mapping[str, object]) -> object:
        given = values_of(question, asked)
        sent.append((question.text, given))
        return given

    values_of = Question.values
    event.listen(engine, "before_cursor_execute", note)
    try:
        with mock.patch.object(Question, "values", note_glance):
            yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def heads(
    hub: HubInProcess, path: str, *, token: str | None = None, status: int = 200
) -> list[tuple[str, object]]:
    with hub.http(token=token) as client:
        client.head(path)  # connections are made, and the log is read
        with statements(hub.hub.database.engine) as sent:
            assert client.head(path).status_code == status
    return sent


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("main/config.json", 200),
        ("main/model.safetensors", 302),
        ("stable/config.json", 200),
        ("v2/README.md", 200),
        ("main/generation_config.json", 404),
    ],
)
def test_a_head_of_a_file_is_one_statement_and_one_more_for_a_token(
    hub: HubInProcess, path: str, status: int
) -> None:
    where = f"/{name_of(PUBLIC)}/resolve/{path}"
    assert len(heads(hub, where, status=status)) == 1
    assert len(heads(hub, where, status=status, token=TOKEN)) == 2


def test_no_statement_of_a_head_or_an_info_reads_a_whole_table(hub: HubInProcess) -> None:
    name = name_of(PUBLIC)
    sent = heads(hub, f"/{name}/resolve/main/config.json", token=TOKEN)
    with hub.http(token=TOKEN) as client, statements(hub.hub.database.engine) as infos:
        assert client.get(f"/api/models/{name}").status_code == 200
        assert client.get(f"/api/v1/models/{name}").status_code == 200
    assert len(infos) <= 6
    with hub.hub.database.engine.connect() as connection:
        if not hub.hub.database.is_sqlite:
            connection.execute(text("SET enable_seqscan = off"))
        for said, given in [*sent, *infos]:
            plan = "EXPLAIN QUERY PLAN " if hub.hub.database.is_sqlite else "EXPLAIN "
            rows = connection.exec_driver_sql(plan + said, given).all()  # type: ignore[arg-type]
            steps = [str(row[-1]) for row in rows]
            assert not [step for step in steps if step.startswith("SCAN") or "Seq Scan" in step], steps


def test_what_is_found_at_once_is_what_the_long_way_finds(hub: HubInProcess) -> None:
    name, opened = name_of(GATED), hub.hub
    with opened.database.session_scope(write=False) as session:
        owner = Actor(owner_of(GATED), "lab", "personal", frozenset({"read"}))
        for actor in (MEMBER, owner):
            repo = revisions.find(opened, session, actor, "model", name)
            first = revisions.first_commit(session, repo).id
            for revision in ("main", "stable", "v1", "v3", first, "refs/heads/main"):
                found = lookup.look(opened, session, actor, "model", name, revision, "config.json")
                row = revisions.resolve(session, actor, repo, revision)
                if revision.startswith("refs/"):
                    assert found is None  # left to the long way
                    continue
                assert found is not None and found.repo == repo
                assert (found.commit.id, found.commit.version) == (row.id, row.version)
                if row.asset_id is None:
                    assert found.sha256 is None
                    continue
                assert lookup.found_file(found, "config.json") == repo_files.file_at(
                    opened, session, repo, row, "config.json"
                )
            with pytest.raises(Unchecked, match="no revision"):
                revisions.resolve(session, actor, repo, "nowhere")
            assert lookup.look(opened, session, actor, "model", name, "nowhere") is None


def test_a_private_model_is_found_at_once_by_its_owner_alone(hub: HubInProcess) -> None:
    opened, name = hub.hub, name_of(PRIVATE)
    owner = Actor(owner_of(PRIVATE), "lab", "personal", frozenset({"read"}))
    with opened.database.session_scope(write=False) as session:
        assert lookup.look(opened, session, owner, "model", name) is not None
        for actor in (MEMBER, ANONYMOUS):
            with pytest.raises(Unchecked, match="not found"):
                lookup.look(opened, session, actor, "model", name)


def test_files_of_a_gated_model_stay_closed_without_a_grant(hub: HubInProcess) -> None:
    where = f"/{name_of(GATED)}/resolve/main/config.json"
    with hub.http(token=TOKEN) as client:
        answer = client.head(where)
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (403, "GatedRepo")


def test_a_draft_at_the_end_of_main_is_shown_to_its_own_institution_alone(hub: HubInProcess) -> None:
    opened, name = hub.hub, name_of(8)
    with opened.database.session_scope() as session:
        repo = Repo("model", name, owner_of(8), "gated", 0)
        branch = revisions.branch_row(session, repo, "main", lock=True)
        newest = revisions.head(session, repo, branch)
        draft = revisions.commit_id("model", name, newest.id, newest.asset_id, None)
        made = newest.model_copy(
            update={"id": draft, "parent": newest.id, "statement": None, "version": None}
        )
        session.expunge(newest)
        revisions.add_commit(session, repo, branch, type(newest)(**made.model_dump()))
    owner = Actor(owner_of(8), "lab", "personal", frozenset({"read"}))
    with opened.database.session_scope(write=False) as session:
        found = lookup.look(opened, session, owner, "model", name)
        assert found is not None and found.commit.id == draft
        assert lookup.look(opened, session, MEMBER, "model", name) is None
        assert revisions.resolve(session, MEMBER, repo, "main").id == newest.id


def test_a_revoked_token_is_refused_at_the_very_next_request(hub: HubInProcess) -> None:
    opened = hub.hub
    with hub.http(token=TOKEN) as client:
        paths = (f"/{name_of(PUBLIC)}/resolve/main/config.json", f"/api/models/{name_of(PUBLIC)}")
        assert [
            client.get(f"/api/v1/models/{name_of(PUBLIC)}").status_code,
            client.head(paths[0]).status_code,
        ] == [200, 200]
        try:
            _set_revoked(hub, 1)
            for path in (*paths, f"/api/v1/models/{name_of(PUBLIC)}"):
                assert client.head(path).status_code == 401, path
        finally:
            _set_revoked(hub, None)
        assert client.head(paths[0]).status_code == 200
    assert opened is hub.hub


def _set_revoked(hub: HubInProcess, at: int | None) -> None:
    with hub.hub.database.engine.begin() as connection:
        connection.execute(text("UPDATE personal_token SET revoked_at = :at WHERE id = 'bench'"), {"at": at})


def test_a_model_as_text_is_the_model_as_an_object(hub: HubInProcess) -> None:
    with hub.hub.database.session_scope(write=False) as session:
        said = registry.show_text(hub.hub, session, MEMBER, name_of(GATED))
        shown = registry.show(hub.hub, session, MEMBER, name_of(GATED))
    assert wire.Model.model_validate_json(said) == shown
    assert [version.version for version in shown.versions] == [1, 2, 3]
    assert [version.released for version in shown.versions] == [False, False, True]
    assert shown.versions[2].tags == ["stable"] and len(shown.versions[0].files) == 3


def names(hub: HubInProcess, actor: Actor, **asked: object) -> list[str]:
    with hub.hub.database.session_scope(write=False) as session:
        found, following = catalogue.page(hub.hub, session, actor, Wanted(**asked), cursor=None, limit=7)  # type: ignore[arg-type]
        listed = [told["name"] for told in found]
        while following is not None:
            found, following = catalogue.page(
                hub.hub,
                session,
                actor,
                Wanted(**asked),
                cursor=following,
                limit=7,  # type: ignore[arg-type]
            )
            listed += [told["name"] for told in found]
    return listed


def test_lists_page_through_exactly_the_models_that_fit_and_may_be_seen(hub: HubInProcess) -> None:
    every = sorted(name_of(n) for n in range(MODELS))
    seen = sorted(name_of(n) for n in range(MODELS) if n // 7 % 4 != 3)
    assert names(hub, MEMBER) == seen
    assert names(hub, Actor("auditor.example", "auditor", "personal", frozenset({"read"}))) == every
    assert names(hub, ANONYMOUS) == sorted(name_of(n) for n in range(MODELS) if n // 7 % 4 == 1)
    assert names(hub, MEMBER, text="RETINA") == [name for name in seen if "retina" in name]
    assert names(hub, MEMBER, license="cc-by") == sorted(
        name_of(n) for n in range(MODELS) if n % 5 == 2 and n // 7 % 4 != 3
    )
    assert names(hub, MEMBER, license="GPL-9") == []
    assert names(hub, MEMBER, tag="stable") == seen and names(hub, MEMBER, tag="stabl") == []
    assert names(hub, MEMBER, released=True) == seen  # the rows log a release of each
    assert names(hub, MEMBER, owner=owner_of(3)) == [name_of(3)]


@pytest.mark.parametrize("number", [GATED, PUBLIC])
def test_a_list_says_of_a_model_what_the_model_itself_says(hub: HubInProcess, number: int) -> None:
    with hub.http(token=TOKEN) as client:
        answer = client.get("/api/v1/models", params={"search": name_of(number)}).content
        model = wire.Model.model_validate_json(client.get(f"/api/v1/models/{name_of(number)}").content)
    [listed] = TypeAdapter(list[wire.ListedModel]).validate_json(answer)
    newest = model.versions[-1]
    assert (listed.name, listed.owner, listed.visibility) == (model.name, model.owner, model.visibility)
    assert (listed.versions, listed.released) == (len(model.versions), newest.version)
    assert listed.newest == wire.NewestVersion(
        version=newest.version,
        asset_id=newest.asset_id,
        license=newest.license,
        plan=newest.plan,
        released=newest.released,
        tags=newest.tags,
        size=sum(file.size for file in newest.files),
        created_at=newest.created_at,
    )


def test_a_list_names_the_newest_version_whose_release_stands(hub: HubInProcess) -> None:
    """A version after the released one, and a model with neither."""
    opened, later, empty = hub.hub, name_of(GATED), f"{owner_of(50)}/empty"
    with opened.database.engine.begin() as connection:
        row = connection.execute(VERSIONS.where(VERSIONS_OF.name == later, VERSIONS_OF.version == EACH)).one()
        added = {**row._mapping, "version": EACH + 1, "asset_id": "a" * 64, "statement": "b" * 64}
        connection.execute(insert(VersionRow), added)
        model = {
            "name": empty,
            "owner": owner_of(50),
            "visibility": "gated",
            "created_at": 1,
            "released": False,
        }
        connection.execute(insert(ModelRow), model)
    try:
        with opened.database.session_scope(write=False) as session:
            [told], _ = catalogue.find(opened, session, MEMBER, Wanted(text=later))
            [bare], _ = catalogue.find(opened, session, MEMBER, Wanted(text=empty))
        assert (told["versions"], told["released"]) == (EACH + 1, EACH)
        assert (told["newest"]["version"], told["newest"]["released"]) == (EACH + 1, False)
        assert told["newest"]["tags"] == []  # the tag is the older one's
        assert (bare["versions"], bare["released"], bare["newest"]) == (0, None, None)
    finally:
        with opened.database.engine.begin() as connection:
            connection.execute(
                delete(VersionRow).where(VERSIONS_OF.name == later, VERSIONS_OF.version > EACH)
            )
            connection.execute(delete(ModelRow).where(ModelRow.__table__.c.name == empty))  # type: ignore[attr-defined]


def test_models_are_found_by_the_asset_id_of_any_version(hub: HubInProcess) -> None:
    with hub.hub.database.session_scope(write=False) as session:
        versions = registry.show(hub.hub, session, MEMBER, name_of(GATED)).versions
    for version in versions:
        assert names(hub, MEMBER, asset_id=version.asset_id) == [name_of(GATED)]
        assert names(hub, ANONYMOUS, asset_id=version.asset_id) == []
    assert names(hub, MEMBER, asset_id="f" * 64) == []


def test_a_page_costs_a_fixed_number_of_statements(hub: HubInProcess) -> None:
    with hub.http(token=TOKEN) as client:
        client.get("/api/v1/models")
        for path in (
            "/api/v1/models?search=retina",
            "/api/v1/models?tag=stable",
            "/api/v1/models?released=true",
            "/api/models?search=retina",
            "/api/v1/releases",
            "/api/v1/institutions",
        ):
            with statements(hub.hub.database.engine) as sent:
                answer = client.get(path)
            assert answer.status_code == 200 and len(answer.json()) >= 3
            assert len(sent) <= 4, (path, len(sent))  # the token, the log's size, the page, older releases


def test_a_token_without_the_scope_reads_no_gated_info(hub: HubInProcess) -> None:
    writer = Actor(owner_of(50), "lab", "personal", frozenset({"write"}))
    with hub.hub.database.session_scope(write=False) as session, pytest.raises(Refused) as refused:
        lookup.look(hub.hub, session, writer, "model", name_of(GATED))
    assert refused.value.code == "E_SCOPE"
