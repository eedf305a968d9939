"""Authorization: challenges, tokens, and who is told what."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layouts import Layout
from paralayer.errors import RegistryError
from paralayer.registry.auth import parse_challenges
from paralayer.registry.client import Access, Registry, check_login
from paralayer.registry.credentials import Credentials
from paralayer.registry.reference import Reference
from processes import wait_for
from registries import (
    IDENTITY_TOKEN,
    PASSWORD,
    USER,
    RegistryServer,
    TokenServer,
    forget_logins,
    make_authority,
    push,
    serve_registry,
    write_auths,
)
from registry_blobs import AtOnce
from registry_proxy import Exchange, Fault, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.requires("docker-registry", "skopeo", "openssl")

PAIR = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    directory = tmp_path_factory.mktemp("plain")
    layout = Layout(directory / "layout")
    layout.finish(layout.image([b"old", b"new"]))
    with serve_registry(directory) as registry:
        for name in ("private/image:tag", "public/image:tag"):
            push(layout.path, registry, name)
        yield registry


@pytest.fixture(scope="module")
def with_users(plain: RegistryServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with serve_registry(tmp_path_factory.mktemp("users"), storage=plain.storage, users=True) as registry:
        yield registry


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenServer]:
    with TokenServer(tmp_path_factory.mktemp("tokens")) as server:
        yield server


@pytest.fixture(scope="module")
def with_tokens(
    plain: RegistryServer, token_server: TokenServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegistryServer]:
    directory = tmp_path_factory.mktemp("with-tokens")
    with serve_registry(directory, storage=plain.storage, tokens=token_server) as registry:
        yield registry


@pytest.fixture
def tokens(token_server: TokenServer) -> Iterator[TokenServer]:
    token_server.requests.clear()
    token_server.tokens.clear()
    yield token_server
    token_server.lifetime_seconds, token_server.told_seconds = 600, None


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_logins(monkeypatch, tmp_path)


def log_in(tmp_path: Path, address: str, entry: object = (USER, PASSWORD)) -> None:
    write_auths(tmp_path / ".docker/config.json", {address: entry})


def connect(address: str, repository: str = "private/image", **options: int) -> Registry:
    access = Access(**{"retries": 2, **options})  # type: ignore[arg-type]
    registry = Registry(Reference.parse(f"docker://{address}/{repository}"), access)
    registry._chance = AtOnce()
    return registry


# --- challenges

CHALLENGES: dict[str, tuple[list[str], list[tuple[str, dict[str, str]]]]] = {
    "basic": (['Basic realm="tests"'], [("basic", {"realm": "tests"})]),
    "bearer": (
        ['Bearer realm="https://a/t?x=1",service="s",scope="repository:a:pull,push"'],
        [("bearer", {"realm": "https://a/t?x=1", "service": "s", "scope": "repository:a:pull,push"})],
    ),
    "blanks": (['bearer  realm = "a" , service=b'], [("bearer", {"realm": "a", "service": "b"})]),
    "quotes": ([r'Basic realm="a \"b\" \\ c"'], [("basic", {"realm": 'a "b" \\ c'})]),
    "two in one": (
        ['Basic realm="a", Bearer realm="b",service="c"'],
        [("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
    ),
    "two headers": (["Negotiate", 'Basic realm="a"'], [("negotiate", {}), ("basic", {"realm": "a"})]),
    "no parameters before another": (
        ['Negotiate, Basic realm="a"'],
        [("negotiate", {}), ("basic", {"realm": "a"})],
    ),
    "first of two equal": (['Bearer realm="a",realm="b"'], [("bearer", {"realm": "a"})]),
    "nothing": ([""], []),
    "no headers": ([], []),
    "no name": (['="a"'], []),
    "no end of the text": (['Bearer realm="a'], [("bearer", {})]),
    "no value": (["Bearer realm="], [("bearer", {"realm": ""})]),
    "too long": ([f'Bearer realm="{"a" * 9000}"'], []),
}


@pytest.mark.parametrize("title", CHALLENGES)
def test_challenges_are_read(title: str) -> None:
    headers, want = CHALLENGES[title]
    assert list(parse_challenges(headers)) == want


@given(st.lists(st.text('Basic="\\, \t\x00é', max_size=60), max_size=3))
def test_any_header_is_read_to_its_end(headers: list[str]) -> None:
    for scheme, parameters in parse_challenges(headers):
        assert scheme
        assert all(parameters)


# --- basic


def test_user_of_a_registry_with_basic_authentication_may_pull(
    with_users: RegistryServer, tmp_path: Path
) -> None:
    log_in(tmp_path, with_users.address)
    with connect(with_users.address) as registry:
        found = registry.manifest("tag")
        assert registry.manifest(found.digest) == found


def test_nobody_is_told_to_log_in(with_users: RegistryServer) -> None:
    with connect(with_users.address) as registry, pytest.raises(RegistryError) as caught:
        registry.manifest("tag")
    assert str(caught.value) == (
        f"{with_users.address}/private/image: manifest tag: got 401 Unauthorized: UNAUTHORIZED: "
        f"authentication required, want a login at {with_users.address}"
    )


def test_wrong_password_is_refused_and_not_shown(with_users: RegistryServer, tmp_path: Path) -> None:
    log_in(tmp_path, with_users.address, (USER, "wrong-secret"))
    with connect(with_users.address) as registry:
        with pytest.raises(RegistryError, match=r"401 .*want credentials that are accepted") as caught:
            registry.manifest("tag")
        assert "wrong-secret" not in f"{caught.value!r}{registry!r}"


def test_credentials_for_a_namespace_are_found(with_users: RegistryServer, tmp_path: Path) -> None:
    log_in(tmp_path, f"{with_users.address}/private")
    with connect(with_users.address) as registry:
        registry.manifest("tag")
    with (
        connect(with_users.address, "public/image") as registry,
        pytest.raises(RegistryError, match="a login"),
    ):
        registry.manifest("tag")


def test_credentials_are_not_sent_before_they_are_asked_for(plain: RegistryServer, tmp_path: Path) -> None:
    with Proxy(plain.address) as proxy:
        log_in(tmp_path, proxy.address)
        with connect(proxy.address) as registry:
            registry.manifest("tag")
        assert not any("authorization" in exchange.headers for exchange in proxy.exchanges)


# --- tokens


def test_nobody_gets_a_token_for_what_is_public(with_tokens: RegistryServer, tokens: TokenServer) -> None:
    with connect(with_tokens.address, "public/image") as registry:
        found = registry.manifest("tag")
        assert registry.manifest(found.digest) == found
    [request] = tokens.requests
    assert request.method == "GET"
    assert request.fields == {"service": ["registry"], "scope": ["repository:public/image:pull"]}
    assert "authorization" not in request.headers


def test_nobody_may_not_pull_what_is_private(with_tokens: RegistryServer, tokens: TokenServer) -> None:
    with (
        connect(with_tokens.address) as registry,
        pytest.raises(RegistryError, match=r"401 .*want a login at"),
    ):
        registry.manifest("tag")
    assert len(tokens.requests) <= 2


def test_password_buys_a_token(with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path) -> None:
    log_in(tmp_path, with_tokens.address)
    with connect(with_tokens.address) as registry:
        registry.manifest("tag")
    [request] = tokens.requests
    assert request.method == "GET"
    assert request.headers["authorization"] == f"Basic {PAIR}"
    assert request.fields["scope"] == ["repository:private/image:pull"]
    assert PASSWORD not in str(request.fields)


def test_identity_token_buys_a_token(
    with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path
) -> None:
    log_in(tmp_path, with_tokens.address, {"identitytoken": IDENTITY_TOKEN})
    with connect(with_tokens.address) as registry:
        registry.manifest("tag")
    [request] = tokens.requests
    assert request.method == "POST"
    assert request.fields["refresh_token"] == [IDENTITY_TOKEN]
    assert request.fields["grant_type"] == ["refresh_token"]
    assert request.fields["scope"] == ["repository:private/image:pull"]
    assert "authorization" not in request.headers


def test_registry_token_is_used_as_it_is(
    with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path
) -> None:
    token = tokens.sign([{"type": "repository", "name": "private/image", "actions": ["pull"]}])
    log_in(tmp_path, with_tokens.address, {"registrytoken": token})
    with connect(with_tokens.address) as registry:
        registry.manifest("tag")
    assert tokens.requests == []


@pytest.mark.parametrize("entry", [(USER, "wrong-secret"), {"identitytoken": "wrong-secret"}])
def test_token_server_that_refuses_is_named(
    entry: object, with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path
) -> None:
    log_in(tmp_path, with_tokens.address, entry)
    with connect(with_tokens.address) as registry:
        with pytest.raises(
            RegistryError, match=r"token server http://127.0.0.1:\d+: no token: got 401"
        ) as caught:
            registry.manifest("tag")
        assert "wrong-secret" not in f"{caught.value!r}{registry!r}"


def refuses(address: str, token: str) -> bool:
    connection = http.client.HTTPConnection(address)
    headers = {"Authorization": f"Bearer {token}"}
    try:
        connection.request("GET", "/v2/private/image/manifests/tag", headers=headers)
        return connection.getresponse().status == 401
    finally:
        connection.close()


@pytest.mark.parametrize("told_seconds", [None, 3600])
def test_token_that_expires_is_renewed(
    told_seconds: int | None, with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path
) -> None:
    log_in(tmp_path, with_tokens.address)
    tokens.lifetime_seconds, tokens.told_seconds = 1, told_seconds
    with connect(with_tokens.address) as registry:
        manifest = registry.manifest("tag")
        wait_for(lambda: refuses(with_tokens.address, tokens.tokens[-1]))
        tokens.lifetime_seconds = 600
        assert registry.manifest(manifest.digest) == manifest
    assert len(tokens.requests) == 2


def test_token_is_renewed_before_its_time_is_over(
    with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path
) -> None:
    log_in(tmp_path, with_tokens.address)
    tokens.told_seconds = 0.000001  # type: ignore[assignment]
    with connect(with_tokens.address) as registry:
        registry.manifest("tag")
        registry.manifest("tag")
    assert len(tokens.requests) == 2


def test_threads_share_a_token(with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path) -> None:
    log_in(tmp_path, with_tokens.address)
    found = []
    with connect(with_tokens.address, connections=8) as registry:
        threads = [threading.Thread(target=lambda: found.append(registry.manifest("tag"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 8
    assert len(tokens.requests) == 1


def test_who_comes_late_gets_the_token_that_is_there(
    with_tokens: RegistryServer, tokens: TokenServer
) -> None:
    headers = [f'Bearer realm="{tokens.realm}",service="registry"']
    with connect(with_tokens.address) as registry:
        authorizer = registry._endpoints[-1].authorizer
        first = authorizer.renew(headers, None)
        assert first == f"Bearer {tokens.tokens[0]}"
        assert authorizer.renew(headers, None) == first
        assert authorizer.renew(headers, "Bearer older") == first
        assert len(tokens.requests) == 1
        assert authorizer.renew(headers, first) == f"Bearer {tokens.tokens[1]}"


def test_token_is_had_over_tls(plain: RegistryServer, tokens: TokenServer, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with serve_registry(
        tmp_path / "tls", storage=plain.storage, tokens=tokens, authority=authority
    ) as server:
        log_in(tmp_path, server.address)
        access = Access(ca_file=str(authority.ca_file))
        with Registry(Reference.parse(f"docker://{server.address}/private/image"), access) as registry:
            registry.manifest("tag")


# --- login


def test_login_is_checked(
    with_tokens: RegistryServer, with_users: RegistryServer, plain: RegistryServer
) -> None:
    check_login(plain.address, Credentials(USER, "anything"), Access())
    for server in (with_users, with_tokens):
        check_login(server.address, Credentials(USER, PASSWORD), Access())
        with pytest.raises(RegistryError, match="401") as caught:
            check_login(server.address, Credentials(USER, "wrong-secret"), Access())
        assert "wrong-secret" not in repr(caught.value)
    check_login(with_tokens.address, Credentials(identity_token=IDENTITY_TOKEN), Access())
    with pytest.raises(RegistryError, match="1: connection refused"):
        check_login("127.0.0.1:1", Credentials(USER, PASSWORD), Access())


# --- token servers that are none of the registry's, or misbehave


def any_request(_: Exchange) -> bool:
    return True


def is_manifest(exchange: Exchange) -> bool:
    return "/manifests/" in exchange.target


def is_token(exchange: Exchange) -> bool:
    return exchange.target.startswith("/token")


def challenge(realm: str) -> Fault:
    return Fault(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'})


def answer_of(document: object) -> Fault:
    return Fault(status=200, body=json.dumps(document).encode())


@pytest.fixture
def proxy(plain: RegistryServer) -> Iterator[Proxy]:
    with Proxy(plain.address) as proxy:
        yield proxy


REALMS: dict[str, tuple[str, str]] = {
    "other scheme": (
        "file:///etc/passwd",
        "realm of the challenge: scheme of a URL: got file, want http or https",
    ),
    "no URL": ("tests", "realm of the challenge: scheme of a URL: got none"),
    "nothing": ("", "realm of the challenge: scheme of a URL: got none"),
    "plain HTTP to another host": (
        "http://token.invalid/",
        "plain HTTP: got http://token.invalid, want https",
    ),
    "confusing host": ("http://127.0.0.1\\\\@token.invalid/", "host of a URL|plain HTTP"),
    "user-info": ("http://127.0.0.1@token.invalid/", "plain HTTP: got http://token.invalid"),
    "bad port": ("https://h.x:port/", "a URL that is none"),
    "no host": ("https:///token", "host of a URL: got none"),
    "unknown host": ("https://token.invalid/?secret", "token.invalid: name or service not known"),
}


@pytest.mark.parametrize("title", REALMS)
def test_realm_that_cannot_be_trusted_gets_nothing(title: str, proxy: Proxy, tmp_path: Path) -> None:
    realm, message = REALMS[title]
    log_in(tmp_path, proxy.address)
    proxy.fault(challenge(realm), when=any_request, times=None)
    with connect(proxy.address, retries=0) as registry, pytest.raises(RegistryError, match=message) as caught:
        registry.manifest("tag")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


ANSWERS: dict[str, tuple[Fault, str]] = {
    "no JSON": (Fault(status=200, body=b"token"), "answer is no JSON"),
    "nested": (Fault(status=200, body=b"[" * 100_000), "answer is no JSON"),
    "array": (answer_of(["secret"]), "answer is no JSON object"),
    "no token": (answer_of({"expires_in": 5}), "answer without a usable token"),
    "number": (answer_of({"token": 5}), "answer without a usable token"),
    "line break": (answer_of({"token": "secret\r\nX: y"}), "answer without a usable token"),
    "not ASCII": (answer_of({"token": "secr\xe9t"}), "answer without a usable token"),
    "very long": (answer_of({"token": "x" * 40_000}), "answer without a usable token"),
    "huge": (Fault(status=200, body=b" " * 1_200_000), "answer is too large: want at most 1048576"),
    "forbidden": (Fault(status=403, body=b'{"details": "go away"}'), "no token: got 403 Forbidden: go away"),
    "OAuth's error": (
        Fault(status=400, body=b'{"error": "invalid_grant", "error_description": "no\\nmore"}'),
        "no token: got 400 Bad Request: invalid_grant: no more",
    ),
    "long error": (
        Fault(status=400, body=json.dumps({"error": "x" * 5000}).encode()),
        "x{200}[.]{3}, want a login",
    ),
    "web page": (Fault(status=404, body=b"<html>" * 5000), "no token: got 404 Not Found$"),
    "down": (Fault(status=503), "token server: 503 Service Unavailable, 3 times in a row"),
    "waits": (
        Fault(status=429, headers={"Retry-After": "99999999"}),
        "a pause of 1e[+]08 s, want a pause of at most 120 s",
    ),
    "redirect loop": (Fault(status=302, headers={"Location": "/token"}), "too many redirects"),
}


@pytest.mark.parametrize("title", ANSWERS)
def test_token_server_that_misbehaves_is_named(title: str, proxy: Proxy) -> None:
    fault, message = ANSWERS[title]
    proxy.fault(fault, when=is_token, times=None)
    proxy.fault(challenge(f"{proxy.url}/token"), when=any_request, times=None)
    with connect(proxy.address) as registry, pytest.raises(RegistryError, match=message) as caught:
        registry.manifest("tag")
    assert proxy.address in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_token_server_that_is_down_for_a_moment_is_asked_again(proxy: Proxy) -> None:
    proxy.fault(challenge(f"{proxy.url}/token"), when=is_manifest, times=3)
    proxy.fault(Fault(status=503), when=is_token, times=2)
    proxy.fault(answer_of({"token": "t"}), when=is_token)
    with connect(proxy.address) as registry:
        registry.manifest("tag")
    assert proxy.exchanges[-1].headers["authorization"] == "Bearer t"


def test_password_does_not_follow_a_redirect_of_the_token_server(proxy: Proxy, tmp_path: Path) -> None:
    log_in(tmp_path, proxy.address)
    with Proxy(proxy.address) as other:
        proxy.fault(challenge(f"{proxy.url}/token"), when=is_manifest)
        proxy.fault(Fault(redirect=other.url), when=is_token)
        other.fault(answer_of({"token": "t"}), when=is_token)
        with connect(proxy.address) as registry:
            registry.manifest("tag")
        [asked] = other.exchanges
        assert asked.target.startswith("/token")
        assert "authorization" not in asked.headers


def test_identity_token_does_not_follow_a_redirect(proxy: Proxy, tmp_path: Path) -> None:
    log_in(tmp_path, proxy.address, {"identitytoken": "identity-secret"})
    with Proxy(proxy.address) as other:
        proxy.fault(challenge(f"{proxy.url}/token"), when=is_manifest)
        proxy.fault(Fault(redirect=other.url), when=is_token)
        with (
            connect(proxy.address) as registry,
            pytest.raises(RegistryError, match="no token: got 307") as caught,
        ):
            registry.manifest("tag")
        assert other.exchanges == []
        assert "identity-secret" not in str(caught.value)


def test_secret_that_comes_back_in_an_error_is_not_shown(proxy: Proxy, tmp_path: Path) -> None:
    log_in(tmp_path, proxy.address)
    echo = json.dumps({"errors": [{"code": "DENIED", "message": f"{PASSWORD} {PAIR} token-secret"}]}).encode()
    proxy.fault(challenge(f"{proxy.url}/token"), when=is_manifest)
    proxy.fault(answer_of({"token": "token-secret"}), when=is_token)
    proxy.fault(Fault(status=403, body=echo), when=is_manifest)
    with (
        connect(proxy.address) as registry,
        pytest.raises(RegistryError, match=r"DENIED: \*\*\* \*\*\* \*\*\*$"),
    ):
        registry.manifest("tag")


@pytest.mark.parametrize("before", [190, 180])
def test_no_part_of_a_secret_is_shown_where_an_error_is_cut(
    before: int, proxy: Proxy, tmp_path: Path
) -> None:
    secret = "back\\slash secret-that-is-long"
    log_in(tmp_path, proxy.address, (USER, secret))
    echo = json.dumps({"message": "x" * before + secret}).encode()
    proxy.fault(Fault(status=401, headers={"WWW-Authenticate": "Basic"}), when=is_manifest)
    proxy.fault(Fault(status=403, body=echo), when=is_manifest)
    with connect(proxy.address) as registry, pytest.raises(RegistryError, match=r"403 Forbidden: x+\*\*\*$"):
        registry.manifest("tag")


def test_challenge_does_not_widen_the_scope(proxy: Proxy) -> None:
    wide = f'Bearer realm="{proxy.url}/token",scope="repository:other:push registry:catalog:*"'
    proxy.fault(Fault(status=401, headers={"WWW-Authenticate": wide}), when=is_manifest)
    proxy.fault(answer_of({"token": "t"}), when=is_token)
    with connect(proxy.address) as registry:
        registry.manifest("tag")
    [asked] = [exchange for exchange in proxy.exchanges if is_token(exchange)]
    assert asked.target == "/token?scope=repository%3Aprivate%2Fimage%3Apull"


@pytest.mark.parametrize("header", ["", "Negotiate", 'Digest realm="a"', "Basic"])
def test_challenge_that_cannot_be_answered_is_a_refusal(header: str, proxy: Proxy) -> None:
    proxy.fault(Fault(status=401, headers={"WWW-Authenticate": header}), when=any_request, times=None)
    with (
        connect(proxy.address) as registry,
        pytest.raises(RegistryError, match="401 Unauthorized, want a login at"),
    ):
        registry.manifest("tag")


def test_registry_that_refuses_every_token_is_asked_a_few_times(proxy: Proxy) -> None:
    for number in range(9):
        proxy.fault(answer_of({"token": f"t{number}"}), when=is_token)
    proxy.fault(challenge(f"{proxy.url}/token"), when=any_request, times=None)
    with (
        connect(proxy.address) as registry,
        pytest.raises(RegistryError, match="401 Unauthorized, want a login"),
    ):
        registry.manifest("tag")
    assert len(proxy.exchanges) < 9


def test_storage_that_asks_for_a_password_does_not_get_it(proxy: Proxy, tmp_path: Path) -> None:
    """A 401 of the host that a registry redirects to is no challenge of the registry."""
    log_in(tmp_path, proxy.address)
    with Proxy(proxy.address) as other:
        proxy.fault(Fault(redirect=other.url), when=is_manifest)
        other.fault(
            Fault(status=401, headers={"WWW-Authenticate": 'Basic realm="a"'}), when=any_request, times=None
        )
        with (
            connect(proxy.address) as registry,
            pytest.raises(RegistryError, match=f"401 Unauthorized from {other.url}"),
        ):
            registry.manifest("tag")
        assert not any("authorization" in exchange.headers for exchange in other.exchanges + proxy.exchanges)


def test_no_log_has_a_secret(
    with_tokens: RegistryServer, tokens: TokenServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log_in(tmp_path, with_tokens.address)
    caplog.set_level(logging.DEBUG)
    with connect(with_tokens.address) as registry:
        registry.manifest("tag")
        text = f"{caplog.text}{registry!r}{vars(registry)!r}"
    assert not any(secret in text for secret in (PASSWORD, PAIR, *tokens.tokens))
    assert "account=" not in caplog.text
