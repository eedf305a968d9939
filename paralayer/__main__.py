"""``python -m paralayer``."""

from paralayer.cli import main

main()
