# SPDX-License-Identifier: Apache-2.0
"""Write the texts that the packages ship and the program itself defines.

usage: python packaging/write_texts.py FOLDER    (mvps importable; the date is SOURCE_DATE_EPOCH's)

man pages (``man/*.1``, from the argument parsers), shell completion (``completion/``), and the settings files of a
fresh installation (``etc/``): every key commented out at its default.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mvps
from mvps.broker.settings import BrokerSettings
from mvps.cli import completion, exits
from mvps.cli.main import GLOBAL_OPTIONS, VERBS, Verb, parser_of
from mvps.daemon import config
from mvps.limiter.layout import DEFAULT_FOLDER

# Where the unit hands over the host's key (systemd/mvps-agent.service).
UNIT_KEY = "credential:mvps-key"


# ---- man pages


def escape(text: str) -> str:
    """Text as roff reads it literally: backslashes, hyphens that are typed, dots and quotes at a line's begin."""
    lines = text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in lines)


def _page(name: str, summary: str, body: Iterator[str]) -> str:
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    return "\n".join(
        [
            f'.TH {name.upper()} 1 "{date}" "mvps {mvps.__version__}" "User Commands"',
            ".SH NAME",
            f"{name} \\- {escape(summary)}",
            *body,
            "",
        ]
    )


def overview_page() -> str:
    """mvps(1)."""

    def body() -> Iterator[str]:
        yield ".SH SYNOPSIS\n.B mvps\n[\\-\\-debug] VERB ..."
        yield ".SH DESCRIPTION"
        yield escape("Each verb has a page of its own, such as mvps-status(1), and mvps VERB --help.")
        yield ".SH VERBS"
        for verb in VERBS:
            yield f".TP\n.B {verb.name}\n{escape(verb.summary)}"
        yield ".SH OPTIONS"
        for name, text in GLOBAL_OPTIONS.items():
            yield f".TP\n.B {escape(name)}\n{escape(text)}"
        yield ".SH EXIT STATUS"
        for code, meaning in exits.MEANINGS.items():
            yield f".TP\n.B {code}\n{escape(meaning)}"
        yield ".SH FILES"
        for path, text in (
            ("/etc/mvps/agent.toml, /etc/mvps/broker.toml", "settings"),
            ("/etc/mvps/manifests/", "the operator's signed manifests"),
            ("/usr/share/doc/mvps/", "manuals: operations.md, trust.md, limiter.md and others"),
            ("/var/lib/mvps/, /var/lib/mvps-broker/", "state of the agent and of the broker"),
            (str(DEFAULT_FOLDER), "where the limiter is pinned"),
        ):
            yield f".TP\n.I {escape(path)}\n{escape(text)}"

    return _page("mvps", "multi-vantage coherence of this host", body())


def verb_page(verb: Verb) -> str:
    """mvps-VERB(1)."""
    return _page(f"mvps-{verb.name}", verb.summary, _parser_text(parser_of(verb), "SH"))


def _parser_text(parser: argparse.ArgumentParser, level: str) -> Iterator[str]:
    usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    yield f".{level} {'SYNOPSIS' if level == 'SH' else escape(parser.prog)}"
    yield escape(usage)
    if level == "SH":
        yield ".SH DESCRIPTION"
    if parser.description:
        yield f".PP\n.nf\n{escape(parser.description)}\n.fi"
    actions = [a for a in parser._actions if a.help != argparse.SUPPRESS]
    if level == "SH":
        yield ".SH OPTIONS"
    below: list[argparse.ArgumentParser] = []
    for action in actions:
        if isinstance(action, argparse._SubParsersAction):
            below += action.choices.values()
            continue
        yield f".TP\n.B {escape(_invocation(action))}\n{escape(_help(action, parser))}"
    for each in below:
        yield from _parser_text(each, "SS")
    if parser.epilog:
        if level == "SH":
            yield ".SH EXAMPLES AND EXIT STATUS"
        yield f".nf\n{escape(textwrap.dedent(parser.epilog))}\n.fi"


def _invocation(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    value = metavar or choices or action.dest.upper()
    if not action.option_strings:
        return value
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {value}"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return (action.help or "") % {**vars(action), "prog": parser.prog} if action.help else ""


# ---- settings


def agent_settings() -> str:
    """The commented defaults, and the key as the installed unit hands it over."""
    default = f'#key = "{config.TrustSection().key}"\n'
    text = config.default_file()
    assert text.count(default) == 1, "the default settings changed: packaging/write_texts.py puts the unit's key there"
    return text.replace(default, f'key = "{UNIT_KEY}"\n')


def broker_settings() -> str:
    """Every setting of the broker, commented out at its default."""
    lines = ["# Settings of the MVPS broker. Every key is shown at its default; uncomment what you change."]
    lines += ["# The key is the unit's credential: /etc/mvps/broker.key."]
    for name, field in BrokerSettings.model_fields.items():
        if name == "key":
            continue
        lines += ["", *textwrap.wrap(f"# {field.description}", 118, subsequent_indent="# ", break_on_hyphens=False)]
        lines += [f"#{name} = {_toml(field.default)}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    return '""' if value is None else json.dumps(str(value) if isinstance(value, Path) else value)


def main(folder: Path) -> None:
    """Write everything below ``folder``."""
    os.environ["COLUMNS"] = "100"
    os.environ.pop("MVPS_SOCKET", None)  # a default that --help shows
    texts = {
        "man/mvps.1": overview_page(),
        **{f"man/mvps-{verb.name}.1": verb_page(verb) for verb in VERBS},
        "etc/agent.toml": agent_settings(),
        "etc/broker.toml": broker_settings(),
    }
    for shell in completion.SHELLS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            completion.run(argparse.Namespace(shell=shell))
        texts[f"completion/{shell}"] = printed.getvalue()
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
