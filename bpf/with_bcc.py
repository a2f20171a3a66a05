# SPDX-License-Identifier: Apache-2.0
"""Compile and load the programs of one signal with bcc, hand their descriptors over, and end.

Run by the system's Python (probes/bcc.py says how), since Debian's python3-bpfcc belongs to it: nothing of MVPS can be
imported here. LLVM and its 210 MiB are gone with this process; programs stay, because their descriptors do.

Standard input: one JSON object with text (the main C text), flags (for clang), programs (names) and channel (the
descriptor of a Unix socket, on which the programs' descriptors are sent, in the order of their names). Exit code 1 and
a word on standard error when it cannot be done.
"""

import json
import socket
import sys


def main() -> int:
    """Compile, load, hand over."""
    request = json.load(sys.stdin)
    try:
        from bcc import BPF  # type: ignore[import-not-found]
    except ImportError as error:  # the package of this name on PyPI is another one, and has no BPF
        print(f"{error}; apt-get install python3-bpfcc", file=sys.stderr)
        return 1
    try:
        module = BPF(text=request["text"].encode(), cflags=request["flags"])
        fds = [module.load_func(name.encode(), BPF.RAW_TRACEPOINT).fd for name in request["programs"]]
    except Exception as error:  # bcc raises no narrower one; the compiler's or verifier's words are on stderr already
        print(error, file=sys.stderr)
        return 1
    with socket.socket(fileno=request["channel"]) as channel:
        socket.send_fds(channel, [b"\0"], fds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
