"""Where credentials are found, and how they are kept."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import psutil
import pytest

from paralayer import ImageError
from paralayer.registry import credentials
from paralayer.registry.credentials import Credentials, erase, find, store
from processes import COMMAND, end_of, running, wait_for
from registries import forget_logins, write_auths

if TYPE_CHECKING:
    from pathlib import Path

HUB = "https://index.docker.io/v1/"
USER = Credentials("user", "pass-word")

HELPER = f"""#!{sys.executable}
import json, os, sys
place = os.environ["HELPER_PLACE"]
request = sys.stdin.read()
with open(place + "/asked", "a") as f:
    f.write(json.dumps([sys.argv[1:], request]) + "\\n")
kept = place + "/kept"
known = json.load(open(kept)) if os.path.exists(kept) else {{}}
if sys.argv[1] == "store":
    entry = json.loads(request)
    known[entry["ServerURL"]] = entry
elif request not in known:
    print("credentials not found in native keychain")
    sys.exit(1)
elif sys.argv[1] == "get":
    print(json.dumps(known[request]))
else:
    del known[request]
json.dump(known, open(kept, "w"))
"""


class Helper:
    """A credential helper, ``docker-credential-NAME``, that keeps what it is given and notes what it was asked."""

    def __init__(self, directory: Path, program: str) -> None:
        self.place = directory
        self.path = directory / "docker-credential-test"
        self.path.write_text(program)
        self.path.chmod(0o755)

    def keep(self, **entries: tuple[str, str]) -> None:
        kept = {key: {"Username": user, "Secret": secret} for key, (user, secret) in entries.items()}
        (self.place / "kept").write_text(json.dumps(kept))

    @property
    def asked(self) -> list[tuple[list[str], str]]:
        path = self.place / "asked"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_logins(monkeypatch, tmp_path)


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Helper:
    place = tmp_path / "helper"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("HELPER_PLACE", str(place))
    return Helper(place, HELPER)


def docker(tmp_path: Path) -> Path:
    return tmp_path / ".docker/config.json"


# --- found


def test_nobody_is_logged_in_without_files() -> None:
    assert find("h.x") is None
    assert find("docker.io", "library/alpine") is None


def test_files_are_asked_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "explicit"))
    paths = [tmp_path / "explicit", tmp_path / ".config/containers/auth.json", docker(tmp_path)]
    for path in paths:
        write_auths(path, {"h.x": (path.name, str(path))})
    for path in paths:
        assert find("h.x") == Credentials(path.name, str(path))
        write_auths(path, {"other.x": ("nobody", "x")})
    assert find("h.x") is None


def test_places_of_the_files_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_auths(tmp_path / "run/containers/auth.json", {"runtime.x": ("runtime", "x")})
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    write_auths(tmp_path / "xdg/containers/auth.json", {"config.x": ("config", "x")})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    write_auths(tmp_path / "docker/config.json", {"docker.x": ("docker", "x")})
    for name in ("runtime", "config", "docker"):
        assert find(f"{name}.x") == Credentials(name, "x")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "absent"))
    assert find("runtime.x") is None
    assert find("docker.x") == Credentials("docker", "x")


KEYS: dict[str, tuple[str, str, str, bool]] = {
    "host": ("h.x", "h.x", "a", True),
    "host and port": ("h.x:5000", "h.x:5000", "a", True),
    "other port": ("h.x:5000", "h.x:5001", "a", False),
    "without the port": ("h.x", "h.x:5000", "a", False),
    "host in capitals": ("H.X", "h.x", "a", True),
    "URL": ("https://h.x", "h.x", "a", True),
    "URL with http": ("http://h.x:5000/", "h.x:5000", "a", True),
    "URL of version 1": ("https://h.x/v1/", "h.x", "a", True),
    "URL of version 2": ("https://h.x/v2/", "h.x", "a", True),
    "version 2 without a scheme": ("h.x/v2/", "h.x", "a", True),
    "Docker Hub's own": (HUB, "docker.io", "library/a", True),
    "Docker Hub": ("docker.io", "docker.io", "library/a", True),
    "Docker Hub's index": ("index.docker.io", "docker.io", "library/a", True),
    "Docker Hub's API": ("registry-1.docker.io", "docker.io", "library/a", True),
    "Docker Hub for another": (HUB, "h.x", "library/a", False),
    "repository": ("h.x/a/b", "h.x", "a/b", True),
    "namespace": ("h.x/a", "h.x", "a/b/c", True),
    "beginning of a name": ("h.x/a", "h.x", "ab", False),
    "below": ("h.x/a/b", "h.x", "a", False),
    "repository of Docker Hub": ("docker.io/library/a", "docker.io", "library/a", True),
    "end of a host": ("h.x", "evil-h.x", "a", False),
    "host as user-info": ("https://h.x@evil.x", "h.x", "a", False),
}


@pytest.mark.parametrize("title", KEYS)
def test_key_of_an_entry_says_what_it_is_for(title: str, tmp_path: Path) -> None:
    key, registry, repository, fits = KEYS[title]
    write_auths(docker(tmp_path), {key: ("user", "pass-word")})
    assert find(registry, repository) == (USER if fits else None)


def test_most_specific_entry_is_taken(tmp_path: Path) -> None:
    entries = {"h.x": ("host", "x"), "h.x/a/b": ("repository", "x"), "h.x/a": ("namespace", "x")}
    write_auths(docker(tmp_path), entries)
    for repository, user in {"a/b": "repository", "a/c": "namespace", "c": "host", "": "host"}.items():
        assert find("h.x", repository) == Credentials(user, "x")


def test_entry_that_is_spelled_as_the_host_goes_before_a_url(tmp_path: Path) -> None:
    write_auths(docker(tmp_path), {"https://h.x/v1/": ("old", "x"), "h.x": ("new", "x")})
    assert find("h.x") == Credentials("new", "x")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENTRIES: dict[str, tuple[object, Credentials | None]] = {
    "nothing": ({}, None),
    "null": (None, None),
    "password with colons": ({"auth": encoded("u:a:b")}, Credentials("u", "a:b")),
    "NULs at the end": ({"auth": encoded("u:p\0\0")}, Credentials("u", "p")),
    "unicode": ({"auth": encoded("ü:ß")}, Credentials("ü", "ß")),
    "fields": ({"username": "u", "password": "p"}, Credentials("u", "p")),
    "identity token": ({"auth": encoded("u:"), "identitytoken": "t"}, Credentials("u", "", "t")),
    "identity token alone": ({"identitytoken": "t"}, Credentials("", "", "t")),
    "registry token": ({"registrytoken": "t"}, Credentials("", "", "", "t")),
}


@pytest.mark.parametrize("title", ENTRIES)
def test_entry_is_understood(title: str, tmp_path: Path) -> None:
    entry, want = ENTRIES[title]
    write_auths(docker(tmp_path), {"h.x": entry})
    assert find("h.x") == want


def test_entry_without_anything_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write_auths(tmp_path / "first", {"h.x/a": {}, "h.x": {}})))
    write_auths(docker(tmp_path), {"h.x": ("user", "pass-word")})
    assert find("h.x", "a") == USER


BROKEN: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"auths": {"h.x": {"auth": "c2VjcmV0"', "not JSON"),
    "no text": (b"\xff\xfe", "not UTF-8"),
    "nested": (b"[" * 100000, "nested too deeply"),
    "array": (b"[]", "got an array, want an object"),
    "auths is an array": (b'{"auths": []}', "auths.*want an object"),
    "credHelpers is a string": (b'{"credHelpers": "secret"}', "credHelpers.*want an object"),
    "entry is a string": (b'{"auths": {"h.x": "secret"}}', "h.x: got a string, want an object"),
    "auth is no base64": (b'{"auths": {"h.x": {"auth": "*secret*"}}}', "h.x: field auth is not the base64"),
    "auth without a colon": (
        b'{"auths": {"h.x": {"auth": "c2VjcmV0"}}}',
        "h.x: field auth is not the base64",
    ),
    "auth is a number": (b'{"auths": {"h.x": {"auth": 5}}}', "h.x: field auth is no text"),
    "password is an array": (b'{"auths": {"h.x": {"password": ["secret"]}}}', "field password is no text"),
    "helper is a path": (b'{"credsStore": "../../bin/x"}', "credsStore: got ../../bin/x"),
}


@pytest.mark.parametrize("title", BROKEN)
def test_file_that_is_broken_is_named(title: str, tmp_path: Path) -> None:
    data, message = BROKEN[title]
    path = docker(tmp_path)
    path.parent.mkdir()
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        find("h.x")
    assert str(caught.value).startswith(str(path))
    assert "secret" not in str(caught.value)
    assert "c2VjcmV0" not in str(caught.value)


def test_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    docker(tmp_path).parent.mkdir()
    with open(docker(tmp_path), "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"config.json: file is too large"):
        find("h.x")


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    docker(tmp_path).mkdir(parents=True)
    with pytest.raises(ImageError, match=r"config.json: file type: got a directory"):
        find("h.x")
    docker(tmp_path).rmdir()
    os.mkfifo(docker(tmp_path))
    with pytest.raises(ImageError, match=r"config.json: file type: got a FIFO"):
        find("h.x")


@pytest.mark.requires("root")
def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_auths(docker(tmp_path), {"h.x": ("user", "pass-word")})
    path.chmod(0o600)
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith(str(tmp_path.parent.parent)):
            directory.chmod(0o755)
    program = "from paralayer.registry.credentials import find; import os; os.setuid(65534); find('h.x')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert f"ImageError: {path}: Permission denied" in done.stderr


def test_credentials_do_not_show_themselves() -> None:
    secret = Credentials("name", "pass-word", "identity", "token")
    for text in (repr(secret), str(secret), f"{secret}", repr([secret])):
        assert not any(word in text for word in ("name", "pass-word", "identity", "token="))


# --- helpers


def test_helper_of_a_registry_is_asked_through_a_pipe(helper: Helper, tmp_path: Path) -> None:
    helper.keep(**{"h.x": ("user", "pass-word"), HUB: ("hub", "x")})
    write_auths(
        docker(tmp_path),
        {"h.x": ("file", "x"), "i.x": ("file", "x")},
        credHelpers={"h.x": "test", HUB: "test"},
    )
    assert find("h.x", "a/b") == USER
    assert find("docker.io", "library/a") == Credentials("hub", "x")
    assert find("i.x") == Credentials("file", "x")
    assert helper.asked == [(["get"], "h.x"), (["get"], HUB)]


def test_store_is_asked_for_every_registry(helper: Helper, tmp_path: Path) -> None:
    helper.keep(**{"h.x": ("user", "pass-word"), "i.x": ("<token>", "identity")})
    write_auths(docker(tmp_path), {"h.x": {}}, credsStore="test")
    assert find("h.x") == USER
    assert find("i.x") == Credentials(identity_token="identity")


def test_helper_that_knows_nothing_leaves_it_to_the_next_file(
    helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write_auths(tmp_path / "first", {}, credsStore="test")))
    assert find("h.x") is None
    write_auths(docker(tmp_path), {"h.x": ("user", "pass-word")})
    assert find("h.x") == USER
    assert helper.asked == [(["get"], "h.x")] * 2


FAILING: dict[str, tuple[str, str]] = {
    "ends with an error": ("#!/bin/sh\necho secret; exit 3", "get ended with status 3$"),
    "ends with an error behind its answer": (
        '#!/bin/sh\necho \'{"Username": "bob", "Secret": "secret"}\'; exit 1',
        "get ended with status 1$",
    ),
    "no JSON": ("#!/bin/sh\necho secret", "answer is no JSON with Username and Secret"),
    "no secret": ('#!/bin/sh\necho \'{"Username": "secret"}\'', "answer is no JSON with Username and Secret"),
    "numbers": ('#!/bin/sh\necho \'{"Username": "secret", "Secret": 5}\'', "answer is no JSON with Username"),
    "no end": ("#!/bin/sh\nexec yes secret", "answer is too large: want at most 65536"),
    "no program": ("no program at all", "cannot be run: got exec format error"),
}


@pytest.mark.parametrize("title", FAILING)
def test_helper_that_fails_is_named(title: str, helper: Helper, tmp_path: Path) -> None:
    program, message = FAILING[title]
    helper.path.write_text(program)
    write_auths(docker(tmp_path), {}, credsStore="test")
    with pytest.raises(ImageError, match=f"docker-credential-test: {message}") as caught:
        find("h.x")
    assert "secret" not in str(caught.value)


PARENT = """#!/bin/sh
cat > /dev/null
sleep 1000 &
echo $! > "$HELPER_PLACE/new" && mv "$HELPER_PLACE/new" "$HELPER_PLACE/child"
"""


def child_of(helper: Helper) -> int:
    """Return the process that `PARENT` starts, as soon as it is there."""
    path = helper.place / "child"
    wait_for(path.exists)
    return int(path.read_text())


def is_gone(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_helper_that_has_answered_is_not_waited_for_by_way_of_its_children(
    helper: Helper, tmp_path: Path
) -> None:
    helper.path.write_text(PARENT + """echo '{"Username": "user", "Secret": "pass-word"}'""")
    write_auths(docker(tmp_path), {}, credsStore="test")
    assert find("h.x") == USER
    wait_for(lambda: is_gone(child_of(helper)))


@pytest.mark.parametrize("end", ["wait", "exec >&-; wait"], ids=["pipe open", "pipe closed"])
def test_helper_that_does_not_end_is_ended_with_its_children(
    end: str, helper: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_PROGRAM_SECONDS", 0.3)
    helper.path.write_text(PARENT.replace("&\n", ">&- &\n") + end)
    write_auths(docker(tmp_path), {}, credsStore="test")
    with pytest.raises(ImageError, match=r"docker-credential-test: has not ended: want within 0.3 s"):
        find("h.x")
    wait_for(lambda: is_gone(child_of(helper)))


def test_helper_of_a_program_that_ignores_the_ends_of_its_children(helper: Helper, tmp_path: Path) -> None:
    helper.keep(**{"h.x": ("user", "pass-word")})
    write_auths(docker(tmp_path), {}, credsStore="test")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert find("h.x") == USER
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_interrupt_ends_a_helper_with_its_children(helper: Helper, tmp_path: Path) -> None:
    helper.path.write_text(f"{PARENT}wait")
    write_auths(docker(tmp_path), {}, credsStore="test")
    with running([*COMMAND, "logout", "h.x"]) as process:
        child = child_of(helper)
        process.send_signal(signal.SIGINT)
        assert end_of(process)[0] == 130
        wait_for(lambda: is_gone(child))


def test_helper_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_auths(docker(tmp_path), {}, credHelpers={"h.x": "absent"})
    with pytest.raises(ImageError, match="docker-credential-absent: cannot be run: got no such file"):
        find("h.x")
    assert find("i.x") is None


# --- kept


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\r\n"])
def test_empty_file_is_one_without_entries(data: bytes, tmp_path: Path) -> None:
    first, last = tmp_path / "run/containers/auth.json", docker(tmp_path)
    for path in (first, last):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    assert find("h.x") is None
    assert erase("h.x") == []
    assert last.read_bytes() == data
    assert store("h.x", USER) == str(last)
    assert find("h.x") == USER
    assert json.loads(last.read_text()) == {"auths": {"h.x": {"auth": encoded("user:pass-word")}}}


STORED: dict[str, Credentials] = {
    "password": USER,
    "unicode": Credentials("ü", 'ß:"\\\n'),
    "empty password": Credentials("user", ""),
    "identity token": Credentials("user", "", "identity"),
}


@pytest.mark.parametrize("registry", ["h.x:5000", "docker.io"])
@pytest.mark.parametrize("title", STORED)
def test_what_is_stored_is_found(title: str, registry: str, tmp_path: Path) -> None:
    assert store(registry, STORED[title]) == str(docker(tmp_path))
    assert find(registry, "a") == STORED[title]
    assert stat.S_IMODE(docker(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(docker(tmp_path).parent.stat().st_mode) == 0o700
    assert os.listdir(docker(tmp_path).parent) == ["config.json"]
    assert erase(registry) == [str(docker(tmp_path))]
    assert find(registry, "a") is None
    assert erase(registry) == []


def test_file_is_as_docker_writes_it(tmp_path: Path) -> None:
    before = write_auths(
        docker(tmp_path), {"i.x": ("other", "x"), "https://h.x/v1/": ("old", "x")}, detachKeys="ctrl-e"
    )
    before.chmod(0o644)
    store("h.x", USER)
    store("docker.io", Credentials("hub", "x"))
    want = {
        "auths": {
            "i.x": {"auth": encoded("other:x")},
            "h.x": {"auth": encoded("user:pass-word")},
            HUB: {"auth": encoded("hub:x")},
        },
        "detachKeys": "ctrl-e",
    }
    assert before.read_text() == json.dumps(want, indent="\t")
    assert stat.S_IMODE(before.stat().st_mode) == 0o600


def test_link_stays_a_link(tmp_path: Path) -> None:
    target = write_auths(tmp_path / "elsewhere/real.json", {})
    docker(tmp_path).parent.mkdir()
    docker(tmp_path).symlink_to(target)
    store("h.x", USER)
    assert docker(tmp_path).is_symlink()
    assert json.loads(target.read_text())["auths"] == {"h.x": {"auth": encoded("user:pass-word")}}


def test_login_goes_where_it_is_found_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = write_auths(tmp_path / "run/containers/auth.json", {"h.x": ("old", "x"), "h.x/a": ("kept", "x")})
    assert store("h.x", USER) == str(first)
    assert find("h.x") == USER
    assert store("i.x", USER) == str(docker(tmp_path))
    assert erase("h.x") == [str(first)]
    assert find("h.x", "a") == Credentials("kept", "x")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "explicit"))
    assert store("h.x", USER) == str(tmp_path / "explicit")


def test_logout_forgets_it_in_every_file(tmp_path: Path) -> None:
    paths = [
        tmp_path / "run/containers/auth.json",
        tmp_path / ".config/containers/auth.json",
        docker(tmp_path),
    ]
    for path in paths:
        write_auths(path, {"h.x": ("user", "x"), "i.x": ("other", "x")})
    assert erase("h.x") == list(map(str, paths))
    assert find("h.x") is None
    assert find("i.x") == Credentials("other", "x")


def test_logout_writes_no_file_for_nothing(tmp_path: Path) -> None:
    assert erase("h.x") == []
    assert os.listdir(tmp_path) == []


def test_helper_keeps_what_is_stored(helper: Helper, tmp_path: Path) -> None:
    write_auths(docker(tmp_path), {}, credsStore="test")
    assert store("h.x", USER) == "docker-credential-test"
    assert store("docker.io", Credentials(identity_token="identity")) == "docker-credential-test"
    assert json.loads(docker(tmp_path).read_text())["auths"] == {"h.x": {}, HUB: {}}
    assert find("h.x") == USER
    assert find("docker.io") == Credentials(identity_token="identity")
    assert erase("h.x") == ["docker-credential-test", str(docker(tmp_path))]
    assert find("h.x") is None
    assert all("pass-word" not in argument for arguments, _ in helper.asked for argument in arguments)
    assert json.loads(helper.asked[0][1]) == {"ServerURL": "h.x", "Username": "user", "Secret": "pass-word"}


@pytest.mark.parametrize("output", ["cat", "base64"])
def test_helper_that_cannot_store_or_erase_says_no_secret(
    output: str, helper: Helper, tmp_path: Path
) -> None:
    helper.path.write_text(f"#!/bin/sh\n{output}; exit 1")
    before = write_auths(docker(tmp_path), {}, credsStore="test").read_bytes()
    with pytest.raises(ImageError, match=r"^docker-credential-test: store ended with status 1$"):
        store("h.x", USER)
    with pytest.raises(ImageError, match=r"^docker-credential-test: erase ended with status 1$"):
        erase("h.x")
    assert docker(tmp_path).read_bytes() == before


def test_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = write_auths(docker(tmp_path), {})
    path.write_text("{")
    for attempt in (lambda: store("h.x", USER), lambda: erase("h.x")):
        with pytest.raises(ImageError, match="not JSON"):
            attempt()
    assert path.read_text() == "{"


def test_user_name_with_a_colon_is_refused() -> None:
    with pytest.raises(ImageError, match="user name with a colon"):
        store("h.x", Credentials("a:b", "x"))


def test_logins_at_the_same_time_are_all_kept() -> None:
    registries = [f"h{i}.x" for i in range(40)]
    threads = [threading.Thread(target=store, args=(registry, USER)) for registry in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [find(registry) for registry in registries] == [USER] * 40


@pytest.mark.requires("skopeo")
def test_skopeo_reads_what_is_stored(tmp_path: Path) -> None:
    store("h.x", USER)
    store("docker.io", Credentials("hub", "x"))
    for registry, user in {"h.x": "user", "docker.io": "hub"}.items():
        command = ["skopeo", "login", "--get-login", "--authfile", str(docker(tmp_path)), registry]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == user
