"""Keys: shown once, kept as a hash, found in microseconds, changed by anybody who shares the file."""

from __future__ import annotations

import hashlib
import logging
import math
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastllm.errors import ConfigError, OverloadedError
from fastllm.gateway.database import Database, default_path
from fastllm.gateway.keys import LOOK, PREFIX, KeyStore, VirtualKey, key_fields


class Time:
    """Wall and monotonic time that a test moves."""

    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def store(tmp_path: Path, clock: Time) -> Any:
    store = KeyStore(tmp_path / "state" / "gateway.sqlite3", wall=clock, now=clock)
    yield store
    store.close()


@pytest.mark.fault("93")
def test_a_secret_is_long_found_and_nowhere_in_the_file(store: KeyStore, tmp_path: Path) -> None:
    key, secret = store.create("team-a", models=["gpt-*"], rpm=10, tpm=1000, parallel=2, budget_day=1.5)
    assert secret.startswith(PREFIX) and len(secret) >= len(PREFIX) + 43  # 32 bytes in base64
    assert store.find(secret) == key and key.tail == secret[-4:]
    assert (key.models, key.rpm, key.parallel, key.budget_day, key.budget_month) == (("gpt-*",), 10, 2, 1.5, None)
    assert store.create("team-b")[1] != secret
    store.close()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert b"team-a" in kept and secret[len(PREFIX) :].encode() not in kept and secret[-12:].encode() not in kept


@pytest.mark.fault("92")
def test_nothing_that_is_shown_holds_the_secret(store: KeyStore) -> None:
    key, secret = store.create("team-a")
    shown = f"{key!r} {store!r} {store._secrets!r} {store._database!r}"
    assert secret[len(PREFIX) : -4] not in shown and repr(store._secrets[next(iter(store._secrets))]) in shown
    with pytest.raises(ConfigError) as caught:
        store.revoke(secret)
    assert secret[len(PREFIX) :] not in str(caught.value) and "not by its secret" in str(caught.value)


def test_files_are_for_their_owner_only(store: KeyStore, tmp_path: Path) -> None:
    store.create("team-a")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for path in (tmp_path / "state").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


@pytest.mark.parametrize("text", ["", "x", PREFIX, PREFIX + "x" * 43, PREFIX + "\ud800", PREFIX + "x" * 10**6, None, 7])
def test_what_is_no_secret_finds_nothing(store: KeyStore, text: Any) -> None:
    _, secret = store.create("team-a")
    assert store.find(text) is None
    assert store.find(secret + " ") is None and store.find(secret[:-1]) is None


def test_rotating_ends_the_old_secret_when_its_grace_is_over(store: KeyStore, clock: Time) -> None:
    key, first = store.create("team-a", rpm=5)
    rotated, second = store.rotate(key.id, grace=60)
    assert rotated.id == key.id and rotated.rpm == 5 and rotated.tail == second[-4:]
    assert store.find(first) == store.find(second) == rotated
    _, third = store.rotate("team-a", grace=3600)  # does not lengthen the first one's grace
    clock.at += 61
    assert store.find(first) is None and store.find(second) is not None and store.find(third) is not None
    _, fourth = store.rotate(key.id)
    assert [store.find(secret) for secret in (first, second, third)] == [None] * 3
    assert store.find(fourth) is not None


def test_a_revoked_key_is_listed_and_no_longer_found(store: KeyStore, clock: Time) -> None:
    key, secret = store.create("team-a")
    revoked = store.revoke("team-a")
    assert store.find(secret) is None and revoked.revoked == clock.at and store.list() == [revoked]
    assert store.revoke(key.id) == revoked
    with pytest.raises(ConfigError, match="is revoked: create another one"):
        store.rotate(key.id)
    clock.at += 1
    again, _ = store.create("team-a")
    assert store.get("team-a") == again and [key.state(clock.at) for key in store.list()] == ["revoked", "valid"]


def test_an_expired_key_is_found_so_that_its_owner_can_be_told(store: KeyStore, clock: Time) -> None:
    _, secret = store.create("guest", expires=clock.at + 10)
    clock.at += 10
    found = store.find(secret)
    assert found is not None and found.state(clock.at) == "expired"
    with pytest.raises(ConfigError, match="in the future"):
        store.create("late", expires=clock.at)


BAD = [
    ({"name": ""}, "key.name must be text that can be read, such as 'team-a', not ''"),
    ({"name": " \t"}, "key.name"),
    ({"name": "a\nb"}, "key.name"),
    ({"name": 7}, "key.name"),
    ({"name": "x" * 201}, "at most 200 characters, not 201"),
    ({"models": []}, "at least one model; use None"),
    ({"models": "gpt-4o"}, "must be a list"),
    ({"models": [""]}, "'' is neither"),
    *(({field: 0}, f"key.{field} must be a") for field in ("rpm", "tpm", "parallel")),
    *(
        ({field: value}, f"key.{field} must be a")
        for field in ("rpm", "tpm", "parallel", "budget_day", "budget_month", "expires")
        for value in (math.nan, math.inf, -math.inf, -1, True, "5", 1e300, 10**400)
    ),
    ({"parallel": 1.5}, "whole number of requests under way from 1"),
    ({"budget_day": -0.01}, "from 0 to 1e+09, or None for no limit; not -0.01"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_what_cannot_be_is_refused_by_field_value_and_way_out(
    store: KeyStore, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        store.create(**{"name": "a", **fields})
    assert message in str(caught.value) and len(str(caught.value)) < 300
    assert store.list() == []


def test_unknown_fields_are_refused_and_the_one_meant_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no field 'budget_dya'; did you mean 'budget_day'\?"):
        key_fields({"name": "a", "budget_dya": 1})
    with pytest.raises(ConfigError, match="there are name, models, rpm"):
        key_fields({"name": "a", "zzz": 1})
    with pytest.raises(ConfigError, match=r"key\.name is missing"):
        key_fields({"rpm": 1})
    assert key_fields({"name": "a", "rpm": 1}) == {"name": "a", "rpm": 1}


def test_two_keys_of_one_name_would_not_be_told_apart(store: KeyStore) -> None:
    store.create("team-a")
    with pytest.raises(ConfigError, match="'team-a' exists already"):
        store.create("team-a")
    with pytest.raises(ConfigError, match="did you mean 'team-a'"):
        store.get("team-q")


def test_what_another_process_changes_is_seen_within_a_second(store: KeyStore, clock: Time, tmp_path: Path) -> None:
    key, secret = store.create("team-a")
    made = tmp_path / "made"
    code = (
        "import sys; from fastllm.gateway.keys import KeyStore; s = KeyStore(sys.argv[1])\n"
        "s.revoke('team-a'); open(sys.argv[2], 'w').write(s.create('team-b')[1]); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "state/gateway.sqlite3"), str(made)], check=True)
    assert store.find(secret) == key  # not looked yet
    clock.at += LOOK
    assert store.find(secret) is None
    found = store.find(made.read_text())
    assert found is not None and found.name == "team-b"


def test_a_key_whose_record_is_damaged_is_not_accepted(
    store: KeyStore, clock: Time, caplog: pytest.LogCaptureFixture
) -> None:
    _, good = store.create("good")
    key, secret = store.create("bad", budget_day=1)
    with store._database.transaction() as db:
        db.execute("UPDATE keys SET version = 99, record = replace(record, '1.0', '-1.0') WHERE id = ?", (key.id,))
        db.execute("UPDATE keys SET record = replace(record, ':1,', ':-1,') WHERE id = ?", (key.id,))
    clock.at += LOOK
    with caplog.at_level(logging.ERROR, "fastllm"):
        assert store.find(secret) is None
    assert "not accepted" in caplog.text and store.find(good) is not None


@pytest.mark.parametrize("content", [b"not a database, and long enough to be read as one" * 50, "foreign", "version"])
def test_a_file_that_is_not_ours_is_named_and_left_alone(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "gateway.sqlite3"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE theirs (x)")
        db.close()
    else:
        Database(path).close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 77")
        db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"gateway\.sqlite3: .*; --db names another"):
        KeyStore(path)
    assert path.read_bytes() == before


def test_a_place_that_cannot_be_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "x", tmp_path, "", "a\0b", 7):
        with pytest.raises(ConfigError):
            Database(path)  # type: ignore[arg-type]


def test_a_failed_transaction_leaves_nothing_and_a_closed_file_says_so(tmp_path: Path) -> None:
    database = Database(tmp_path / "g.sqlite3")
    with pytest.raises(RuntimeError), database.transaction() as db:
        db.execute("INSERT INTO money VALUES ('k', 'p', 1, 1)")
        raise RuntimeError
    assert database.read("SELECT * FROM money") == []
    database.close()
    database.close()
    with pytest.raises(OverloadedError, match="is closed"):
        database.read("SELECT 1")


def test_the_file_lies_in_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "fastllm" / "gateway.sqlite3"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_path().is_absolute()


def test_many_keys_load_and_are_found(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "g.sqlite3")
    secrets = []
    with store._database.transaction() as db:
        for number in range(3000):
            key = VirtualKey(id=f"key-{number}", name=f"n{number}")
            record = f'{{"id":"{key.id}","name":"{key.name}"}}'
            db.execute("INSERT INTO keys VALUES (?, ?, ?)", (key.id, number + 1, record))
            secrets.append(f"{PREFIX}{number:043}")
            db.execute("INSERT INTO secrets VALUES (?, ?, NULL)", (_sha256(secrets[-1]), key.id))
    store.refresh()
    assert [store.find(secret).id for secret in secrets] == [f"key-{n}" for n in range(3000)]  # type: ignore[union-attr]
    store.close()


def _sha256(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
