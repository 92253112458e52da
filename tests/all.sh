#!/bin/sh
# The whole suite, in two halves side by side: tests wait far more than they compute.  The second half's output follows the first's.
# Usage: tests/all.sh PYTHON
cd "$(dirname "$0")/.." || exit 1
output=$(mktemp)
# a shell lets what runs in its background ignore SIGINT, and all below would inherit that
env --default-signal=INT,QUIT "$1" -m pytest tests/cluster >"$output" 2>&1 </dev/null &
other=$!
trap 'kill -INT $other 2>/dev/null; wait $other; cat "$output"; rm -f "$output"; exit 130' INT TERM
"$1" -m pytest tests/unit tests/kernel tests/faults
first=$?
wait $other
second=$?
cat "$output"
rm -f "$output"
[ $first -eq 0 ] && [ $second -eq 0 ]
