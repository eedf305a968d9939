"""The command line: parse, call, print, exit code. The only package that prints.

Exit codes: 0 done, 1 an error of the image or the system, 2 usage, 130 interrupted (SIGINT or SIGTERM). Those of
`verify`: 0 the same, 1 different, 2 could not compare.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from paralayer import __version__
from paralayer.cli.convert import convert_command
from paralayer.cli.inspect import inspect_command
from paralayer.cli.login import login_command, logout_command
from paralayer.cli.pull import pull_command
from paralayer.cli.terminal import InterruptedByUser
from paralayer.cli.verify import CANNOT_COMPARE, verify_command
from paralayer.errors import ParalayerError

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="paralayer", message="%(prog)s %(version)s")
def cli() -> None:
    """Convert OCI container images into squashfs images, tar archives or directories, on every core.

    \b
    Examples:
      paralayer convert oci:image:latest image.squashfs
      paralayer convert --jobs 8 docker-archive:saved.tar rootfs/
      paralayer verify oci:image:latest image.squashfs
      paralayer convert image.tar - | ssh host 'tar -x -C /srv/root'

    Shell completion: eval "$(_PARALAYER_COMPLETE=bash_source paralayer)", likewise zsh and fish.
    """


for command in (
    convert_command,
    verify_command,
    inspect_command,
    pull_command,
    login_command,
    logout_command,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit."""
    # The threads that a linear algebra library would start when numpy loads it serve nothing here, and a process
    # with threads cannot fork its workers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # All text is out then: `click.echo` flushes. What would be left is an interpreter that takes itself apart for 20 ms,
    # its signal handlers first.
    os._exit(_run())


def _run() -> int:
    """Run the command line; return the exit code."""
    try:
        status = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("paralayer: interrupted", err=True)
        return _INTERRUPTED
    except InterruptedByUser as error:
        click.echo(f"paralayer: {error}", err=True)
        return _INTERRUPTED
    except ParalayerError as error:
        click.echo(f"paralayer: error: {error}", err=True)
        return 1
    except OSError as error:
        # Only text that could not be printed comes here.
        click.echo(f"paralayer: error: standard output: {error.strerror}", err=True)
        return CANNOT_COMPARE if sys.argv[1:2] == ["verify"] else 1
    return status if isinstance(status, int) else 0
