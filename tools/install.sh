#!/bin/sh
# Install what a lock file names, into the virtual environment VENV: install.sh VENV LOCK
# A lock names everything, so that pip has nothing to find out; and as pip works on one core, two of
# them share the lock.
set -eu
venv=$1 lock=$2

install_half() {  # install_half N: every other requirement, with the lines of its hashes
	awk -v half="$1" '/^[^ #]/ { count++ } count % 2 == half' "$lock" >"$venv/half-$1.lock"
	"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-compile --no-deps \
		--use-pep517 --require-hashes -r "$venv/half-$1.lock"
	rm "$venv/half-$1.lock"
}

install_half 0 &
first=$!
install_half 1
wait "$first"
