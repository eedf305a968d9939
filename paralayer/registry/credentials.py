"""Who the user is at a registry: the files and programs in which other tools keep that as well.

Files, in the order in which they are asked (containers-auth.json(5), and the documentation of ``docker login``):

1. ``$REGISTRY_AUTH_FILE``, or else ``${XDG_RUNTIME_DIR}/containers/auth.json``
2. ``${XDG_CONFIG_HOME}/containers/auth.json``
3. ``${DOCKER_CONFIG}/config.json``

In each of them ``credHelpers`` and ``credsStore`` name programs, ``docker-credential-NAME``, that are asked instead of
what the file has under ``auths``. A file that is not there is passed over; one that cannot be read or understood is an
`ImageError` that names it, as is a program that fails.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paralayer.errors import ImageError
from paralayer.image.descriptor import shown
from paralayer.image.document import DOCUMENT_LIMIT, parse_document
from paralayer.image.source import check_regular, io_errors, open_file, read_at
from paralayer.registry.reference import DOCKER_HUB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paralayer.image.document import Value

_DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # under which Docker keeps it, and asks programs for it
_DOCKER_HUB_HOSTS = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_PROGRAM = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_FOUND = b"credentials not found in native keychain"
_TOKEN_USER = "<token>"  # noqa: S105 - in the place of a user: the secret is an identity token
_PROGRAM_SECONDS = 60.0  # someone may have to unlock a key ring
_LOOK_SECONDS = 0.01  # between two looks whether a program has ended
_ANSWER_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and password, or a token instead. None of it is in the `repr`."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """Is exchanged for bearer tokens at the token server, where a password would be."""
    registry_token: str = field(default="", repr=False)
    """Is a bearer token itself."""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)


def find(registry: str, repository: str = "") -> Credentials | None:
    """Return who the user is at ``HOST[:PORT]``, for the most specific name of the repository and those above it."""
    for path in _paths():
        document = _read(path)
        if document is not None and (found := _find_in(document, registry, repository)):
            return found
    return None


def store(registry: str, credentials: Credentials) -> str:
    """Keep who the user is at a registry as ``docker login`` does; return the name of the file, or of the program.

    That is in ``$REGISTRY_AUTH_FILE`` or in Docker's configuration, unless a file that is asked before has something
    for this registry: then it is there. The file is replaced at once, and is the user's only (mode 0600).
    """
    if ":" in credentials.username:
        raise ImageError("login", "user name with a colon")
    path = next((path for path in _paths() if _knows(path, registry)), _paths()[0 if _explicit() else -1])
    key = _DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
    with _edited(path) as (document, raw):
        auths = raw["auths"] = raw.get("auths") or {}
        _forget(auths, registry)
        program = document and _program(document, registry)
        if program:
            user = _TOKEN_USER if credentials.identity_token else credentials.username
            secret = credentials.identity_token or credentials.password
            request = {"ServerURL": key, "Username": user, "Secret": secret}
            _run(program, "store", json.dumps(request))
            auths[key] = {}
            return f"docker-credential-{program}"
        pair = f"{credentials.username}:{credentials.password}"
        auths[key] = {"auth": base64.b64encode(pair.encode()).decode()}
        if credentials.identity_token:
            auths[key]["identitytoken"] = credentials.identity_token
    return path


def erase(registry: str) -> list[str]:
    """Forget who the user is at a registry, wherever `find` would look; return the names of the places.

    What is kept for single repositories stays.
    """
    places = []
    for path in _paths():
        if not _knows(path, registry):
            continue
        with _edited(path) as (document, raw):
            program = document and _program(document, registry)
            if program:
                key = _DOCKER_HUB_KEY if registry == DOCKER_HUB else registry
                _run(program, "erase", key)
                places.append(f"docker-credential-{program}")
            if _forget(raw.get("auths") or {}, registry):
                places.append(path)
    return places


def _paths() -> list[str]:
    environment = os.environ
    runtime = environment.get("XDG_RUNTIME_DIR")
    config = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    docker = environment.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    first = f"{runtime}/containers" if runtime else f"/run/containers/{os.getuid()}"
    paths = [_explicit() or f"{first}/auth.json", f"{config}/containers/auth.json", f"{docker}/config.json"]
    return [os.path.abspath(path) for path in paths]


def _explicit() -> str | None:
    return os.environ.get("REGISTRY_AUTH_FILE") or None


def _read(path: str) -> Value | None:
    with io_errors(shown(path)):
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
    check_regular(status, shown(path))
    fd = open_file(path)  # a login elsewhere may put another file in its place from here on
    try:
        data = read_at(fd, DOCUMENT_LIMIT + 1, 0, shown(path))
    finally:
        os.close(fd)
    if len(data) > DOCUMENT_LIMIT:
        raise ImageError(shown(path), "file is too large", want=f"at most {DOCUMENT_LIMIT} bytes")
    # Empty files are without entries for docker and podman as well.
    document = parse_document(data if data.strip() else b"{}", shown(path))
    for name in ("auths", "credHelpers"):
        if (member := document.get(name)) is not None and not isinstance(member.raw, dict):
            raise member.error("something else", "an object")
    return document


def _find_in(document: Value, registry: str, repository: str) -> Credentials | None:
    if program := _program(document, registry):
        return _ask(program, _DOCKER_HUB_KEY if registry == DOCKER_HUB else registry)
    auths = document.get("auths")
    if auths is None:
        return None
    name = f"{registry}/{repository}" if repository else registry
    while name:
        for key in _keys(auths, name):
            if entry := auths.get(key):
                found = _decode(entry)
                if found:
                    return found
        name = name.rpartition("/")[0]
    return None


def _knows(path: str, registry: str) -> bool:
    """Say whether a file has something for this registry, be it a program that may have."""
    document = _read(path)
    if document is None:
        return False
    auths = document.get("auths")
    return bool(_program(document, registry)) or (auths is not None and bool(_keys(auths, registry)))


def _program(document: Value, registry: str) -> str | None:
    """Return the NAME of the program that a file names for this registry."""
    helpers = document.get("credHelpers")
    chosen = None
    if helpers is not None and (keys := _keys(helpers, registry)):
        chosen = helpers.get(keys[0])
    chosen = chosen or document.get("credsStore")
    if chosen is None or not (name := chosen.text()):
        return None
    if not _PROGRAM.fullmatch(name):
        raise chosen.error(shown(name), "the end of a program's name")
    return name


def _keys(entries: Value, name: str) -> list[str]:
    """Return the members that stand for a registry or repository, the one that is spelled so first."""
    assert isinstance(entries.raw, dict)  # `_read` has seen to that
    return sorted((key for key in entries.raw if _normalise(key) == name), key=lambda key: key != name)


def _normalise(key: str) -> str:
    """Return what a key of ``auths`` stands for; Docker's are URLs for some registries, as it once had them for all."""
    scheme, separator, rest = key.partition("://")
    name = rest if separator and scheme in ("http", "https") else key
    host, slash, path = name.partition("/")
    host = host.lower()
    if host in _DOCKER_HUB_HOSTS:
        host = DOCKER_HUB
    if name is not key or path in ("", "v1/", "v2/"):
        return host
    return f"{host}{slash}{path}"


def _decode(entry: Value) -> Credentials | None:
    """Return what an entry of ``auths`` has, None if it is one of those without anything."""
    fields = {}
    for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
        value = entry.get(name)
        raw = "" if value is None else value.raw
        if not isinstance(raw, str):
            raise ImageError(entry.where, f"field {name} is no text")
        fields[name] = raw
    username, password = fields["username"], fields["password"]
    if fields["auth"]:
        try:
            username, colon, password = (
                base64.b64decode(fields["auth"], validate=True).decode().partition(":")
            )
        except (binascii.Error, UnicodeDecodeError, ValueError):
            colon = ""
        if not colon:
            raise ImageError(entry.where, "field auth is not the base64 of USER:PASSWORD")
        password = password.strip("\0")
    found = Credentials(username, password, fields["identitytoken"], fields["registrytoken"])
    return found or None


def _ask(program: str, key: str) -> Credentials | None:
    """Return what a program has for a registry."""
    where = f"docker-credential-{program}"
    answer = _run(program, "get", key)
    if answer is None:
        return None
    try:
        document = json.loads(answer)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ImageError(where, "answer is no JSON with Username and Secret") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise ImageError(where, "answer is no JSON with Username and Secret")
    found = Credentials(identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)
    return found or None


def _run(program: str, action: str, request: str) -> bytes | None:
    """Return what a program answers, None if it knows nothing of this registry. What it is told, it reads from a pipe.

    Whatever it says may be secret, so no error has it. It has a process group of its own, of which nothing stays.
    """
    name = f"docker-credential-{program}"
    try:
        process = subprocess.Popen(
            [name, action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
    except OSError as error:
        raise ImageError(name, "cannot be run", os.strerror(error.errno or 0).lower()) from None
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(request.encode())
        answer = _read_answer(process, process.stdout.fileno(), name)
    finally:
        # Before `wait`: until then no other group can have this number.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        process.stdout.close()
    if status == 0:
        return answer
    if _NOT_FOUND in answer:
        return None
    raise ImageError(name, f"{action} ended with status {status}")


def _read_answer(process: subprocess.Popen[bytes], fd: int, name: str) -> bytes:
    """Return what has come through a pipe when the process has ended; others that it started may keep the pipe open."""
    deadline = time.monotonic() + _PROGRAM_SECONDS
    os.set_blocking(fd, False)
    awaited = [fd]
    answer = b""
    while True:
        select.select(awaited, [], [], _LOOK_SECONDS)
        # Asked before the pipe is read, so that it has written nothing afterwards; and it stays to be waited for.
        try:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # SIGCHLD is ignored, so that nothing stays
            ended = True
        with suppress(BlockingIOError):
            while part := os.read(fd, _ANSWER_LIMIT):
                answer += part
                if len(answer) > _ANSWER_LIMIT:
                    raise ImageError(name, "answer is too large", want=f"at most {_ANSWER_LIMIT} bytes")
            awaited = []
        if ended:
            return answer
        if time.monotonic() > deadline:
            raise ImageError(name, "has not ended", want=f"within {_PROGRAM_SECONDS:g} s")


@contextmanager
def _edited(path: str) -> Iterator[tuple[Value | None, dict[str, Any]]]:
    """Give the document at `path`, and replace it by what it was made, if that is something else.

    Whoever else does so waits for the lock on its directory.
    """
    path = os.path.realpath(path)
    with io_errors(shown(path)):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            document = _read(path)
            raw = dict(document.raw) if document is not None and isinstance(document.raw, dict) else {}
            auths = raw.get("auths")
            if isinstance(auths, dict):
                raw["auths"] = dict(auths)
            before = json.dumps(raw)
            yield document, raw
            if json.dumps(raw) != before:
                _replace(path, json.dumps(raw, indent="\t").encode())
                os.fsync(directory)
        finally:
            os.close(directory)


def _replace(path: str, data: bytes) -> None:
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".paralayer-")
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _forget(auths: dict[str, Any], registry: str) -> bool:
    """Remove a registry's entries; say whether there were any."""
    keys = [key for key in auths if _normalise(key) == registry]
    for key in keys:
        del auths[key]
    return bool(keys)
