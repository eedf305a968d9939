"""Whether two trees are the same: images, squashfs files, tar archives, directories, each against each.

`tree` is what all of them are read to, by one module for each kind of source (`image`, `squashfs`, `tar`, `directory`);
contents are hashed by jobs (`hashing`, `work`), so nothing of them is kept. `compare` is pure.
"""

from paralayer.verification.compare import IGNORABLE, Difference, VerifyReport
from paralayer.verification.run import VerifyProgress, verify

__all__ = ["IGNORABLE", "Difference", "VerifyProgress", "VerifyReport", "verify"]
