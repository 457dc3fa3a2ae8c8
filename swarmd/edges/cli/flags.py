"""What all commands share: global flags, exit codes, and the way from flags to settings.

Imports nothing but argparse at its top: `swarmd --help` must answer at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmd.config import Settings

OK: Final = 0
DIFFERENT: Final = 1
USAGE: Final = 2
REJECTED: Final = 3
FAULT: Final = 4
TASK_FAILED: Final = 5
CHECK_FAILED: Final = 6
INTERRUPTED: Final = 130

EXIT_CODES: Final = """exit codes:
  0    done
  1    something differs (reconcile, memory verify)
  2    wrong usage of the command line
  3    rejected: the input, the configuration or the state forbids it
  4    fault: broker, swarm or disk unreachable or failing; worth another try
  5    the task ended without an output (dead, cancelled, expired)
  6    a check failed (verify, doctor, schemas --check)
  130  interrupted
"""

#: Flag → (section, key) of the settings that it overrides.
_OVERRIDES: Final = {
    "nats": ("nats", "url"),
    "user": ("nats", "user"),
    "password_file": ("nats", "password_file"),
    "user_file": ("nats", "user_file"),
    "creds": ("nats", "credentials_file"),
    "nkey": ("nats", "nkey_seed_file"),
    "tls_ca": ("nats", "tls_ca"),
    "tls_cert": ("nats", "tls_cert"),
    "tls_key": ("nats", "tls_key"),
    "data": ("data", "dir"),
    "log_format": ("log", "format"),
    "log_level": ("log", "level"),
    "port": ("broker", "port"),
    "metrics_port": ("metrics", "port"),
    "web_port": ("web", "port"),
    "memory": ("memory", "name"),
    "replies_prefixed": ("nats", "replies_prefixed"),
}


def common() -> argparse.ArgumentParser:
    """The global flags as a parent of every parser, so that they stand before or after the command."""
    parent = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parent.add_argument_group("global flags")
    group.add_argument("--json", action="store_true", help="one JSON object, or one per line, on stdout; nothing else")
    group.add_argument("--swarm", metavar="NAME", help="the swarm to talk to (default: main)")
    group.add_argument("--config", metavar="FILE", help="settings (TOML); also SWARMD_CONFIG")
    group.add_argument("--data", metavar="DIR", help="data directory of `up` (default: ~/.local/share/swarmd)")
    group.add_argument("--log-format", choices=["text", "json"], help="how log lines look, on stderr")
    group.add_argument("--log-level", choices=["debug", "info", "warning", "error"])
    broker = parent.add_argument_group("broker")
    broker.add_argument("--nats", metavar="URL", help="the broker (default: nats://127.0.0.1:4222)")
    broker.add_argument(
        "--user", metavar="NAME", help="user; its password from --password-file or SWARMD_NATS_PASSWORD"
    )
    broker.add_argument("--password-file", metavar="FILE")
    broker.add_argument("--user-file", metavar="FILE", help="a user that `up` made: DATA/users/<role>.json")
    broker.add_argument("--creds", metavar="FILE", help="NATS credentials file")
    broker.add_argument("--nkey", metavar="FILE", help="nkey seed file")
    broker.add_argument("--tls-ca", metavar="FILE", help="authority that signed the broker's certificate")
    broker.add_argument("--tls-cert", metavar="FILE", help="our certificate")
    broker.add_argument("--tls-key", metavar="FILE", help="its key")
    return parent


class Commands:
    """Adds commands to the parser, each with its help, an example and the global flags."""

    def __init__(self, parser: argparse.ArgumentParser, shared: argparse.ArgumentParser, required: bool = True) -> None:
        self._shared = shared
        self.parser = parser
        self._children = parser.add_subparsers(metavar="COMMAND", dest="command", required=required)

    def add(
        self, name: str, run: Callable[[argparse.Namespace], int] | None, summary: str, example: str
    ) -> argparse.ArgumentParser:
        """A parser for one command; `run` gets the parsed flags and returns an exit code."""
        parser = self._children.add_parser(
            name,
            help=summary,
            description=summary[:1].upper() + summary[1:] + ".",
            epilog=f"example:\n  {example}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[self._shared],
        )
        if run is not None:
            parser.set_defaults(run=run)
        return parser

    def group(
        self, name: str, summary: str, example: str, run: Callable[[argparse.Namespace], int] | None = None
    ) -> Commands:
        """A command that has commands of its own; `run` is what it does without one of them."""
        return Commands(self.add(name, run, summary, example), self._shared, required=run is None)


def wants_json(args: argparse.Namespace) -> bool:
    return bool(getattr(args, "json", False))


def swarm_of(args: argparse.Namespace) -> str:
    """The swarm that the command is about. Raises `Rejected("bad_name")`."""
    from swarmd.core.ids import check_name

    return check_name("swarm", getattr(args, "swarm", "main"))


def labels_of(pairs: list[str], flag: str = "--label") -> dict[str, str]:
    """`KEY=VALUE` pairs as a mapping. Raises `Rejected("bad_usage")`."""
    from swarmd.core.errors import Rejected

    labels = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise Rejected("bad_usage", f"{flag} {pair!r}: write KEY=VALUE")
        labels[key] = value
    return labels


def settings_of(args: argparse.Namespace) -> Settings:
    """Flags over environment over file over defaults."""
    from swarmd.edges.settings import read_settings

    overrides: dict[str, dict[str, Any]] = {}
    for flag, (section, key) in _OVERRIDES.items():
        value = getattr(args, flag, None)
        if value is not None:
            overrides.setdefault(section, {})[key] = value
    return read_settings(getattr(args, "config", ""), overrides)
