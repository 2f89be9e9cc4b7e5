# make            build the install scripts
# make install    install the extension into the server that PG_CONFIG names
# make demo       the README's tour on a throwaway server
# make test       the tests on the newest server found; make test-all on every major version, with the clients from npm
# make docker     the image of PG_MAJOR (18); make docker-all of every major version; make test-docker tests them
EXTENSION = pgmq
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pgmq.control)
DATA = sql/pgmq--$(EXTVERSION).sql
REGRESS = smoke
REGRESS_OPTS = --inputdir=tests --load-extension=plpython3u --load-extension=pgmq
EXTRA_CLEAN = sql/pgmq--$(EXTVERSION).sql sql/pgmq.sql

PYTHON ?= python3
PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
SOURCES = sql/build.py pgmq.control $(filter-out sql/pgmq%,$(wildcard sql/*.sql)) $(wildcard plpy/*.py)
SCRIPTS = sql/pgmq--$(EXTVERSION).sql sql/pgmq.sql

all: $(SCRIPTS)

sql/pgmq--$(EXTVERSION).sql: $(SOURCES)
	$(PYTHON) sql/build.py --extension > $@.new && mv $@.new $@

sql/pgmq.sql: $(SOURCES)
	$(PYTHON) sql/build.py --psql > $@.new && mv $@.new $@

demo: $(SCRIPTS)
	@$(PYTHON) tests/demo.py

# The environment of the tests.
VENV = .venv
$(VENV)/made: tests/requirements.txt
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) tests/servers.py venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --requirement tests/requirements.txt
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

PG_MAJOR = 18
IMAGE = pg$(PG_MAJOR)-pgmq:v$(EXTVERSION)
docker:
	docker build --tag $(IMAGE) --build-arg PG_MAJOR=$(PG_MAJOR) \
		--build-arg VERSION=$(EXTVERSION) --build-arg REVISION=$$(git rev-parse HEAD) $(DOCKER_FLAGS) .

docker-all:
	@set -e; for major in $(MAJORS); do $(MAKE) docker PG_MAJOR=$$major; done

test-docker: $(VENV)/made
	$(PYTEST) --noconftest --numprocesses 0 -m docker tests/test_docker.py $(PYTEST_ARGS)

.PHONY: all demo lint test test-major test-all docker docker-all test-docker

ifneq ($(wildcard $(PGXS)),)
include $(PGXS)
else
install installcheck:
	@echo "$(PG_CONFIG) names no server with PGXS: install PostgreSQL's server headers, or set PG_CONFIG" >&2; exit 1
clean:
	rm -f $(EXTRA_CLEAN)
.PHONY: install installcheck clean
endif
