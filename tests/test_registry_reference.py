"""Names of images in registries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paralayer import ImageError
from paralayer.image import Digest
from paralayer.registry.reference import Reference

HEX = "0123456789abcdef" * 4
DIGEST = Digest("sha256", HEX)

LEGAL: dict[str, tuple[str, Reference]] = {
    "one word": ("alpine", Reference("docker.io", "library/alpine", "latest", None)),
    "tag": ("alpine:3.20", Reference("docker.io", "library/alpine", "3.20", None)),
    "namespace": ("foo/bar", Reference("docker.io", "foo/bar", "latest", None)),
    "docker.io": ("docker.io/alpine", Reference("docker.io", "library/alpine", "latest", None)),
    "index.docker.io": ("index.docker.io/foo/bar", Reference("docker.io", "foo/bar", "latest", None)),
    "the API's host": (
        "registry-1.docker.io/alpine",
        Reference("docker.io", "library/alpine", "latest", None),
    ),
    "host": ("quay.io/a/b/c:T_1.x-", Reference("quay.io", "a/b/c", "T_1.x-", None)),
    "host in capitals": ("Quay.IO/a", Reference("quay.io", "a", "latest", None)),
    "a capital makes a host": ("Host/a", Reference("host", "a", "latest", None)),
    "port": ("host:5000/a", Reference("host:5000", "a", "latest", None)),
    "localhost": ("localhost/a", Reference("localhost", "a", "latest", None)),
    "localhost without a name": ("localhost:5000", Reference("docker.io", "library/localhost", "5000", None)),
    "IPv4": ("127.0.0.1:1/a", Reference("127.0.0.1:1", "a", "latest", None)),
    "IPv6": ("[::1]:5000/a:b", Reference("[::1]:5000", "a", "b", None)),
    "digest": (f"a/b@sha256:{HEX}", Reference("docker.io", "a/b", None, DIGEST)),
    "tag and digest": (f"h.x/b:t@sha256:{HEX}", Reference("h.x", "b", "t", DIGEST)),
    "separators": ("h.x/a__b/c.d/e---f", Reference("h.x", "a__b/c.d/e---f", "latest", None)),
}


@pytest.mark.parametrize("title", LEGAL)
def test_reference_is_completed(title: str) -> None:
    text, want = LEGAL[title]
    assert Reference.parse(f"docker://{text}") == want


ILLEGAL: dict[str, tuple[str, str]] = {
    "other transport": ("oci:x", "reference to an image in a registry"),
    "nothing": ("docker://", "name of the image"),
    "no slashes": ("docker:alpine", "reference to an image in a registry"),
    "capitals": ("docker://h.x/Alpine", "name of the image: got Alpine"),
    "empty component": ("docker://h.x/a//b", "name of the image: got a//b"),
    "parent": ("docker://h.x/a/../b", "name of the image"),
    "slash at the end": ("docker://h.x/a/", "name of the image"),
    "empty tag": ("docker://a:", "tag"),
    "tag that begins with a dot": ("docker://a:.b", "tag: got .b"),
    "long tag": (f"docker://a:{'x' * 129}", "tag"),
    "long name": (f"docker://h.x/{'x' * 256}", "name of the image is too long"),
    "port too high": ("docker://h.x:65536/a", "host of the registry: got h.x:65536"),
    "port 0": ("docker://h.x:0/a", "host of the registry"),
    "no port": ("docker://h.x:/a", "host of the registry"),
    "host with a blank": ("docker://h .x/a", "host of the registry"),
    "host that begins with a dash": ("docker://-h.x/a", "host of the registry"),
    "letter that folds to a legal one": ("docker://\N{KELVIN SIGN}.x/a", "host of the registry"),
    "control character": ("docker://a\n", "name of the image: got library/a\\\\n"),
    "query": ("docker://h.x/a?b", "name of the image"),
    "short digest": ("docker://a@sha256:12", "no digest behind the @"),
    "digest that is too long": (f"docker://a@sha256:{HEX}0", "digest: got sha256:"),
    "unknown digest": (f"docker://a@md5:{HEX}", "digest: got md5"),
    "tag behind an @": ("docker://a@latest", "no digest behind the @"),
}


@pytest.mark.parametrize("title", ILLEGAL)
def test_what_is_no_reference_is_refused(title: str) -> None:
    text, message = ILLEGAL[title]
    with pytest.raises(ImageError, match=message) as caught:
        Reference.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "user:secret@h.x/a",
        "user:se@cret@h.x/a:t",
        "user:secret@h.x",
        "secret@h.x:5/a",
        "user:secret@host:5000",
    ],
)
def test_password_in_a_reference_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ImageError, match="no digest behind the @") as caught:
        Reference.parse(f"docker://{text}")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value)


WORD = st.text("abc019", min_size=1, max_size=5)
NAME = st.lists(st.lists(WORD, min_size=1, max_size=3).map("-".join), min_size=1, max_size=3).map("/".join)
HOST = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.builds("{}.{}:{}".format, WORD, WORD, st.integers(1, 65535)),
)


@given(st.builds(Reference, HOST, NAME, st.none() | WORD, st.none() | st.just(DIGEST)))
def test_reference_is_read_as_it_is_written(reference: Reference) -> None:
    found = Reference.parse(str(reference))
    assert Reference.parse(str(found)) == found
    assert (found.registry, found.digest) == (reference.registry, reference.digest)
    assert found.tag == (reference.tag or (None if reference.digest else "latest"))
    assert found.repository in {reference.repository, f"library/{reference.repository}"}
