"""`paralayer` as an ordinary user, who perhaps may not read where it is installed: imported first, then run."""

import ctypes
import importlib
import os
import pkgutil

os.environ["OPENBLAS_NUM_THREADS"] = "1"
PR_SET_DUMPABLE = 4

for name in (
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.unicode_escape",
    "bz2",
    "lzma",
    "isal.igzip_lib",
    "isal.isal_zlib",
    "psutil",
    "zstandard",
):
    importlib.import_module(name)
import paralayer  # noqa: E402 - numpy must not start threads

for module in pkgutil.walk_packages(paralayer.__path__, "paralayer."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as a program has it that the user starts himself

from paralayer.cli import main  # noqa: E402

main()
