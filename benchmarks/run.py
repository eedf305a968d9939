"""All figures in one report: ``python -m benchmarks.run``.

Rounds are interleaved, and ratios are medians of the ratios within a round; see `benchmarks.contest`. With `--write`
the report becomes benchmarks/results/MACHINE.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.contest import JOBS, UMOCI, Contest, Format
from benchmarks.layouts import DIRECTORY, ROOT, SHAPES, layout
from benchmarks.measure import PARALAYER, run
from benchmarks.registry import AVAILABLE, RATE, RegistryContest
from benchmarks.squashfs import PROGRAMS, SquashfsContest
from benchmarks.stacks import ENTRIES, merge, stack_of
from benchmarks.stages import STAGES, Done, run_stage
from benchmarks.survivors import ENTRIES as METADATA_ENTRIES
from benchmarks.survivors import pack, paths_of, survivors_of
from paralayer import open_image
from paralayer.sinks.mksquashfs import find_mksquashfs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FORMATS: tuple[Format, ...] = ("tar", "directory")
_SQUASHFS = ("real", "small-files")
"""Layouts that are converted to squashfs."""
_LITTLE = 64 << 20
_UMOCI_ROUNDS = 2  # it takes a minute
_MIB = 1 << 20
_ENTRY = 1024  # bytes of memory

_CONVERSION = [
    *("", "decoded MB", "`--jobs 1` s", "CPU s", f"`--jobs {JOBS}` s", "CPU s", "MB/s", "times as fast"),
    *("limit s", "times the limit", "as CPU"),
]
_MEMORY = ["", "peak MiB", "bound MiB", "own figure MiB", "seconds", "times as long"]


class Target(NamedTuple):
    """What is wanted of a figure; `figure` at most, or at least, `bound`."""

    what: str
    figure: float
    bound: float
    least: bool = False

    def row(self) -> list[str]:
        """Return the row of a table."""
        met = self.figure >= self.bound if self.least else self.figure <= self.bound
        sign = "≥" if self.least else "≤"
        return [self.what, f"{sign} {self.bound:g}", f"{self.figure:.3g}", "yes" if met else "**no**"]


class Report:
    """What was measured so far, as Markdown."""

    def __init__(self, rounds: int, scale: float, file_system: str) -> None:
        self.rounds = rounds
        self.scale = scale
        self.file_system = file_system
        self.targets: list[Target] = []
        self.sections: list[str] = []

    def conversions(self, names: Sequence[str], scratch: Path) -> None:
        """Measure every layout in both formats, the image as people have it also with little memory."""
        rows, memory = [], []
        for name in names:
            for format_ in _FORMATS:
                _say(f"{name} to {format_}")
                with tempfile.TemporaryDirectory(dir=scratch) as place:
                    contest = Contest(layout(name, self.scale), format_, Path(place))
                    self._measure(contest, everything=name == "real")
                    umoci = _spread(contest.seconds("umoci")) if "umoci" in contest.runs else ""
                    rows.append([f"{name} → {format_}", *_conversion(contest), umoci])
                    if name == "real":
                        memory += self._memory(contest, contest.format)
                        self._targets(contest)
        self.sections += ["## Conversions", _table([*_CONVERSION, "`umoci` s"], rows)]
        if memory:
            self.sections += ["## Memory of all processes", _table(_MEMORY, memory)]

    def _measure(self, contest: Contest, *, everything: bool) -> None:
        for number in range(self.rounds):
            contest.measure_limit()
            contest.measure("jobs 1", 1)
            contest.measure("jobs N", JOBS)
            if everything:
                contest.measure("little", JOBS, "--memory", str(_LITTLE))
                if UMOCI and contest.format == "directory" and number < _UMOCI_ROUNDS:
                    contest.measure_umoci()

    def _memory(self, contest: Contest, title: str, allowance: int = 0) -> list[list[str]]:
        """Return the rows of the memory table; so many bytes are allowed for the entries."""
        rows = []
        for memory, name, options, budget in (
            ("by itself", "jobs N", (), contest.result["memory"]),
            ("`--memory 64M`", "little", ("--memory", str(_LITTLE)), _LITTLE),
        ):
            peak = contest.peak(JOBS, *options)
            bound = contest.bound(budget) + allowance
            rows.append(
                [
                    f"{title}, {memory}",
                    f"{peak / _MIB:.0f}",
                    f"{bound / _MIB:.0f}",
                    f"{max(contest.reported_peaks(name)) / _MIB:.0f}",
                    _spread(contest.seconds(name)),
                    f"{contest.ratio(name, 'jobs N'):.2f}",
                ]
            )
        self.targets.append(Target(f"{title}, 64M: peak MiB", peak / _MIB, bound // _MIB))
        return rows

    def _targets(self, contest: Contest) -> None:
        to = f"{contest.format}, {JOBS} jobs: times"
        limit = 1.6 if contest.format == "tar" else 1.5
        self.targets.append(Target(f"{to} the limit", contest.ratio("jobs N", "limit"), limit))
        if contest.format == "tar":
            faster = contest.ratio("jobs 1", "jobs N")
            self.targets.append(Target(f"{to} as fast as with one", faster, 1.6, least=True))
        if "umoci" in contest.runs:
            faster = contest.ratio("umoci", "jobs N")
            self.targets.append(Target(f"{to} as fast as `umoci unpack`", faster, 6, least=True))
        longer = contest.ratio("little", "jobs N")
        self.targets.append(Target(f"{contest.format}, 64M: times as long", longer, 2))

    def squashfs(self, names: Sequence[str], scratch: Path) -> None:
        """Measure conversions to squashfs, what people do without them, and their verification."""
        programs = {
            name: f"mksquashfs {find_mksquashfs(name).version_text}"
            for name in PROGRAMS
            if shutil.which(name)
        }
        rows, beside, memory = [], [], []
        for name in names:
            title = f"{name} → squashfs"
            _say(title)
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                contest = SquashfsContest(layout(name, self.scale), Path(place))
                self._measure_squashfs(contest, list(programs))
                verify = [_spread(contest.seconds("verify")), f"{contest.ratio('verify', 'jobs N'):.2f}"]
                rows.append([title, *_conversion(contest), *verify])
                beside += [[title, *_beside(contest, program, programs[program])] for program in programs]
                # What is allowed for each entry only matters where there are many.
                allowance = 0 if name == "real" else contest.result["entries"] * _ENTRY
                memory += self._memory(contest, title, allowance)
                self._squashfs_targets(contest, title, programs)
        if not rows:
            return
        heads = [*_CONVERSION, "`verify` s", "times the conversion"]
        self.sections += ["## Squashfs", _table(heads, rows)]
        if beside:
            heads = ["", "beside", "MB", "its MB", "our size to its", "our tar into it s", "times as long"]
            heads += ["`umoci unpack` and it s", "times as long"]
            self.sections += ["## Squashfs beside mksquashfs", _table(heads, beside)]
        self.sections += ["## Memory of all processes, squashfs", _table(_MEMORY, memory)]

    def _measure_squashfs(self, contest: SquashfsContest, programs: Sequence[str]) -> None:
        for number in range(self.rounds):
            contest.measure_limit()
            contest.measure("jobs 1", 1)
            contest.measure_verified()
            contest.measure("little", JOBS, "--memory", str(_LITTLE))
            for program in programs:
                contest.measure_piped(program)
            if UMOCI and programs and number < _UMOCI_ROUNDS:
                contest.measure_unpacked(programs)

    def _squashfs_targets(self, contest: SquashfsContest, title: str, programs: Mapping[str, str]) -> None:
        to = f"{title}, {JOBS} jobs: times"
        self.targets.append(Target(f"{to} the limit", contest.ratio("jobs N", "limit"), 1.35))
        for program, label in programs.items():
            piped = contest.ratio(f"piped {program}", "jobs N")
            self.targets.append(Target(f"{to} as fast as our tar into {label}", piped, 1.25, least=True))
            if UMOCI:
                unpacked = contest.ratio(f"unpacked {program}", "jobs N")
                what = f"{to} as fast as `umoci unpack` and {label}"
                self.targets.append(Target(what, unpacked, 8, least=True))
            self.targets.append(Target(f"{title}: size to {label}'s", contest.size_ratio(program), 1))
        self.targets.append(Target(f"{title}, 64M: times as long", contest.ratio("little", "jobs N"), 2))
        longer = contest.ratio("verify", "jobs N")
        self.targets.append(Target(f"{title}: verify to conversion", longer, 3))

    def registry(self, scratch: Path) -> None:
        """Measure conversions of the image as people have it from a registry on loopback."""
        rows = []
        for format_ in ("tar", "squashfs"):
            _say(f"registry → {format_}")
            with (
                tempfile.TemporaryDirectory(dir=scratch) as place,
                RegistryContest(layout("real", self.scale), format_, Path(place)).serve() as served,
            ):
                for _ in range(self.rounds):
                    served.measure()
                contest = served.contest
                names = ("jobs N", "download", "limited", "unlimited")
                spreads = [_spread(contest.seconds(name)) for name in names]
                limited, unlimited = served.limited_ratio(), contest.ratio("unlimited", "jobs N")
                rows.append([f"real → {format_}", *spreads, f"{limited:.2f}", f"{unlimited:.2f}"])
                self.targets.append(Target(f"{format_} at {RATE} MB/s: times the longer", limited, 1.1))
                self.targets.append(Target(f"{format_} from a registry: times from disk", unlimited, 1.25))
        heads = ["", "from disk s", f"download at {RATE} MB/s s", f"from a registry at {RATE} MB/s s"]
        heads += ["from a registry s", "limited, times the longer", "unlimited, times from disk"]
        self.sections += ["## From a registry on loopback", _table(heads, rows)]

    def metadata(self) -> None:
        """Measure the metadata of a squashfs."""
        _say("metadata")
        rows = []
        for mixed in (False, True):
            title = "layers mixed" if mixed else "layers apart"
            survivors = survivors_of(max(4000, int(METADATA_ENTRIES * self.scale)), mixed=mixed)
            image, each = b"", []
            for _ in range(self.rounds):
                started = time.process_time()
                image = pack(survivors)
                each.append((time.process_time() - started) / survivors.entries * 1e6)
            assert paths_of(image) == survivors.paths
            rows.append([title, f"{survivors.entries:,}", f"{len(image) / 1e6:.1f}", _spread(each)])
            self.targets.append(Target(f"squashfs metadata, {title}: µs an entry", median(each), 4))
        heads = ["", "entries", "MB", "µs an entry"]
        self.sections += ["## Metadata of a squashfs, one process", _table(heads, rows)]

    def stages(self) -> None:
        """Measure what each stage of a decode job adds."""
        _say("stages")
        layers = open_image(str(layout("real", self.scale))).layers
        seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
        done = Done(0, 0)
        for _ in range(self.rounds):
            for stage in STAGES:
                started = time.process_time()
                done = run_stage(stage, layers)
                seconds[stage].append(time.process_time() - started)
        rows = [
            [stage, _spread(taken), f"{done.decoded / median(taken) / 1e6:.0f}"]
            for stage, taken in seconds.items()
        ]
        heads = ["up to", "CPU s", "MB/s"]
        self.sections += ["## Decoding, stage by stage, one process", _table(heads, rows)]

    def merges(self) -> None:
        """Measure the merge of tables."""
        _say("merge")
        rows = []
        for orderly in (True, False):
            with stack_of(max(4000, int(ENTRIES * self.scale)), orderly=orderly) as stack:
                each = []
                for _ in range(self.rounds):
                    started = time.process_time()
                    paths = merge(stack)
                    each.append((time.process_time() - started) / stack.entries * 1e6)
                    assert len(paths) == len(stack.want)
                    assert stack.want.issuperset(paths)
            title = "orderly layers" if orderly else "implied parents"
            rows.append([title, f"{stack.entries:,}", f"{len(paths):,}", _spread(each)])
            if orderly:
                self.targets.append(Target("merge: µs an entry", median(each), 3))
        heads = ["", "entries", "survivors", "µs an entry"]
        self.sections += ["## Merge, ten layers", _table(heads, rows)]

    def starts(self, scratch: Path) -> None:
        """Measure what the smallest uses take."""
        _say("start")
        output = scratch / "small.tar"
        commands: dict[str, tuple[list[str | Path], float]] = {
            "`paralayer --help`": ([*PARALAYER, "--help"], 0.15),
            "an image of 5 MB to a tar": (
                [*PARALAYER, "convert", "--quiet", layout("small-image", self.scale), output],
                0.25,
            ),
        }
        seconds: dict[str, list[float]] = {title: [] for title in commands}
        for _ in range(2 * self.rounds):
            for title, (command, _) in commands.items():
                seconds[title].append(run(command).seconds)
            output.unlink()
        for title, (_, bound) in commands.items():
            self.targets.append(Target(f"{title}: seconds", median(seconds[title]), bound))
        rows = [[title, _spread(taken)] for title, taken in seconds.items()]
        self.sections += ["## Start", _table(["", "seconds"], rows)]

    def text(self, command: str) -> str:
        """Return the whole report."""
        targets = [target.row() for target in self.targets]
        head = (
            f"Linux {platform.release()}, Python {platform.python_version()}, commit {_commit()}; `{command}`; outputs on "
            f"{self.file_system}. "
            f"Medians (least..most) of {self.rounds} interleaved rounds; CPU is user and system of all processes. "
            f"The load was {os.getloadavg()[0]:.1f} at the end, ours included. The limit is the CPU of the bare codec over the blobs and of writing the output's bytes (directory: of "
            "`tar -x` of the flat tar; squashfs: of compressing the survivors' data in blocks), over the jobs."
        )
        return "\n\n".join(
            [
                f"# {_processor()}, {JOBS} cores",
                head,
                "## Targets, on an image as people have it unless another is named",
                _table(["", "target", "is", "met"], targets),
                *self.sections,
            ]
        )


def _conversion(contest: Contest) -> list[str]:
    one, several, limit = (contest.runs[name] for name in ("jobs 1", "jobs N", "limit"))
    decoded = contest.result["bytes_decoded"] / 1e6
    return [
        f"{decoded:,.0f}",
        _spread(contest.seconds("jobs 1")),
        f"{median(each.cpu for each in one):.2f}",
        _spread(contest.seconds("jobs N")),
        f"{median(each.cpu for each in several):.2f}",
        f"{decoded / median(contest.seconds('jobs N')):.0f}",
        f"{contest.ratio('jobs 1', 'jobs N'):.2f}",
        f"{median(each.seconds for each in limit):.2f}",
        f"{contest.ratio('jobs N', 'limit'):.2f}",
        f"{contest.cpu_ratio('jobs N', 'limit'):.2f}",
    ]


def _beside(contest: SquashfsContest, program: str, label: str) -> list[str]:
    row = [label, f"{contest.size / 1e6:.1f}", f"{contest.their_sizes[program] / 1e6:.1f}"]
    row.append(f"{contest.size_ratio(program):.3f}")
    for name in (f"piped {program}", f"unpacked {program}"):
        there = name in contest.runs
        row += [_spread(contest.seconds(name)), f"{contest.ratio(name, 'jobs N'):.2f}"] if there else ["", ""]
    return row


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"^model name\s*: (.*)", cpuinfo, re.MULTILINE)
    return found[1] if found else platform.machine()


def _commit() -> str:
    command: list[str | Path] = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _file_system(directory: Path) -> str:
    """Return the type of the file system that holds a directory."""
    command: list[str | Path] = ["stat", "--file-system", "--format=%T", directory]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--scale", type=float, default=1, help="part of the layouts' sizes (%(default)s)")
    parser.add_argument(
        "--layouts", nargs="*", choices=SHAPES, default=SHAPES, metavar="NAME", help=", ".join(SHAPES)
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=DIRECTORY,
        help="where outputs are written, best on a tmpfs: see README.md",
    )
    parser.add_argument("--write", action="store_true", help="write the report to benchmarks/results")
    options = parser.parse_args()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    report = Report(options.rounds, options.scale, _file_system(options.scratch))
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        report.starts(Path(scratch))
        report.merges()
        report.metadata()
        report.stages()
        report.conversions(options.layouts, Path(scratch))
        if AVAILABLE and "real" in options.layouts:
            report.registry(Path(scratch))
        report.squashfs([name for name in _SQUASHFS if name in options.layouts], Path(scratch))
    text = report.text(f"python -m benchmarks.run {shlex.join(sys.argv[1:])}".strip())
    print(text)
    if options.write:
        name = re.sub(r"[^a-z0-9]+", "-", f"{_processor()}-{JOBS}-cores".lower()).strip("-")
        path = ROOT / "benchmarks" / "results" / f"{name}.md"
        os.makedirs(path.parent, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
