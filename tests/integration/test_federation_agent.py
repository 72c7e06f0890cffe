"""One order at a site, with real homes, keys, ledger, store and training; the hub is one in memory that may
lie.
"""

import csv
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation import agent as agent_module
from federation import sending, site_word, training
from federation.agent import Agent
from federation.compression import Feedback
from federation.home import Home
from federation.ledger import SiteLedger
from federation.messages import InputReference, OrderMessage, OrderReply
from federation.plan import read_config
from federation.rotation import finish_rotation, prepare_rotation
from federation.wire import OrdersRequest, StatementRecord, UploadRequest
from storage.encoding import b64, canonical, format_time, sha256_hex, unb64
from storage.errors import Refused, Unchecked
from storage.manifests import hash_file
from storage.signing import check_signature, open_envelope, sign
from storage.statements import compose, read_statement
from tests.round_hub import HUB, OPERATOR, OWNER, PARAMETERS, LocalClient, RoundHub

Change = Callable[["Site"], None]


def write_rows(folder: Path, seed: int, rows: int = 24) -> Path:
    """A dataset of 4 x 4 pictures."""
    random_numbers = random.Random(seed)
    folder.mkdir(parents=True)
    for name in ("train.csv", "heldout.csv"):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["label", *(f"p{number:02d}" for number in range(16))])
            for _ in range(rows):
                writer.writerow(
                    [random_numbers.randrange(3), *(random_numbers.randrange(17) for _ in range(16))]
                )
    return folder


class Site:
    """Lab a of an alliance of two, its agent and what the hub would send it."""

    def __init__(
        self, folder: Path, *, consent: bool = True, compression: str = "none", **terms: Any
    ) -> None:
        from federation.recipes.image_classification import build

        self.folder = folder
        self.hub = RoundHub.start(folder / "hub")
        for number, name in enumerate(("lab-a", "lab-b")):
            self.hub.add_lab(name, write_rows(folder / name, number))
        base = folder / "base.safetensors"
        with training_seed():
            training.save_weights(build(PARAMETERS), base)
        self.plan = self.hub.submit(base, rounds=4, minimum=2, terms=terms, compression=compression)
        if consent:
            self.hub.consent("lab-a")
        self.now = time.time()
        self.ledger = SiteLedger(self.home.site / "ledger.db")
        self.client = LocalClient(self.hub, self.home.institution)
        self.agent = self.restart()

    @property
    def home(self) -> Home:
        return self.hub.labs["lab-a"].home

    @property
    def dataset(self) -> str:
        return self.hub.labs["lab-a"].dataset

    @property
    def data(self) -> Path:
        return self.folder / "lab-a"

    def restart(self) -> Agent:
        self.agent = Agent(self.home, self.client, self.ledger, clock=lambda: self.now)  # type: ignore[arg-type]
        return self.agent

    def message(self, round_number: int = 1, *, order: bytes | None = None, **changes: Any) -> OrderMessage:
        """The message of one order; ``changes`` replace members of the order and of the message alike."""
        members = {
            "plan": self.plan,
            "round": round_number,
            "action": "train",
            "input": self.hub.input,
            "deadline": format_time(int(self.now) + 60),
            **changes,
        }
        if order is None:
            request = OrdersRequest(
                attempt=1,
                round=members["round"],
                action=members["action"],
                input=members["input"],
                deadline=members["deadline"],
            )
            order = self.hub.order(members.pop("site", self.dataset), request, plan=members["plan"])
        known = self.hub.objects.get(members["input"])
        size = known.size if known else 1
        members["input"] = InputReference(sha256=members["input"], size=size)
        return OrderMessage(order=order.decode(), **members)

    def do(self, round_number: int = 1, **changes: Any) -> OrderReply:
        return self.agent.perform(self.message(round_number, **changes))

    def forge(
        self, *, issuer: str = OPERATOR, hub: str = HUB, signer: Home | None = None, now: int | None = None
    ) -> bytes:
        """An order that is not quite the operator's."""
        members = {
            "plan": self.plan,
            "site": self.dataset,
            "action": "train",
            "round": 1,
            "input": self.hub.input,
            "deadline": format_time(int(self.now) + 60),
        }
        subjects = [("model.safetensors", self.hub.input)]
        payload = compose("order", subjects, members, issuer=issuer, hub=hub, now=now or int(self.now))
        return sign((signer or self.hub.operator).key("snapshot"), payload)

    def close(self) -> None:
        self.ledger.close()
        self.hub.stop()


def training_seed() -> Any:
    from federation.recipes.loop import repeatable

    return repeatable(7)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def site(**options: Any) -> Site:
        made.append(Site(tmp_path / str(len(made)), **options))
        return made[-1]

    yield site
    for one in made:
        one.close()


@pytest.fixture
def site(make: Callable[..., Site]) -> Site:
    return make()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds that were really trained, and whose data files were read."""
    rounds: list[int] = []
    train, hashed = training.train, hash_file

    def watched(*arguments: Any, **options: Any) -> Any:
        rounds.append(arguments[6])
        return train(*arguments, **options)

    def read(path: Path) -> Any:
        if path.suffix == ".csv":
            rounds.append(0)
        return hashed(path)

    monkeypatch.setattr(training, "train", watched)
    monkeypatch.setattr(agent_module, "hash_file", read)
    return rounds


def refusal_of(site: Site, reply: OrderReply) -> str:
    """The code of a refusal whose statement this site has signed, kept and logged."""
    assert reply.refusal is not None, reply
    assert reply.update is None and reply.receipt is None
    assert reply.refusal.statement is not None
    envelope = open_envelope(reply.refusal.statement.encode())
    key = site.home.ring.newest.roles["snapshot"][envelope.hint]
    check_signature(key, envelope)
    statement = read_statement(envelope)
    assert statement.kind == "refusal"
    assert statement.predicate["code"] == reply.refusal.code
    (kept,) = [one for one in site.ledger.refusals() if one.id == statement.id]
    assert [one.id for one in site.ledger.orders() if one.id == kept.order_id]
    assert statement.predicate["order"] == kept.order_id
    return reply.refusal.code


# --- what is allowed ----------------------------------------------------------------------------------------


def test_an_order_under_consent_is_done_receipted_and_kept(site: Site) -> None:
    reply = site.do()
    assert reply.refusal is None and reply.update is not None and reply.receipt is not None
    stored = site.hub.file(reply.update.sha256, site.folder / "update")
    assert hash_file(stored)[0] == reply.update.sha256
    (receipt,) = site.hub.receipts()
    assert receipt.id == reply.receipt.id
    assert receipt.subject == reply.update.sha256
    says = receipt.predicate
    assert (says["plan"], says["round"], says["input"], says["action"]) == (
        site.plan,
        1,
        site.hub.input,
        "train",
    )
    assert says["examples"] == reply.examples == 24
    assert "previous" not in says
    assert set(reply.metrics) == {"loss", "input_accuracy", "input_loss"}
    (kept,) = site.ledger.answers()
    assert (kept.logged, kept.receipt_id, kept.update_sha256) == (True, receipt.id, reply.update.sha256)


def test_the_update_is_that_of_the_recipe_on_these_rows(site: Site) -> None:
    reply = site.do()
    assert site.hub.plan is not None
    config = read_config(unb64(site.hub.plan.config))
    again = training.train(
        config.recipe,
        config.parameters,
        site.folder / "base.safetensors",
        site.data,
        site.folder / "again",
        config.seed,
        1,
        site=site.dataset,
    )
    assert reply.update is not None
    assert again.sha256 == reply.update.sha256


def test_receipts_of_one_plan_name_the_one_before(site: Site) -> None:
    first, second = site.do(1), site.do(2)
    assert first.receipt is not None and second.receipt is not None
    assert site.hub.receipts()[-1].predicate["previous"] == first.receipt.id


def test_an_evaluation_gives_metrics_and_a_receipt_of_its_own_chain(site: Site) -> None:
    site.do(1)
    reply = site.do(1, action="evaluate")
    assert reply.refusal is None and reply.update is None and reply.receipt is not None
    assert set(reply.metrics) == {"accuracy", "loss", "majority"}
    receipt = site.hub.receipts()[-1]
    assert (receipt.subject, receipt.predicate["action"]) == (site.dataset, "evaluate")
    assert "previous" not in receipt.predicate


# --- done once ----------------------------------------------------------------------------------------------


def test_a_round_that_is_asked_again_is_answered_and_not_trained_again(
    site: Site, trained: list[int]
) -> None:
    first = site.do(1)
    site.now += 5
    site.restart()
    second = site.do(1)
    assert trained.count(1) == 1
    assert second.receipt == first.receipt
    assert second.update is not None and first.update is not None
    assert second.update.sha256 == first.update.sha256
    assert len(site.hub.receipts()) == 1


def test_an_update_is_not_read_again_to_be_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> None:
        raise AssertionError(f"{path} was hashed a second time")

    monkeypatch.setattr(sending, "hash_file", read)
    assert site.do(1).refusal is None


def test_an_update_that_the_hub_has_lost_is_sent_again(site: Site, trained: list[int]) -> None:
    first = site.do(1)
    assert first.update is not None
    assert list(site.hub.updates([first.update.sha256])) == [first.update.sha256]
    del site.hub.objects[first.update.sha256]
    site.do(1)
    assert list(site.hub.updates([first.update.sha256])) == [first.update.sha256]
    assert trained.count(1) == 1


def test_a_crash_between_training_and_receipt_costs_no_second_training(
    site: Site, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.client, "post_statement", dies)
    with pytest.raises(KeyboardInterrupt):
        site.do(1)
    monkeypatch.undo()
    assert [one.logged for one in site.ledger.answers()] == [False]


def test_after_such_a_crash_the_same_receipt_is_logged(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = site.client.post_statement
    posted: list[bytes] = []

    def logs_and_dies(bundle: bytes, *_: object, announces: UploadRequest | None) -> StatementRecord:
        posted.append(bundle)
        real(bundle, announces=announces)
        raise KeyboardInterrupt

    monkeypatch.setattr(site.client, "post_statement", logs_and_dies)
    with pytest.raises(KeyboardInterrupt):
        site.do(1)
    monkeypatch.undo()
    site.now += 30
    site.restart()
    reply = site.do(1)
    assert reply.receipt is not None
    assert reply.receipt.bundle.encode() == posted[0]
    assert len(site.hub.receipts()) == 1


def test_a_receipt_that_was_not_admitted_in_time_is_signed_afresh_after_the_same_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site.do(1)

    def away(*_: object, **_named: object) -> StatementRecord:
        raise Unchecked("E_HUB_UNREACHABLE", "the hub is away")

    monkeypatch.setattr(site.client, "post_statement", away)
    missed = site.do(2)
    assert missed.refusal is not None and missed.refusal.again
    monkeypatch.undo()
    void = site.ledger.last_answer(site.plan, site.dataset, "train")
    assert void is not None and not void.logged
    monkeypatch.setattr(site_word, "RECEIPT_FRESH_S", -1)
    reply = site.do(2)
    assert reply.receipt is not None and first.receipt is not None
    assert reply.receipt.id != void.receipt_id
    assert site.hub.receipts()[-1].predicate["previous"] == first.receipt.id


def test_a_void_receipt_is_not_followed_by_the_next_round(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site.do(1)

    def away(*_: object, **_named: object) -> StatementRecord:
        raise Unchecked("E_HUB_UNREACHABLE", "the hub is away")

    monkeypatch.setattr(site.client, "post_statement", away)
    site.do(2)
    monkeypatch.undo()
    site.do(3)
    assert first.receipt is not None
    assert site.hub.receipts()[-1].predicate["previous"] == first.receipt.id


def test_another_input_for_a_round_that_was_done_is_refused(site: Site, trained: list[int]) -> None:
    site.do(1)
    other = site.hub.keep(write_weights(site.folder / "other"))
    assert refusal_of(site, site.do(1, input=other)) == "E_ROUND_INPUT"
    assert trained.count(1) == 1


def test_rounds_never_go_back(site: Site) -> None:
    site.do(2)
    assert refusal_of(site, site.do(1)) == "E_ROUND_ORDER"


def test_a_hub_that_answers_with_another_receipt_is_not_believed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.do(1)
    (first,) = [one for one in site.hub.statements if one.kind == "receipt"]
    real = site.client.post_statement
    monkeypatch.setattr(
        site.client,
        "post_statement",
        lambda bundle, *_, **_named: (
            first if read_statement(open_envelope(bundle)).kind == "receipt" else real(bundle)
        ),
    )
    assert refusal_of(site, site.do(2)) == "E_RECEIPT"


def write_weights(path: Path) -> Path:
    from federation.recipes.image_classification import build

    training.save_weights(build(PARAMETERS), path)
    return path


# --- what is refused before a row is read -------------------------------------------------------------------


def _unpinned(site: Site) -> None:
    path = site.home.trust_path
    path.write_text(path.read_text().replace(f'"{OWNER}"', '"stranger.example"'))


def _other_config(site: Site) -> None:
    assert site.hub.plan is not None
    raw = unb64(site.hub.plan.config).replace(b'"seed":1', b'"seed":2')
    site.hub.plan = site.hub.plan.model_copy(update={"config": b64(raw)})


def _other_recipe(site: Site) -> None:
    assert site.hub.plan is not None
    recipe = canonical({"files": [], "name": "image-classification", "version": "1"})
    site.hub.plan = site.hub.plan.model_copy(update={"recipe": b64(recipe)})


def _revoked(site: Site) -> None:
    (grant,) = [statement for statement, _ in site.home.statements("grant")]
    members = {"target": "statement", "reason": "withdrawn"}
    site.home.keep(site.home.sign("revocation", [("grant.sigstore.json", grant.id)], members))


def _slipped_in(site: Site) -> None:
    """A consent in the home's folder that the institution never signed."""
    lab = site.hub.labs["lab-b"]
    (path,) = (site.home.path / "statements").glob("*.json")
    says = read_statement(open_envelope(path.read_bytes()))
    path.unlink()
    members = {
        name: says.predicate[name]
        for name in ("grantee", "actions", "conditions", "notBefore", "expires", "depth")
    }
    payload = compose(
        "grant", [("manifest.json", site.dataset)], members, issuer=site.home.institution, hub=HUB
    )
    raw = sign(lab.home.key("targets"), payload)
    site.home.keep(raw)


def _altered_file(site: Site) -> None:
    path = site.data / "train.csv"
    path.write_text(path.read_text().replace("0", "1", 1))


def _missing_file(site: Site) -> None:
    (site.data / "heldout.csv").unlink()


def _altered_manifest(site: Site) -> None:
    path = site.home.site / "datasets" / site.dataset / "manifest.json"
    raw = path.read_bytes()
    (site.data / "train.csv").write_text("label\n")
    digest = hash_file(site.data / "train.csv")
    path.write_bytes(raw.replace(_digest_in(raw, b"train.csv"), digest[0].encode()))


def _digest_in(raw: bytes, name: bytes) -> bytes:
    at = raw.index(b'"' + name + b'"')
    start = raw.index(b'"sha256":"', at) + 10
    return raw[start : start + 64]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_unpinned, "E_KEYRING_PIN"),
        (_other_config, "E_PLAN"),
        (_other_recipe, "E_PLAN"),
        (_revoked, "E_REVOKED"),
        (_slipped_in, "E_CONSENT"),
    ],
)
def test_what_the_site_has_not_agreed_to_is_refused_before_a_row_is_read(
    site: Site, trained: list[int], change: Change, code: str
) -> None:
    change(site)
    assert refusal_of(site, site.do()) == code
    assert trained == []


@pytest.mark.parametrize("change", [_altered_file, _missing_file, _altered_manifest])
def test_rows_that_are_not_those_of_the_manifest_are_not_trained_on(
    site: Site, trained: list[int], change: Change
) -> None:
    change(site)
    expected = "E_DATA_MISSING" if change is _missing_file else "E_DATASET_CHANGED"
    assert refusal_of(site, site.do()) == expected
    assert 1 not in trained


@pytest.mark.parametrize(
    ("grant", "code"),
    [
        ({"grantee": "firm.example"}, "E_CONSENT"),
        ({"actions": ["evaluate"], "conditions": {}}, "E_CONSENT"),
        ({"conditions": {"plan": "a" * 64}}, "E_CONSENT"),
        ({"conditions": {"code": "a" * 64}}, "E_CONSENT"),
        ({"conditions": {"minParticipants": 3}}, "E_CONSENT"),
        ({"conditions": {"epsilon": "1", "delta": "0.00001"}}, "E_BUDGET"),
        ({"notBefore": "2020-01-01T00:00:00Z", "expires": "2020-02-01T00:00:00Z"}, "E_CONSENT"),
        ({"notBefore": "2099-01-01T00:00:00Z", "expires": "2099-02-01T00:00:00Z"}, "E_CONSENT"),
    ],
)
def test_a_consent_that_does_not_reach_this_order_is_no_consent(
    make: Callable[..., Site], trained: list[int], grant: dict[str, Any], code: str
) -> None:
    site = make(consent=False)
    site.hub.consent("lab-a", **grant)
    assert refusal_of(site, site.do()) == code
    assert trained == []


def test_no_consent_at_all_is_refused_with_what_the_steward_can_do(make: Callable[..., Site]) -> None:
    site = make(consent=False)
    reply = site.do()
    assert refusal_of(site, reply) == "E_CONSENT"
    assert reply.refusal is not None
    assert "fedhub site approve" in reply.refusal.message


def test_a_round_after_the_last_one_consented_to_is_refused(
    make: Callable[..., Site], trained: list[int]
) -> None:
    site = make(consent=False)
    site.hub.consent("lab-a", conditions={"maxRounds": 2})
    assert site.do(2).refusal is None
    assert refusal_of(site, site.do(3)) == "E_CONSENT"
    assert trained.count(3) == 0


def test_a_plan_that_promises_epsilon_is_refused_by_a_recipe_without_a_mechanism(
    make: Callable[..., Site],
) -> None:
    site = make(epsilon="8", delta="0.00001")
    assert refusal_of(site, site.do()) == "E_BUDGET"


def test_a_withdrawn_consent_can_be_given_anew(site: Site) -> None:
    _revoked(site)
    assert refusal_of(site, site.do()) == "E_REVOKED"
    site.hub.consent("lab-a")
    assert site.do().refusal is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"round": 5}, "E_PLAN"),
        ({"action": "statistics"}, "E_ACTION"),
        ({"plan": "b" * 64}, "E_CONSENT"),
        ({"site": "b" * 64}, "E_DATASET_UNKNOWN"),
    ],
)
def test_an_order_for_something_else_is_refused(
    site: Site, trained: list[int], changes: dict[str, Any], code: str
) -> None:
    assert refusal_of(site, site.do(**changes)) == code
    assert trained == []


def test_an_order_for_the_neighbours_dataset_is_refused(site: Site) -> None:
    assert refusal_of(site, site.do(site=site.hub.labs["lab-b"].dataset)) == "E_DATASET_UNKNOWN"


@pytest.mark.parametrize(
    ("forged", "code"),
    [
        (lambda site: site.forge(signer=site.hub.owner), "E_KEY_UNKNOWN"),
        (lambda site: site.forge(signer=site.home), "E_KEY_UNKNOWN"),
        (lambda site: site.forge(issuer=OWNER, signer=site.hub.owner), "E_ISSUER"),
        (lambda site: site.forge(issuer=site.home.institution, signer=site.home), "E_ISSUER"),
        (lambda site: site.forge(hub="other.example"), "E_HUB"),
        (lambda site: site.forge(now=int(site.now) + 3600), "E_TIME"),
        (lambda site: _resigned(site), "E_SIGNATURE"),
    ],
)
def test_an_order_that_is_not_the_operators_is_refused(
    site: Site, trained: list[int], forged: Callable[[Site], bytes], code: str
) -> None:
    assert refusal_of(site, site.agent.perform(site.message(order=forged(site)))) == code
    assert trained == []


def _resigned(site: Site) -> bytes:
    """The operator's key is named, and somebody else signed."""
    right = site.forge()
    wrong = sign(site.hub.owner.key("snapshot"), open_envelope(right).payload)
    hints = [open_envelope(one).hint.encode() for one in (wrong, right)]
    return wrong.replace(*hints)


@pytest.mark.parametrize("role", ["targets", "timestamp", "root"])
def test_another_key_of_the_operator_cannot_give_orders(site: Site, role: str) -> None:
    payload = open_envelope(site.forge()).payload
    order = sign(site.hub.operator.key(role), payload)
    assert refusal_of(site, site.agent.perform(site.message(order=order))) == "E_KEY_UNKNOWN"


def test_a_key_that_the_operator_has_replaced_gives_no_more_orders(site: Site) -> None:
    assert site.do(1).refusal is None
    old = site.message(2)
    prepare_rotation(site.hub.operator, "snapshot")
    finish_rotation(site.hub.operator, "snapshot")
    site.restart()  # asks for the ring; a running agent does every ten minutes
    assert refusal_of(site, site.agent.perform(old)) == "E_KEY_UNKNOWN"
    assert site.do(2).refusal is None
    assert site.home.ring_of(OPERATOR).newest.version == 2


def test_a_new_key_of_the_operator_is_found_at_once(site: Site) -> None:
    assert site.do(1).refusal is None
    prepare_rotation(site.hub.operator, "snapshot")
    finish_rotation(site.hub.operator, "snapshot")
    assert site.do(2).refusal is None


def test_a_ring_that_does_not_follow_from_the_pin_is_not_taken(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = site.hub.owner.ring.newest.raw
    monkeypatch.setattr(site.client, "keyring", lambda name: [b64(stranger)])
    assert refusal_of(site, site.do()) == "E_KEYRING_PIN"


@pytest.mark.parametrize("member", ["plan", "round", "action", "input", "deadline"])
def test_a_message_that_says_something_else_than_its_order_is_refused(site: Site, member: str) -> None:
    message = site.message()
    other: dict[str, Any] = {
        "plan": "b" * 64,
        "round": 2,
        "action": "evaluate",
        "input": InputReference(sha256="b" * 64, size=1),
        "deadline": format_time(int(site.now) + 3600),
    }
    reply = site.agent.perform(message.model_copy(update={member: other[member]}))
    assert refusal_of(site, reply) == "E_ORDER"


def test_an_order_after_its_deadline_is_refused(site: Site, trained: list[int]) -> None:
    message = site.message()
    site.now += 61
    assert refusal_of(site, site.agent.perform(message)) == "E_ORDER_LATE"
    assert trained == []


@pytest.mark.parametrize("order", [b"{}", b"", b"\xff", b"not json"])
def test_what_is_no_order_is_answered_without_a_statement(site: Site, order: bytes) -> None:
    message = site.message().model_copy(update={"order": order.decode("latin-1")})
    reply = site.agent.perform(message)
    assert reply.refusal is not None and reply.refusal.statement is None
    assert site.ledger.orders() == []


def test_another_kind_of_statement_is_no_order(site: Site) -> None:
    (_, raw) = next(site.home.statements("grant"))
    reply = site.agent.perform(site.message(order=raw))
    assert reply.refusal is not None
    assert reply.refusal.code == "E_KIND"


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_refusal_is_signed_and_logged_once_however_often_the_order_comes(make: Callable[..., Site]) -> None:
    site = make(consent=False)
    message = site.message()
    first, second = site.agent.perform(message), site.agent.perform(message)
    assert first == second
    assert [one.kind for one in site.hub.statements] == ["refusal"]
    assert [one.logged for one in site.ledger.refusals()] == [True]


def test_a_refusal_that_the_hub_could_not_log_is_in_the_reply_and_in_the_ledger(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make(consent=False)

    def away(*_: object, **_named: object) -> StatementRecord:
        raise Unchecked("E_HUB_UNREACHABLE", "the hub is away")

    monkeypatch.setattr(site.client, "post_statement", away)
    assert refusal_of(site, site.do()) == "E_CONSENT"
    assert [one.logged for one in site.ledger.refusals()] == [False]


@pytest.mark.parametrize("name", ["weights", "post_statement", "plan"])
def test_a_hub_that_is_away_is_a_reason_to_ask_again(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unchecked("E_HUB_UNREACHABLE", "the hub is away")

    monkeypatch.setattr(site.client, name, away)
    reply = site.do()
    assert reply.refusal is not None
    assert (reply.refusal.code, reply.refusal.again) == ("E_HUB_UNREACHABLE", True)
    monkeypatch.undo()
    assert site.do().refusal is None


def test_a_receipt_that_the_hub_refuses_is_told_with_its_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = site.client.post_statement

    def refuses(bundle: bytes, *_: object, **_named: object) -> StatementRecord:
        if read_statement(open_envelope(bundle)).kind == "receipt":
            raise Refused("E_CONSENT", "the consent is not logged", status=422)
        return real(bundle)

    monkeypatch.setattr(site.client, "post_statement", refuses)
    assert refusal_of(site, site.do()) == "E_CONSENT"


# --- weights ------------------------------------------------------------------------------------------------


def test_an_input_with_other_bytes_is_never_trained_from(site: Site, trained: list[int]) -> None:
    stored = site.hub.objects[site.hub.input]
    raw = site.hub.store.get(stored.key)
    site.hub.store.put(stored.key, raw[:-1] + bytes([raw[-1] ^ 1]))
    assert refusal_of(site, site.do()) == "E_DIGEST"
    assert 1 not in trained
    assert not list((site.home.site / "inputs").glob("*.safetensors"))


def test_an_input_of_another_shape_is_refused_by_name(site: Site) -> None:
    from federation.recipes.image_classification import build

    path = site.folder / "wide.safetensors"
    training.save_weights(build({**PARAMETERS, "hidden": 9}), path)
    assert refusal_of(site, site.do(input=site.hub.keep(path))) == "E_LAYOUT"


def test_an_input_that_would_fill_the_disk_is_not_fetched(site: Site) -> None:
    message = site.message()
    huge = message.input.model_copy(update={"size": 1 << 60})
    reply = site.agent.perform(message.model_copy(update={"input": huge}))
    assert refusal_of(site, reply) == "E_SITE_DISK"


def test_a_changed_recipe_under_a_running_agent_is_noticed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(site.agent._started_with, "image-classification", sha256_hex(b"older"))
    assert refusal_of(site, site.do()) == "E_RECIPE"


def test_old_inputs_and_updates_do_not_pile_up(site: Site) -> None:
    for number in range(1, 5):
        other = site.hub.keep(_moved(site, number))
        assert site.do(number, input=other).refusal is None
    for folder in ("inputs", "updates"):
        assert len(list((site.home.site / folder).iterdir())) <= agent_module.KEPT_FILES


def _moved(site: Site, seed: int) -> Path:
    from federation.recipes.image_classification import build
    from federation.recipes.loop import repeatable

    with repeatable(seed):
        path = site.folder / f"weights-{seed}"
        training.save_weights(build(PARAMETERS), path)
    return path


# --- compressed updates -------------------------------------------------------------------------------------


def residuals(site: Site) -> list[str]:
    return [path.name.split("-")[-1] for path in sorted((site.home.site / "residuals").glob("*"))]


def digests(site: Site, rounds: int = 4) -> list[str]:
    """What the site sends in each round, from the same weights."""
    sent = []
    for number in range(1, rounds + 1):
        reply = site.do(number)
        assert reply.update is not None, reply
        sent.append(reply.update.sha256)
    return sent


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_what_an_update_leaves_out_goes_into_the_next_round_once(
    make: Callable[..., Site], form: str
) -> None:
    """The update of round 2 is that of the recipe with round 1's residual, and with no other."""
    site = make(compression=form)
    first, second, *_ = digests(site, 2)
    assert residuals(site) == ["2.safetensors"]
    after = site.folder / "residual-of-round-1"
    assert first == trained_again(site, form, 1, None, after)
    assert second == trained_again(site, form, 2, after, None)
    assert second != trained_again(site, form, 2, None, None)


def trained_again(site: Site, form: str, number: int, before: Path | None, after: Path | None) -> str:
    """Digest of the update that the recipe gives for a round, from these residuals."""
    assert site.hub.plan is not None
    config = read_config(unb64(site.hub.plan.config))
    return training.train(
        config.recipe,
        config.parameters,
        site.folder / "base.safetensors",
        site.data,
        site.folder / "again",
        config.seed,
        number,
        site=site.dataset,
        feedback=Feedback(form, before, after),
    ).sha256


@pytest.mark.parametrize("moment", ["before the ledger", "after the ledger"])
def test_a_residual_is_not_used_twice_when_the_agent_dies_within_a_round(
    make: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Update and residual are written, then the agent dies: the round done again sends the same bytes."""
    site = make(compression="int8")
    digests(site, 1)
    before = site.folder / "residual-of-round-1"
    before.write_bytes(next((site.home.site / "residuals").iterdir()).read_bytes())
    undisturbed = trained_again(site, "int8", 2, before, None)
    save = SiteLedger.save_answer

    def dies(ledger: SiteLedger, answer: Any) -> None:
        if moment == "after the ledger":
            save(ledger, answer)
        raise KeyboardInterrupt

    monkeypatch.setattr(SiteLedger, "save_answer", dies)
    with pytest.raises(KeyboardInterrupt):
        site.do(2)
    monkeypatch.setattr(SiteLedger, "save_answer", save)
    assert sorted(residuals(site)) == ["1.safetensors", "2.safetensors"]
    site.restart()
    again = site.do(2)
    assert again.update is not None and again.update.sha256 == undisturbed
    third = site.do(3)
    assert third.update is not None and residuals(site) == ["3.safetensors"]


def test_a_finished_plan_leaves_no_residual_and_a_plain_one_never_makes_any(
    make: Callable[..., Site],
) -> None:
    site = make(compression="fp16")
    digests(site)
    assert residuals(site) == []
    plain = make()
    plain.do(1)
    assert not (plain.home.site / "residuals").exists()


def test_residuals_are_for_the_site_alone(make: Callable[..., Site]) -> None:
    site = make(compression="int8")
    site.do(1)
    assert (site.home.site / "residuals").stat().st_mode & 0o077 == 0
