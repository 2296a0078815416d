#!/bin/sh
# The two commands on the bundled corpus, twice: the second build embeds nothing.
set -eu
BIN=${BIN:-.venv/bin}
STORE=${STORE:-.demo/store}
embedcache() { "$BIN/embedcache" --store "$STORE" "$@"; }
say() { printf '\n$ embedcache %s\n' "$*"; embedcache "$@"; }

say build examples/helpdesk.txt
say build examples/helpdesk.txt
BIN=$BIN STORE=$STORE "$BIN/python" examples/check_light_build.py
say train helpdesk
say predict last "my laptop will not connect to the office wifi"
say stats
