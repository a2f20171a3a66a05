# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share (``--config``, ``--socket``, ``--tls-*``), and reading what they name."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvps.cli import exits

if TYPE_CHECKING:
    import grpc

    from mvps.daemon.config import Config

DEFAULT_CONFIG = Path("/etc/mvps/agent.toml")
DEFAULT_SOCKET = "/run/mvps/agent.sock"


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``; without it the installed file is read if there is one, else defaults hold."""
    parser.add_argument(
        "--config", metavar="FILE", type=Path, help=f"settings file (default {DEFAULT_CONFIG}, if it exists)"
    )


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--socket``; $MVPS_SOCKET is the default, then the installed agent's socket."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=os.environ.get("MVPS_SOCKET", DEFAULT_SOCKET),
        help=f"the agent's socket (default $MVPS_SOCKET or {DEFAULT_SOCKET})",
    )


def read_config(path: Path | None) -> Config:
    """Settings of ``path``, of the installed file, or the defaults; a bad file ends the verb with 2."""
    from mvps.daemon import config
    from mvps.settings.toml_file import ConfigError

    if path is None and not DEFAULT_CONFIG.exists():
        return config.Config()
    try:
        return config.load(path or DEFAULT_CONFIG)
    except ConfigError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None


def add_tls_options(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add ``--tls-ca`` and its companions, for :func:`open_channel`.

    default: argparse.SUPPRESS for a question below a verb that has them too.
    """
    group = parser.add_argument_group("TLS, for a broker that has tls_cert set")
    group.add_argument(
        "--tls-ca",
        metavar="FILE",
        default=default,
        type=Path,
        help="certificates (PEM) of who may vouch for the broker",
    )
    group.add_argument(
        "--tls-cert", metavar="FILE", default=default, type=Path, help="own certificate, for a broker that asks for one"
    )
    group.add_argument("--tls-key", metavar="FILE", default=default, type=Path, help="its private key, mode 0600")
    group.add_argument(
        "--tls-name", metavar="NAME", default=default, help="name in the broker's certificate, if not the address's"
    )


def open_channel(target: str, arguments: argparse.Namespace, options: list[tuple[str, Any]]) -> grpc.Channel:
    """A channel to a broker, with TLS if :func:`add_tls_options` were given, else if the installed agent uses it.

    Files that cannot be used end the verb with 2.
    """
    import grpc

    ca, cert, key = arguments.tls_ca, arguments.tls_cert, arguments.tls_key
    if not (ca or cert or key) and DEFAULT_CONFIG.exists():
        ours = read_config(None).broker
        ca, cert, key = (Path(name) if name else None for name in (ours.tls_ca, ours.tls_cert, ours.tls_key))
    if target.startswith("unix:") or not (ca or cert or key):
        return grpc.insecure_channel(target, options=options)
    if ca is None or (cert is None) != (key is None):
        raise exits.Failure(exits.USAGE, "--tls-ca is needed, and --tls-cert and --tls-key belong together")
    from mvps.trust.tls import ClientTls, TlsError

    try:
        credentials = ClientTls(ca, cert, key).credentials()
    except TlsError as error:
        raise exits.Failure(exits.USAGE, str(error)) from None
    if arguments.tls_name:
        options = [*options, ("grpc.ssl_target_name_override", arguments.tls_name)]
    return grpc.secure_channel(target, credentials, options=options)
