# PostgreSQL with pgmq, PL/Python and pg_partman: `make docker PG_MAJOR=18`. docs/docker.md says how to use it.
ARG PG_MAJOR=18
ARG BASE=postgres:${PG_MAJOR}

FROM ${BASE} AS build
ARG PG_MAJOR
RUN apt-get update && apt-get install -y --no-install-recommends make python3
COPY . /build
WORKDIR /build
RUN make \
    && share=/usr/share/postgresql \
    && install -D -m 644 -t /image/docker-entrypoint-initdb.d docker/00-pgmq.sql \
    && install -D -m 644 -t /image$share/$PG_MAJOR/extension pgmq.control sql/pgmq--*.sql \
    && install -D -m 644 -t /image/usr/share/doc/pgmq LICENSE \
    && cat $share/$PG_MAJOR/postgresql.conf.sample docker/postgresql.conf > /image$share/postgresql.conf.sample

FROM ${BASE}
ARG PG_MAJOR
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        postgresql-plpython3-$PG_MAJOR \
        postgresql-$PG_MAJOR-partman \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /image /

# While a new cluster is prepared its server has no TCP port, so it is not taken for the one that will be used.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD user="${POSTGRES_USER:-postgres}"; pg_isready --quiet -h localhost -U "$user" -d "${POSTGRES_DB:-$user}"

ARG BASE
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="pgmq on PostgreSQL ${PG_MAJOR}" \
    org.opencontainers.image.description="PostgreSQL with the message queue pgmq, PL/Python and pg_partman" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="PostgreSQL" \
    org.opencontainers.image.base.name="${BASE}"
