#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes the native gate's readers; fails at the first finding, which it keeps in build/fuzz/.
#
# usage: native/fuzz.sh [RUNS]     1,000,000 runs unless told otherwise, less than a minute
#        native/fuzz.sh 90s        or for so many seconds
# needs: apt-get install clang libclang-rt-14-dev (of clang's own version) libssl-dev, and packaging/bootstrap.sh --dev
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

amount=${1:-1000000}
case $amount in
*s) stop=-max_total_time=${amount%s} ;;
*) stop=-runs=$amount ;;
esac

work=build/fuzz
mkdir -p "$work/corpus"
PYTHONPATH=packaging .venv/bin/python - "$work/corpus" <<'END'
import sys
from pathlib import Path

import build_hook
from tests.trust import test_gate

build_hook.write_schema()
seeds = {"body": test_gate.SAMPLE, "header": test_gate.header_bytes(), "nothing": b"", "message": test_gate.GOOD}
for name, data in seeds.items():
    Path(sys.argv[1], name).write_bytes(data)
END
clang -std=c11 -g -O1 -Wall -Wextra -Werror -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
    -Inative -Ibuild/native native/fuzz_gate.c native/header.c native/snapshot.c native/envelope.c -lcrypto -o "$work/fuzz_gate"
exec "$work/fuzz_gate" "$stop" -max_len=4096 -print_final_stats=1 -artifact_prefix="$work/" "$work/corpus"
