# SPDX-License-Identifier: Apache-2.0
"""Calls to the running agent over its Unix socket, with errors that say what to do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import grpc

from mvps.cli import exits
from mvps.v1 import local_pb2_grpc

CALL_SECONDS = 10.0


@contextlib.contextmanager
def agent_at(path: str) -> Iterator[local_pb2_grpc.LocalStub]:
    """A stub for the agent behind ``path``. gRPC errors inside become :class:`~mvps.cli.exits.Failure`."""
    _look(path)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            yield local_pb2_grpc.LocalStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise _failure(error, path) from None


def _look(path: str) -> None:
    try:
        os.stat(path)
    except FileNotFoundError:
        raise exits.Failure(
            exits.UNREACHABLE,
            f"no agent at {path}: start it (systemctl start mvps-agent, or mvps agent), "
            "or name its socket with --socket",
        ) from None
    except PermissionError:
        raise _no_access(path) from None
    if not os.access(path, os.R_OK | os.W_OK):
        raise _no_access(path)


def _no_access(path: str) -> exits.Failure:
    return exits.Failure(
        exits.NOT_PERMITTED, f"{path} may not be opened by this user: use sudo, or join the socket's group"
    )


def _failure(error: grpc.RpcError, path: str) -> exits.Failure:
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return exits.Failure(
            exits.UNREACHABLE, f"the agent at {path} does not answer ({details}): systemctl status mvps-agent"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return exits.Failure(exits.UNREACHABLE, "the running agent is older than this command: restart it")
    if code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
        return exits.Failure(exits.USAGE, details)
    return exits.Failure(exits.UNREACHABLE, f"{code.name.lower()}: {details}")
