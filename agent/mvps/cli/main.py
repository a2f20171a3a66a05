# SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
"""Entry point of ``mvps``: finds the verb, imports its module, reports errors in one voice.

Only the module of the verb in use is imported, and each verb imports gRPC, numpy or pydantic only when it
runs, so that ``mvps --help`` and shell completion stay fast.

A verb module offers ``declare(verb, parser)``, which adds arguments, and ``run(arguments) -> exit code``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mvps
from mvps.cli import exits


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: its module under :mod:`mvps.cli` and one line for the overview."""

    name: str
    module: str
    summary: str


VERBS = (
    Verb("run", "run", "watch this host live, with an agent and a broker inside this process"),
    Verb("status", "observe", "what the agent is doing: vantages, phases, broker"),
    Verb("top", "observe", "live view of the running agent"),
    Verb("explain", "observe", "why each surface is in the phase it is in"),
    Verb("snapshots", "observe", "recent snapshots and what became of them"),
    Verb("accept", "control", "accept the present level of a surface as business as usual"),
    Verb("reload", "control", "make the agent read its settings again"),
    Verb("check", "check", "attach every vantage for two ticks, report, detach"),
    Verb("doctor", "doctor", "find out what keeps this host from being watched"),
    Verb("record", "record", "write what the vantages see to a file, for offline evaluation"),
    Verb("capture", "capture", "read the companion drafts' messages in a capture file"),
    Verb("cost", "cost", "what brokers, AI vantages and floods cost; or, live, what the programs cost the kernel"),
    Verb("simulate", "simulate", "examples and experiments of the sources: a hijack with liars, a queue under load"),
    Verb("ai", "ai", "ask a language model's replicas the same questions and watch how coherent they are"),
    Verb("surplus", "surplus", "what serving engines on this host are told, and records of what they did"),
    Verb("config", "config", "print or check settings"),
    Verb("key", "key", "make, show and rotate keys"),
    Verb("enroll", "enroll", "ask for a host's admission, or approve it"),
    Verb("epoch", "epoch", "write, sign and check the operator's epoch manifests"),
    Verb("agent", "agent", "the agent in the foreground, as the service runs it"),
    Verb("broker", "broker", "a broker in the foreground"),
    Verb("fleet", "fleet", "what a broker knows: epoch, log, vantages, troubles"),
    Verb("service", "service", "services that a broker watches: whether network or AI surface leads, and what to do"),
    Verb("witness", "witness", "a witness in the foreground, which cosigns brokers' checkpoints"),
    Verb("verify", "verify", "prove offline what a broker's evidence log holds, and that it only grew"),
    Verb("completion", "completion", "completion script for bash, zsh or fish"),
)

GLOBAL_OPTIONS = {
    "--help": "show this text",
    "--version": "show the version",
    "--debug": "show tracebacks",
}


# For libraries that look at the environment when they are imported; what the user set wins.
LIBRARY_DEFAULTS = {
    "OPENBLAS_NUM_THREADS": "1",  # arrays here are tiny, and each idle BLAS thread costs memory, one per CPU
    "GRPC_VERBOSITY": "ERROR",  # its INFO lines about ordinary disconnects would stand among our log lines
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mvps`` with ``argv`` (default: the process's arguments) and return the exit code."""
    for name, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)
    words = list(sys.argv[1:] if argv is None else argv)
    debug = bool(os.environ.get("MVPS_DEBUG"))
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("-h", "--help"):
            print(overview(), end="")
            return exits.OK
        if word in ("-V", "--version"):
            print(f"mvps {mvps.__version__}")
            return exits.OK
        if word != "--debug":
            return _usage(f"unknown option {word}")
        debug = True
    if not words:
        print(overview(), end="", file=sys.stderr)
        return exits.USAGE
    verb = next((v for v in VERBS if v.name == words[0]), None)
    if verb is None:
        return _usage(f'unknown verb "{words[0]}"{_nearest(words[0])}')
    return _run(verb, words[1:], debug)


def overview() -> str:
    """The text of ``mvps --help``."""
    width = max(len(v.name) for v in VERBS)
    lines = ["usage: mvps [--debug] VERB ...", "", "Multi-vantage coherence of this host.", "", "verbs:"]
    lines += [f"  {v.name:{width}}  {v.summary}" for v in VERBS]
    lines += ["", "`mvps VERB --help` shows arguments and examples.", "", "exit codes:"]
    lines += [f"  {code:<{width}}  {meaning}" for code, meaning in exits.MEANINGS.items()]
    return "\n".join(lines) + "\n"


def parser_of(verb: Verb) -> argparse.ArgumentParser:
    """The verb's argument parser, complete with what its module declares."""
    parser = argparse.ArgumentParser(
        prog=f"mvps {verb.name}",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    module = importlib.import_module(f"mvps.cli.{verb.module}")
    module.declare(verb.name, parser)
    parser.set_defaults(verb=verb.name, run=module.run)
    return parser


def _run(verb: Verb, words: list[str], debug: bool) -> int:
    try:
        arguments = parser_of(verb).parse_args(words)  # exits with 0 or 2 by itself
        debug = debug or arguments.debug
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except exits.Failure as failure:
        if debug:
            raise
        print(f"mvps {verb.name}: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Keep the interpreter from flushing into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.OK
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(
            f"mvps {verb.name}: internal error: {type(error).__name__}: {error}\n"
            f"  Please report it with the output of: mvps --debug {verb.name} ...",
            file=sys.stderr,
        )
        return exits.INTERNAL
    return code


def _usage(message: str) -> int:
    print(f"mvps: {message}; `mvps --help` lists the verbs", file=sys.stderr)
    return exits.USAGE


def _nearest(word: str) -> str:
    import difflib

    near = difflib.get_close_matches(word, [v.name for v in VERBS], n=1)
    return f', did you mean "{near[0]}"?' if near else ""


if __name__ == "__main__":
    sys.exit(main())
