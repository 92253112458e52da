#!/bin/sh
# Find a Python that is new enough (or install the distribution's), then let `python -m omtools.setup` do the rest.
set -eu
root=$(cd "$(dirname "$0")/../../.." && pwd)

find_python() {
	# the distribution's first: one under somebody's home directory could not be run by the lab's other users
	for p in /usr/bin/python3 python3 python3.11 python3.12 python3.13 python3.14; do
		if command -v "$p" >/dev/null 2>&1 && "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			command -v "$p"
			return 0
		fi
	done
	return 1
}

if ! python=$(find_python); then
	if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
		echo "setup: Python 3.11 or newer is needed (Debian 12, Ubuntu 24.04 or later); install python3 and python3-venv" >&2
		exit 1
	fi
	echo "setup: installing python3" >&2
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update && apt-get -qq -y install --no-install-recommends python3 python3-venv >/dev/null
	python=$(find_python) || {
		echo "setup: this distribution's python3 is older than 3.11; Debian 12, Ubuntu 24.04 or later is needed" >&2
		exit 1
	}
fi
PYTHONPATH=$root/tools exec "$python" -m omtools.setup "$@"
