# make            build the install scripts
# make install    install the extension into the server that PG_CONFIG names
# make installcheck   a smoke test of what is installed, on the server that libpq's variables name
# make demo       the README's tour on a throwaway server
# make release-check   hold updates against a fresh install
# make test       the tests on the newest server found; make test-all on every major version, with the clients from npm
# make dist       the distribution for PGXN, out of what is committed
# make bench      the rivals side by side, some minutes; make bench-full in full size on 15 and 18, hours
# make docker     the image of PG_MAJOR (18); make docker-all of every major version; make test-docker tests them
EXTENSION = pgmq
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pgmq.control)
# The versions of the reference implementation that an update takes over.
REFERENCE = 1.10.0 1.10.1 1.11.0 1.11.1 1.12.0 1.12.1 1.13.0 1.13.1
TAKEOVERS = $(REFERENCE:%=sql/pgmq--%--$(EXTVERSION).sql)
DATA = sql/pgmq--$(EXTVERSION).sql $(TAKEOVERS)
REGRESS = smoke
REGRESS_OPTS = --inputdir=tests --load-extension=plpython3u --load-extension=pgmq
EXTRA_CLEAN = $(DATA) sql/pgmq.sql

PYTHON ?= python3
# PGXS, below, has a PYTHON of its own: that of the machine on which the server was built.
OUR_PYTHON := $(PYTHON)
NEED_PYTHON = @command -v $(firstword $(OUR_PYTHON)) > /dev/null \
	|| { echo "$(OUR_PYTHON) is missing: install Python 3" >&2; exit 1; }
# The sources are UTF-8, whatever the caller's language; the rest would have other modules run, or tests that assert nothing.
export PYTHONUTF8 = 1
unexport PYTHONHOME PYTHONPATH PYTHONOPTIMIZE
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
# A distribution has the scripts in it, and the order in which it was unpacked does not make them old.
SOURCES = $(if $(wildcard .git),sql/build.py pgmq.control $(filter-out sql/pgmq%,$(wildcard sql/*.sql)) $(wildcard plpy/*.py))
SCRIPTS = $(DATA) sql/pgmq.sql

all: $(SCRIPTS)

sql/pgmq--$(EXTVERSION).sql: $(SOURCES)
	$(NEED_PYTHON)
	$(OUR_PYTHON) sql/build.py --extension > $@.new && mv $@.new $@

sql/pgmq.sql: $(SOURCES)
	$(NEED_PYTHON)
	$(OUR_PYTHON) sql/build.py --psql > $@.new && mv $@.new $@

$(TAKEOVERS): $(SOURCES)
	$(NEED_PYTHON)
	$(OUR_PYTHON) sql/build.py --takeover > $@.new && mv $@.new $@

DISTRIBUTION = pgmq-$(EXTVERSION)

dist: $(SCRIPTS)
	@git diff --quiet HEAD || { echo "what is not committed would be missing: commit first" >&2; exit 1; }
	git archive --format=zip --output=$(DISTRIBUTION).zip --prefix=$(DISTRIBUTION)/sql/ $(SCRIPTS:%=--add-file=%) \
		--prefix=$(DISTRIBUTION)/ HEAD

demo: $(SCRIPTS)
	$(NEED_PYTHON)
	@$(OUR_PYTHON) tests/demo.py

# The environment of the tests.
VENV = .venv
$(VENV)/made: tests/requirements.txt
	$(NEED_PYTHON)
	@$(OUR_PYTHON) tests/servers.py venv $(VENV) tests/requirements.txt
	@touch $@

PYTEST = $(VENV)/bin/python -m pytest
MAJORS = 14 15 16 17 18

lint: $(VENV)/made
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: $(SCRIPTS) $(VENV)/made lint
	$(PYTEST) -m 'not clients_npm and not docker' $(PYTEST_ARGS)

test-major: $(SCRIPTS) $(VENV)/made
	$(PYTEST) -m 'not docker' --major $(MAJOR) $(PYTEST_ARGS)

test-all: lint
	@set -e; for major in $(MAJORS); do $(MAKE) test-major MAJOR=$$major; done

# The benchmarks have an environment of their own, and so do the rivals from npm.
BENCH = .venv-bench
$(BENCH)/made: benchmarks/requirements.txt
	$(NEED_PYTHON)
	@$(OUR_PYTHON) tests/servers.py venv $(BENCH) benchmarks/requirements.txt
	@touch $@

bench: $(SCRIPTS) $(BENCH)/made
	$(BENCH)/bin/python -m benchmarks $(BENCH_ARGS)

bench-full: $(SCRIPTS) $(BENCH)/made
	$(BENCH)/bin/python -m benchmarks --full $(BENCH_ARGS)

# What an update gives is what CREATE EXTENSION gives.
release-check: $(SCRIPTS) $(VENV)/made
	$(PYTEST) tests/test_release.py $(PYTEST_ARGS)

PG_MAJOR = 18
IMAGE = pg$(PG_MAJOR)-pgmq:v$(EXTVERSION)
docker:
	docker build --tag $(IMAGE) --build-arg PG_MAJOR=$(PG_MAJOR) \
		--build-arg VERSION=$(EXTVERSION) --build-arg REVISION=$$(git rev-parse HEAD) $(DOCKER_FLAGS) .

docker-all:
	@set -e; for major in $(MAJORS); do $(MAKE) docker PG_MAJOR=$$major; done

test-docker: $(SCRIPTS) $(VENV)/made
	$(PYTEST) --noconftest --numprocesses 0 -m docker tests/test_docker.py $(PYTEST_ARGS)

.PHONY: all bench bench-full demo dist lint test test-major test-all release-check docker docker-all test-docker

ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
install installcheck:
	@echo "$(PG_CONFIG) names no server with PGXS: install PostgreSQL's server headers, or set PG_CONFIG" >&2; exit 1
clean:
	rm -f $(EXTRA_CLEAN)
.PHONY: install installcheck clean
endif
