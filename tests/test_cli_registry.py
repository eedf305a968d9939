"""Images in a real registry, from the command line: converted while they are downloaded, pulled, verified, inspected."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from images import write_image
from model import Entry, directory, file, hardlink, merge, whiteout
from processes import COMMAND, convert, end_of, finish, one_line, running, wait_for
from registries import PASSWORD, USER, forget_logins, make_authority, push, serve_registry, write_auths
from registry_proxy import Fault, Proxy, Stall
from trees import diff, from_model, snapshot_tar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from registries import RegistryServer

pytestmark = pytest.mark.requires("docker-registry", "skopeo")

NOISE = random.Random(9).randbytes(3 << 20)
STACK: list[list[Entry]] = [
    [
        directory(b"./", 0o711),
        directory(b"d"),
        file(b"d/f", NOISE),
        file(b"d/g", NOISE[::-1]),
        file(b"small", b"x"),
    ],
    [file(b"d/f", NOISE[1 << 20 :]), hardlink(b"link", b"d/g")],
    [whiteout(b"d/g"), file(b"new", NOISE[: 1 << 20])],
    [directory(b"d", 0o700), file(b"top", b"y" * 100_000)],
]
OUTPUTS = {"tar": "out.tar", "squashfs": "out.squashfs", "directory": "out"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_image(str(tmp_path_factory.mktemp("image") / "layout"), STACK, compression="gzip")


@pytest.fixture(scope="module")
def server(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with serve_registry(tmp_path_factory.mktemp("registry")) as registry:
        push(image, registry, "some/image:v1")
        yield registry


@pytest.fixture
def proxy(server: RegistryServer) -> Iterator[Proxy]:
    with Proxy(server.address) as made:
        yield made


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_logins(monkeypatch, tmp_path / "home")


def run(*arguments: str | Path, code: int = 0, **options: str) -> subprocess.CompletedProcess[str]:
    done = finish([*COMMAND, *map(str, arguments)], **options)
    assert done.returncode == code, done.stderr
    return done


def outputs_in(directory: Path) -> set[str]:
    return {name for name in os.listdir(directory) if name != "home"}


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("format_", OUTPUTS)
def test_what_a_registry_has_becomes_what_the_disk_has(
    image: str, server: RegistryServer, tmp_path: Path, format_: str, jobs: str
) -> None:
    output = tmp_path / OUTPUTS[format_]
    reference = f"docker://{server.address}/some/image:v1"
    done = convert("--json", "--jobs", jobs, reference, output)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"] == reference
    if format_ != "directory":
        assert convert(image, tmp_path / f"disk{output.suffix}").returncode == 0
        assert output.read_bytes() == (tmp_path / f"disk{output.suffix}").read_bytes()
    run("verify", "--quiet", reference, output)
    run("verify", "--quiet", image, output)


def test_a_root_that_only_the_oldest_layer_has_is_known_at_once(
    server: RegistryServer, proxy: Proxy, tmp_path: Path
) -> None:
    done = convert(
        "--json", "--memory", "1M", f"docker://{proxy.address}/some/image:v1", tmp_path / "out.tar"
    )
    assert done.returncode == 0, done.stderr
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(STACK))) == []


def test_a_cache_serves_the_next_conversion(proxy: Proxy, tmp_path: Path) -> None:
    reference, cache = f"docker://{proxy.address}/some/image:v1", tmp_path / "cache"
    for number in range(2):
        done = convert("--cache", cache, reference, tmp_path / f"{number}.tar")
        assert done.returncode == 0, done.stderr
        got = {exchange.blob for exchange in proxy.of_blob()}
        assert len(got) == (5 if number == 0 else 1), "config and four layers, then the config"
        proxy.forget()
    environment = {**os.environ, "PARALAYER_CACHE": str(cache)}
    assert convert("--quiet", reference, tmp_path / "2.tar", env=environment).returncode == 0
    assert len({exchange.blob for exchange in proxy.of_blob()}) == 1
    assert convert("--no-cache", reference, tmp_path / "3.tar", env=environment).returncode == 0
    assert len({exchange.blob for exchange in proxy.of_blob()}) == 5
    assert len({(tmp_path / f"{number}.tar").read_bytes() for number in range(4)}) == 1


def test_what_a_killed_conversion_had_is_not_fetched_again(proxy: Proxy, image: str, tmp_path: Path) -> None:
    reference, cache = f"docker://{proxy.address}/some/image:v1", tmp_path / "cache"
    stall = Stall(2 << 20)
    proxy.fault(Fault(stall=stall), when=lambda e: e.blob == largest_of(image))
    command = [*COMMAND, "convert", "--cache", str(cache), reference, str(tmp_path / "out.tar")]
    with running(command) as process:
        assert stall.reached.wait(60)
        names = [digest_name(digest) for digest in layers_of(image) if digest != largest_of(image)]
        wait_for(lambda: all((cache / "blobs" / name).exists() for name in names))
        process.kill()
        process.wait()
    stall.go_on.set()
    proxy.forget()
    assert convert("--cache", cache, reference, tmp_path / "out.tar").returncode == 0
    assert sum(map(proxy.bytes_of_blob, set(layers_of(image)) - {largest_of(image)})) == 0
    size = os.path.getsize(os.path.join(image, "blobs", digest_name(largest_of(image))))
    assert proxy.bytes_of_blob(largest_of(image)) <= size - (1 << 20)
    assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(STACK))) == []


def layers_of(image: str) -> list[str]:
    described = json.loads(run("inspect", "--json", image).stdout)
    return [layer["digest"] for layer in described["layers"]]


def largest_of(image: str) -> str:
    described = json.loads(run("inspect", "--json", image).stdout)
    return str(max(described["layers"], key=lambda layer: layer["size"])["digest"])


def digest_name(digest: str) -> str:
    return digest.replace(":", "/")


def test_a_flipped_bit_is_an_error_and_nothing_of_it_stays(proxy: Proxy, image: str, tmp_path: Path) -> None:
    proxy.fault(Fault(flip=1000), when=lambda e: e.blob == largest_of(image), times=None)
    reference, cache = f"docker://{proxy.address}/some/image:v1", tmp_path / "cache"
    done = convert("--cache", cache, reference, tmp_path / "out.tar")
    assert done.returncode == 1
    one_line(done.stderr, "layer 0", "digest of the blob")
    assert outputs_in(tmp_path) == {"cache"}
    assert not (cache / "blobs" / digest_name(largest_of(image))).exists()
    proxy.heal()
    assert convert("--cache", cache, reference, tmp_path / "out.tar").returncode == 0


def test_damage_in_the_cache_is_told_and_removed(proxy: Proxy, image: str, tmp_path: Path) -> None:
    reference, cache = f"docker://{proxy.address}/some/image:v1", tmp_path / "cache"
    assert convert("--cache", cache, reference, tmp_path / "out.tar").returncode == 0
    path = cache / "blobs" / digest_name(largest_of(image))
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    done = convert("--force", "--cache", cache, reference, tmp_path / "out.tar")
    assert done.returncode == 1
    one_line(
        done.stderr, "layer 0", f"digest of the blob in the cache, {path}, which is removed now: got sha256:"
    )
    assert not path.exists()
    assert convert("--force", "--cache", cache, reference, tmp_path / "out.tar").returncode == 0


FAULTS = {
    "the connection breaks": (Fault(stop=100_000, reset=True), True),
    "the body is cut short": (Fault(truncate=100_000), False),
    "busy for a moment": (Fault(status=429, headers={"Retry-After": "0"}), True),
    "down for a moment": (Fault(status=503), True),
    "no ranges": (Fault(ignore_range=True), True),
}


@pytest.mark.parametrize(("fault", "survives"), FAULTS.values(), ids=FAULTS)
def test_a_registry_that_stumbles(proxy: Proxy, tmp_path: Path, fault: Fault, survives: bool) -> None:
    proxy.fault(fault, when=lambda e: e.blob is not None and e.method == "GET", skip=1)
    done = convert(f"docker://{proxy.address}/some/image:v1", tmp_path / "out.tar")
    if survives or done.returncode == 0:
        assert done.returncode == 0, done.stderr
        assert diff(snapshot_tar(str(tmp_path / "out.tar")), from_model(merge(STACK))) == []
    else:
        one_line(done.stderr, "blob")
        assert outputs_in(tmp_path) == set()


def test_an_interrupt_ends_downloads(proxy: Proxy, tmp_path: Path) -> None:
    stall = Stall(10_000)
    proxy.fault(Fault(stall=stall), times=None, skip=1)
    reference = f"docker://{proxy.address}/some/image:v1"
    with running([*COMMAND, "convert", reference, str(tmp_path / "out.tar")]) as process:
        assert stall.reached.wait(60)
        process.send_signal(signal.SIGINT)
        code, error = end_of(process)
    stall.go_on.set()
    assert code == 130
    one_line(error, "interrupted")
    assert outputs_in(tmp_path) == set()


@pytest.mark.parametrize("cached", [False, True])
def test_pull_stores_a_layout(image: str, server: RegistryServer, tmp_path: Path, cached: bool) -> None:
    layout = tmp_path / "layout"
    options = ["--cache", str(tmp_path / "cache")] if cached else []
    for force in ((), ("--force",)):
        done = run("pull", "--json", *options, *force, f"docker://{server.address}/some/image:v1", layout)
    assert layers_of(f"oci:{layout}:v1") == layers_of(image)
    assert json.loads(done.stdout)["layers"] == len(STACK)
    run("verify", "--quiet", image, f"oci:{layout}:v1")
    subprocess.run(["skopeo", "inspect", f"oci:{layout}:v1"], check=True, stdout=subprocess.DEVNULL)
    assert outputs_in(tmp_path) == {"layout"} | ({"cache"} if cached else set())
    one_line(run("pull", f"{server.address}/some/image:v1", layout, code=1).stderr, "exists already")


@pytest.mark.requires("umoci")
def test_pull_gives_docker_manifests_the_names_of_oci(
    image: str, server: RegistryServer, tmp_path: Path
) -> None:
    target = f"docker://{server.address}/docker/image:v1"
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--format=v2s2", "--dest-tls-verify=false"]
    subprocess.run([*command, f"oci:{image}", target], check=True)
    run("pull", target, tmp_path / "layout")
    unpack = [
        "umoci",
        "unpack",
        "--rootless",
        "--image",
        f"{tmp_path / 'layout'}:v1",
        str(tmp_path / "bundle"),
    ]
    subprocess.run(unpack, check=True, capture_output=True)
    run("verify", "--quiet", image, f"oci:{tmp_path / 'layout'}:v1")


def test_a_pull_that_fails_leaves_nothing(proxy: Proxy, image: str, tmp_path: Path) -> None:
    proxy.fault(Fault(flip=1000), when=lambda e: e.blob == largest_of(image), times=None)
    done = run("pull", f"docker://{proxy.address}/some/image:v1", tmp_path / "layout", code=1)
    one_line(done.stderr, "digest of the bytes")
    assert outputs_in(tmp_path) == set()


def test_login_and_logout(server: RegistryServer, tmp_path: Path) -> None:
    with serve_registry(tmp_path / "users", storage=server.storage, users=True) as closed:
        reference = f"docker://{closed.address}/some/image:v1"
        one_line(run("inspect", reference, code=1).stderr, "401", f"a login at {closed.address}")
        login = [*COMMAND, "login", "-u", USER, "--password-stdin", closed.address]
        wrong = subprocess.run(login, input="wrong\n", capture_output=True, text=True, check=False)
        assert wrong.returncode == 1
        one_line(wrong.stderr, "login")
        right = subprocess.run(login, input=f"{PASSWORD}\n", capture_output=True, text=True, check=True)
        assert PASSWORD not in right.stderr + wrong.stderr
        run("inspect", reference)
        kept = tmp_path / "home" / ".docker" / "config.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        run("logout", closed.address)
        run("inspect", reference, code=1)


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("options", [["-u", USER, "--password-stdin"], [], ["-u", USER]])
def test_login_without_input_is_one_error(options: list[str], closed: bool) -> None:
    command = [*COMMAND, "login", *options, "127.0.0.1:9"]
    if closed:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = finish(command, start_new_session=True)  # no terminal either
    assert done.returncode == 1
    one_line(done.stderr.splitlines()[-1], "paralayer: error: login: standard input has ended: want ")


def test_interrupt_of_a_login_leaves_the_terminal_as_it_was() -> None:
    terminal, end = os.openpty()
    try:
        with running([*COMMAND, "login", "-u", USER, "127.0.0.1:9"], stdin=end) as process:
            wait_for(lambda: not termios.tcgetattr(end)[3] & termios.ECHO)
            process.send_signal(signal.SIGINT)
            code, error = end_of(process)
        assert code == 130
        one_line(error, "interrupted by SIGINT")
        assert termios.tcgetattr(end)[3] & termios.ECHO
    finally:
        os.close(terminal)
        os.close(end)


def test_tls_with_an_own_authority(server: RegistryServer, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with serve_registry(tmp_path / "tls", storage=server.storage, users=True, authority=authority) as safe:
        write_auths(tmp_path / "home" / ".docker" / "config.json", {safe.address: (USER, PASSWORD)})
        reference = f"docker://{safe.address}/some/image:v1"
        one_line(run("convert", "--quiet", reference, tmp_path / "out.tar", code=1).stderr, "certificate")
        run("convert", "--quiet", "--ca-file", authority.ca_file, reference, tmp_path / "out.tar")


def test_a_mirror_goes_first(server: RegistryServer, proxy: Proxy, tmp_path: Path) -> None:
    reference = f"docker://{server.address}/some/image:v1"
    run("convert", "--quiet", "--registry-mirror", proxy.address, reference, tmp_path / "out.tar")
    assert {exchange.blob for exchange in proxy.of_blob()} >= {*layers_of(reference)}


def test_what_there_is_not_is_one_line(server: RegistryServer, tmp_path: Path) -> None:
    for name, part in {"some/image:v2": "MANIFEST_UNKNOWN", "no/image:v1": "404"}.items():
        done = run("convert", f"docker://{server.address}/{name}", tmp_path / "out.tar", code=1)
        one_line(done.stderr, part)
    done = run("convert", "docker://127.0.0.1:9/image", tmp_path / "out.tar", code=1)
    one_line(done.stderr, "127.0.0.1:9")
    assert outputs_in(tmp_path) == set()


@pytest.mark.parametrize("command", ["inspect", "login", "convert", "pull", "verify"])
def test_plain_http_with_what_is_no_host_is_wrong_usage(command: str, tmp_path: Path) -> None:
    named = ["127.0.0.1:9"] if command == "login" else ["docker://127.0.0.1:9/image"]
    output = [tmp_path / "out.tar"] if command in ("convert", "pull", "verify") else []
    done = run(command, "--insecure-http", "http://127.0.0.1:9", *named, *output, code=2)
    assert done.stderr.endswith("--insecure-http: got http://127.0.0.1:9, want HOST or HOST:PORT\n")
