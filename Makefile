# Two commands do everything on a machine that has Python 3.11 and make: `make demo` and `make test`.
# Both make .venv from the lock files first; no other tool is needed.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
BUILT := pyproject.toml tools/bootstrap.sh tools/install.sh
# Two workers whatever the machine, so that a run here and a run elsewhere are the same run.
PYTEST := $(PY) -m pytest tests -n 2 --dist loadfile
ARGS ?=
AREA ?=

# Where this is set, each of the many processes that a run starts compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check fix bench lock clean
# One writer of .venv at a time; the tests bring their own parallelism.
.NOTPARALLEL:

help:
	@echo "make demo    the whole loop on a year of real flights (ARGS=... is passed on)"
	@echo "make test    every check and every test (ARGS=... goes to pytest)"
	@echo "make check   lint, format, types and floors only"
	@echo "make fix     let ruff mend what it can"
	@echo "make bench   the benchmarks (AREA=name for one area, ARGS=--quick for a fast look)"
	@echo "make lock    write the lock files anew from pyproject.toml"
	@echo "make clean   remove the environments, builds and caches"

# The demo's environment is a part of the tests' one, so it installs in a fraction of the time.
$(VENV)/demo.stamp: requirements-demo.lock $(BUILT)
	sh tools/bootstrap.sh $(VENV)
	sh tools/install.sh $(VENV) requirements-demo.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: requirements.lock $(BUILT)
	sh tools/bootstrap.sh $(VENV)
	sh tools/install.sh $(VENV) requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/demo.stamp
	$(VENV)/bin/everloop demo $(ARGS)

test: check
	$(PY) -m tests.services
	$(PYTEST) $(ARGS)

check: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@# Each of these uses one core.
	$(VENV)/bin/lint-imports & linted=$$!; $(VENV)/bin/mypy; typed=$$?; wait $$linted && exit $$typed

fix: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/dev.stamp
	$(PY) -m benchmarks $(if $(AREA),--area $(AREA)) $(ARGS)

# uv resolves for every platform at once, which pip cannot; installing needs pip alone.
# The demo's lock is cut out of the full one, so the two can never disagree.
UV_COMPILE = $(PY) -m uv pip compile --quiet pyproject.toml --python-version 3.11 --universal \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links
lock:
	sh tools/bootstrap.sh $(VENV)
	$(PIP) install --quiet uv
	$(UV_COMPILE) --extra postgres --extra redis --extra sklearn --extra otlp --extra webhooks --extra ray --extra sweep --extra examples --group dev --group build \
		$(ARGS) -o requirements.lock
	$(UV_COMPILE) --extra examples --group build -c requirements.lock -o requirements-demo.lock

clean:
	rm -rf $(VENV) .bench build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
