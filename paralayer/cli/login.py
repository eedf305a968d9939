"""``paralayer login`` and ``paralayer logout``."""

from __future__ import annotations

import sys
from typing import Any

import click

from paralayer.cli.options import access, trust_options
from paralayer.cli.terminal import interrupts
from paralayer.errors import UsageError


@click.command("login", short_help="Keep who you are at a registry, as docker does.")
@click.option("-u", "--username", metavar="USER", help="Asked for where it is not given.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@trust_options
@click.argument("registry", metavar="[HOST[:PORT]]", default="docker.io")
def login_command(registry: str, *, username: str | None, password_stdin: bool, **reached: Any) -> None:
    """Log in at a registry, Docker Hub by default, and keep that where docker and podman look for it as well.

    \b
    Example:
      pass show registry | paralayer login -u me --password-stdin registry.example.org
    """
    from paralayer.registry.access import Access
    from paralayer.registry.client import check_login
    from paralayer.registry.credentials import Credentials, store
    from paralayer.registry.reference import parse_host

    host, reach = parse_host(registry, "login"), access(**reached) or Access()
    if password_stdin:
        if username is None:
            raise click.UsageError("--password-stdin needs --username")
        text = sys.stdin.read() if sys.stdin else ""  # one that is closed is None
        if not text:
            raise _ended("a password")
        password = text.removesuffix("\n").removesuffix("\r")
    elif not sys.stdin:
        raise _ended("a user name and a password")
    else:
        with interrupts():  # a signal that is not caught would leave the terminal without its echo
            try:
                username = username or click.prompt("Username", err=True)
                password = click.prompt("Password", hide_input=True, err=True)
            except click.Abort:
                if username is None:
                    click.echo(err=True)  # ends the prompt's line, as click does itself where input is hidden
                raise _ended("a user name and a password") from None
    if not username or not password:
        raise click.UsageError("user name and password must not be empty")
    try:
        f"{username}{password}".encode()
    except UnicodeEncodeError:
        raise click.UsageError("user name and password must be UTF-8") from None
    found = Credentials(username, password)
    with interrupts():
        check_login(host, found, reach)
        place = store(host, found)
    click.echo(f"logged in at {host}, kept in {place}", err=True)


def _ended(want: str) -> UsageError:
    return UsageError("login", "standard input has ended", want=want)


@click.command("logout", short_help="Forget who you are at a registry.")
@click.argument("registry", metavar="[HOST[:PORT]]", default="docker.io")
def logout_command(registry: str) -> None:
    """Forget who you are at a registry, Docker Hub by default, wherever that is kept."""
    from paralayer.registry.credentials import erase
    from paralayer.registry.reference import parse_host

    host = parse_host(registry, "logout")
    with interrupts():
        places = erase(host)
    click.echo(f"logged out at {host}: {', '.join(places) or 'nothing was kept'}", err=True)
