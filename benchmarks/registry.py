"""Conversions from a registry on loopback, beside those of the same image on disk and its bare download.

The registry is Debian's docker-registry, filled by skopeo. `limited` are conversions through the tests' proxy, which
passes on 50 MB/s over all connections; `unlimited` come from the registry itself.
"""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from benchmarks.contest import JOBS, Contest, Format
from benchmarks.layouts import ROOT
from benchmarks.measure import Run, run
from benchmarks.squashfs import SquashfsContest
from paralayer import open_image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

AVAILABLE = bool(shutil.which("docker-registry") and shutil.which("skopeo"))
RATE = 50
"""MB/s of the proxy."""

_NAME = "image"
_CONNECTIONS = 4
_PIECE = 1 << 20


class RegistryContest:
    """Conversions of one layout to one format; `contest` has those on disk, and all runs.

    `runs` of it has `jobs N`, `download` (the bare one, limited), `limited` and `unlimited`.
    """

    def __init__(self, layout: Path, format: Format | str, scratch: Path) -> None:  # noqa: A002 - the field's word
        self.contest = (
            SquashfsContest(layout, scratch) if format == "squashfs" else Contest(layout, "tar", scratch)
        )
        self._digests = [str(layer.digest) for layer in open_image(str(layout)).layers]
        self._scratch = scratch

    @contextmanager
    def serve(self) -> Iterator[Self]:
        """Run the registry, with the image, and the proxy."""
        with _registry(self._scratch) as self._direct, _proxy(self._direct) as self._limited:
            source, target = f"oci:{self.contest.layout}", f"docker://{self._direct}/{_NAME}"
            run(["skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source, target])
            yield self

    def measure(self) -> None:
        """Measure everything once."""
        local = self.contest
        local.measure("jobs N", JOBS)
        started = time.perf_counter()
        _download(self._limited, self._digests)
        seconds = time.perf_counter() - started
        local.runs.setdefault("download", []).append(Run(seconds, 0, 0, ""))
        layout = local.layout
        for name, address in (("limited", self._limited), ("unlimited", self._direct)):
            local.layout = f"docker://{address}/{_NAME}"  # type: ignore[assignment]  # only a word of the command
            local.measure(name, JOBS)
        local.layout = layout

    def limited_ratio(self) -> float:
        """Return the median of the limited conversion's time to the longer of download and local conversion."""
        runs = self.contest.runs
        ratios = sorted(
            limited.seconds / max(download.seconds, local.seconds)
            for limited, download, local in zip(
                runs["limited"], runs["download"], runs["jobs N"], strict=True
            )
        )
        return ratios[len(ratios) // 2]


def _download(address: str, digests: Sequence[str]) -> None:
    """Read all blobs, over as many connections as a conversion has, and keep nothing."""

    def fetch(digest: str) -> None:
        connection = http.client.HTTPConnection(address)
        connection.request("GET", f"/v2/{_NAME}/blobs/{digest}")
        response = connection.getresponse()
        assert response.status == 200
        buffer = bytearray(_PIECE)
        while response.readinto(buffer):
            pass
        connection.close()

    with ThreadPoolExecutor(_CONNECTIONS) as threads:
        list(threads.map(fetch, reversed(digests)))


@contextmanager
def _registry(scratch: Path) -> Iterator[str]:
    """Run docker-registry on loopback; give its address."""
    configuration = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "text", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(scratch / "registry")}},
        "http": {"addr": "127.0.0.1:0", "secret": "benchmark"},
    }
    path = scratch / "registry.yml"
    path.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
    log = scratch / "registry.log"
    with log.open("w") as said, subprocess.Popen(["docker-registry", "serve", path], stderr=said) as process:
        try:
            while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
            yield found[1]
        finally:
            process.kill()


@contextmanager
def _proxy(address: str) -> Iterator[str]:
    """Run the tests' proxy in front of an address; give its own."""
    command = [sys.executable, str(ROOT / "tests" / "registry_proxy.py"), address, "--rate", str(RATE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()
