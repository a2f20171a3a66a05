# SPDX-License-Identifier: Apache-2.0
"""``mvps agent``: the agent in the foreground, as the service runs it."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import threading

from mvps.cli import exits
from mvps.cli.settings import DEFAULT_CONFIG, add_config_option, read_config

# Processor time that a thread may take without sleeping while the agent has a real-time policy: a tick takes
# milliseconds, and whatever loops must not take a core from the host.
RT_LIMIT_US = 2_000_000


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps agent``."""
    add_config_option(parser)
    parser.epilog = (
        "examples:\n"
        "  mvps agent --config /etc/mvps/agent.toml\n"
        "SIGHUP reads the settings again; SIGTERM and SIGINT end it and detach every program.\n"
        "exit codes: 0 ended by a signal, 2 the settings are bad, 4 nothing could be attached"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the agent until a signal ends it."""
    settings = read_config(arguments.config)
    path = str(arguments.config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else ""))

    from mvps.daemon import log
    from mvps.daemon.notify import Notifier
    from mvps.daemon.start import Cause, StartError, start

    log.configure(settings.log.level, settings.log.format)
    try:
        started = start(settings, path, notifier=Notifier())
    except StartError as error:
        code = exits.USAGE if error.cause is Cause.SETTINGS else exits.NOT_PERMITTED
        raise exits.Failure(code, str(error)) from None
    bound_real_time()
    agent = started.agent
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    # In a thread of its own: a reload reads a file, and the tick must not wait for the disk.
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=agent.reload, name="mvps-reload").start())
    started.run()
    return exits.OK


def bound_real_time() -> None:
    """Under a real-time policy, let the kernel end this process should one of its threads run for 2 s without a sleep.

    Only once everything is loaded: that takes longer on a slow host, and the unit allows it more (LimitRTTIME).
    """
    if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
        limit = RT_LIMIT_US if hard == resource.RLIM_INFINITY else min(RT_LIMIT_US, hard)
        resource.setrlimit(resource.RLIMIT_RTTIME, (limit, limit))
