"""Digests, platforms and references as values."""

from __future__ import annotations

import os
from typing import Any

import pytest

from layouts import digest_of
from paralayer.errors import ImageError, quote
from paralayer.image import Digest, Platform
from paralayer.image.descriptor import shown
from paralayer.image.select import full_reference, listed, rank

SHA256, SHA512 = digest_of(b"x"), digest_of(b"x", "sha512")


@pytest.mark.parametrize("text", [SHA256, SHA512])
def test_digest_is_what_its_text_says(text: str) -> None:
    digest = Digest.parse(text, "here")
    assert str(digest) == text
    hasher = digest.hasher()
    hasher.update(b"x")
    assert hasher.hexdigest() == digest.encoded
    assert digest == Digest.parse(text, "there")


NO_DIGESTS: dict[str, Any] = {
    "empty": "",
    "none": None,
    "number": 3,
    "no algorithm": SHA256.partition(":")[2],
    "unknown algorithm": "md5:" + "0" * 32,
    "algorithm in capitals": SHA256.replace("sha", "SHA"),
    "hex in capitals": "sha256:" + "A" * 64,
    "too short": SHA256[:-1],
    "too long": SHA256 + "0",
    "length of another": SHA512.replace("512", "256"),
    "newline behind": SHA256 + "\n",
    "newline in place of a digit": SHA256[:-1] + "\n",
    "no hex": "sha256:" + "g" * 64,
    "other digits": "sha256:" + "\u0663" * 64,
    "path": "sha256:" + "../" * 21 + "x",
    "space": " " + SHA256,
}


@pytest.mark.parametrize("text", NO_DIGESTS.values(), ids=NO_DIGESTS)
def test_everything_else_is_no_digest(text: object) -> None:
    with pytest.raises(ImageError, match=r"^here: digest: got .*, want "):
        Digest.parse(text, "here")


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm64/v8", "windows/amd64"])
def test_platform_is_what_its_text_says(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "linux", "linux/", "/amd64", "linux//v8", "a/b/c/d", "linux/amd 64", "a/b\n"]
)
def test_everything_else_is_no_platform(text: str) -> None:
    with pytest.raises(ImageError, match="want os/arch or os/arch/variant"):
        Platform.parse(text)


def test_host_fits_itself() -> None:
    host = Platform.host()
    assert host.os == "linux"
    assert host.architecture not in {"x86_64", "aarch64"}
    assert rank(host, host) == (0, 0)
    assert os.uname().machine != "x86_64" or str(host) == "linux/amd64"


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("x", "docker.io/library/x:latest"),
        ("x:1", "docker.io/library/x:1"),
        ("me/x", "docker.io/me/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("host:5000/x", "host:5000/x:latest"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        (f"x@{SHA256}", f"docker.io/library/x@{SHA256}"),
    ],
)
def test_short_reference_means_a_full_one(short: str, full: str) -> None:
    assert full_reference(short) == full
    assert full_reference(full) == full


def test_name_in_a_message_is_cut_between_characters() -> None:
    assert shown("\u00e9" * 4096) == "\u00e9" * 4096
    assert shown("\u00e9" * 4097) == "\u00e9" * 4096 + "..."
    assert quote(b"\n" * 5000) == r"\n" * 4096 + "..."


def test_list_is_cut_and_printable() -> None:
    assert listed(["b", "a", "b"]) == "b, a"
    assert listed(str(i) for i in range(25)).endswith("18, 19 and 5 more")
    assert listed(["a\nb\udcff"]) == r"a\nb\xff"
