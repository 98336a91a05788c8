#!/bin/sh
# Make the virtual environment, and see to the two things that a bare Python image may lack:
# the venv module (Debian splits it off) and the OpenMP library that LightGBM's wheel links to.
# Running it again changes nothing.
set -eu
venv=$1

apt() {  # apt PACKAGE REASON: install it where that is ours to do, else say what to install
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
		echo "installing $1: $2"
		if ! log=$(apt-get update -q 2>&1 && DEBIAN_FRONTEND=noninteractive \
			apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$1" 2>&1); then
			echo "$log" >&2
			echo "everloop: apt-get could not install $1 ($2)" >&2
			exit 1
		fi
	else
		echo "everloop: $2; install your system's package for it (Debian: $1) and run make again" >&2
		exit 1
	fi
}

find_python() {  # the first that runs and is new enough; 3.11 first, as the locks are tested on it
	for name in ${PYTHON:-} python3.11 python3 python3.12 python3.13 python3.14 python; do
		if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
			echo "$name"
			return
		fi
	done
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
	python=$(find_python)
	if [ -z "$python" ]; then
		echo "everloop: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2
		exit 1
	fi
	if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
		version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
		apt "python$version-venv" "$python comes without the venv module"
	fi
	"$python" -m venv --clear "$venv"
fi

if [ "$(uname -s)" = Linux ] && ! "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null; then
	apt libgomp1 "LightGBM needs the OpenMP library libgomp.so.1"
fi
