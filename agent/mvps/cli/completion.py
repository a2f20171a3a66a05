# SPDX-License-Identifier: Apache-2.0
"""``mvps completion``: completion scripts, written from the parsers themselves.

The scripts are static: completing never starts Python.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from mvps.cli import exits

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class _Option:
    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


def declare(_verb: str, parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mvps completion``."""
    parser.add_argument("shell", choices=SHELLS)
    parser.epilog = (
        "examples:\n"
        "  mvps completion bash > /etc/bash_completion.d/mvps\n"
        "  mvps completion zsh > /usr/local/share/zsh/site-functions/_mvps\n"
        "  mvps completion fish > ~/.config/fish/completions/mvps.fish"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](), end="")
    return exits.OK


def _actions(verb_name: str) -> tuple[list[_Option], list[str]]:
    """Options of a verb and of its actions, and the choices of their positional arguments."""
    from mvps.cli.main import VERBS, parser_of

    options: dict[tuple[str, ...], _Option] = {}
    words: list[str] = []
    parsers = [parser_of(next(v for v in VERBS if v.name == verb_name))]
    for parser in parsers:
        for action in parser._actions:
            choices = tuple(str(c) for c in action.choices or ())
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            if not action.option_strings:
                words += choices
            elif action.help != argparse.SUPPRESS:
                names = tuple(action.option_strings)
                text = (action.help or "").replace("%(default)s", str(action.default)).split(". ")[0]
                options.setdefault(names, _Option(names, text, action.nargs != 0, choices))
    return list(options.values()), words


def _verbs() -> list[tuple[str, str]]:
    from mvps.cli.main import VERBS

    return [(v.name, v.summary) for v in VERBS]


def _bash() -> str:
    cases: list[str] = []
    values: list[str] = []
    for verb, _ in _verbs():
        options, words = _actions(verb)
        names = [name for option in options for name in option.names if name.startswith("--")]
        cases.append(f'    {verb}) words="{" ".join([*names, *words])}" ;;')
        for option in options:
            if option.choices:
                pattern = "|".join(f"{verb}:{name}" for name in option.names)
                values.append(f'    {pattern}) words="{" ".join(option.choices)}" ;;')
            elif option.takes_value:
                pattern = "|".join(f"{verb}:{name}" for name in option.names)
                values.append(f"    {pattern}) compopt -o default; return ;;")
    from mvps.cli.main import GLOBAL_OPTIONS

    top = " ".join([*(verb for verb, _ in _verbs()), *GLOBAL_OPTIONS])
    return "\n".join(
        [
            "# bash completion for mvps",
            "_mvps() {",
            "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} verb= words= i",
            "  for ((i = 1; i < COMP_CWORD; i++)); do",
            "    [[ ${COMP_WORDS[i]} != -* ]] && { verb=${COMP_WORDS[i]}; break; }",
            "  done",
            "  case $verb in",
            f'    "") words="{top}" ;;',
            *cases,
            "  esac",
            "  case $verb:$previous in",
            *values,
            "  esac",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -F _mvps mvps",
            "",
        ]
    )


def _zsh() -> str:
    lines = ["#compdef mvps", "local -a verbs", "verbs=("]
    lines += [f"  {_single(f'{verb}:{summary}')}" for verb, summary in _verbs()]
    lines += [
        ")",
        "if (( CURRENT == 2 )); then",
        "  _describe verb verbs",
        "  return",
        "fi",
        "case $words[2] in",
    ]
    for verb, _ in _verbs():
        options, words = _actions(verb)
        specs: list[str] = []
        for option in options:
            for name in option.names:
                text = option.help.replace("[", "(").replace("]", ")").replace(":", ",")
                value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files"
                specs.append(_single(f"{name}[{text}]{value if option.takes_value else ''}"))
        if words:
            specs.append(_single(f"*:word:({' '.join(words)})"))
        lines.append(f"  {verb}) _arguments {' '.join(specs)} ;;")
    return "\n".join([*lines, "esac", ""])


def _fish() -> str:
    lines = ["# fish completion for mvps", "complete -c mvps -f"]
    for verb, summary in _verbs():
        lines.append(f"complete -c mvps -n __fish_use_subcommand -a {verb} -d {_single(summary)}")
        options, words = _actions(verb)
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for option in options:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.names)
            value = f" -x -a '{' '.join(option.choices)}'" if option.choices else " -r -F"
            text = f" -d {_single(option.help)}" if option.help else ""
            lines.append(f"complete -c mvps {seen} {names}{value if option.takes_value else ''}{text}")
        lines += [f"complete -c mvps {seen} -a {word}" for word in words]
    return "\n".join([*lines, ""])


def _single(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
