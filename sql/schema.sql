-- Types and tables.

create type pgmq.message_record as (
    msg_id bigint,
    read_ct integer,
    enqueued_at timestamptz,
    last_read_at timestamptz,
    vt timestamptz,
    message jsonb,
    headers jsonb
);
comment on type pgmq.message_record is 'A message as read, pop and set_vt return it.';

create type pgmq.queue_record as (
    queue_name character varying,
    is_partitioned boolean,
    is_unlogged boolean,
    created_at timestamptz
);
comment on type pgmq.queue_record is 'A queue as list_queues returns it.';

create type pgmq.metrics_result as (
    queue_name text,
    queue_length bigint,
    newest_msg_age_sec integer,
    oldest_msg_age_sec integer,
    total_messages bigint,
    scrape_time timestamptz,
    queue_visible_length bigint,
    default_partition_length bigint
);
comment on type pgmq.metrics_result is 'The figures of a queue as metrics returns them.';

create table pgmq.meta (
    queue_name character varying unique not null,
    is_partitioned boolean not null,
    is_unlogged boolean not null,
    created_at timestamptz not null default pg_catalog.now()
);
comment on table pgmq.meta is 'One row per queue, with the name as it was given.';
-- So that a queue can be dropped where all tables are published.
alter table pgmq.meta replica identity using index meta_queue_name_key;
-- As pgmq.validate_queue_name has it, in expressions that need no function of this schema.
alter table pgmq.meta
add constraint meta_queue_name_check check (
    pg_catalog.length(queue_name::text) <= 47
    and (queue_name::text collate "C") operator(pg_catalog.!~) '[$;'']|--'::text
);
-- Names that differ only in case are one queue. The collation is the database's, as in pgmq.format_table_name.
create unique index meta_lower_queue_name on pgmq.meta (pg_catalog.lower(queue_name::text collate "default"));
grant select on table pgmq.meta to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.meta', '');

create table pgmq.topic_bindings (
    pattern text not null,
    queue_name text not null,
    bound_at timestamptz not null default pg_catalog.now(),
    compiled_regex text generated always as (
        '^' || replace(replace(replace(pattern, '.', chr(92) || '.'), '*', '[^.]+'), '#', '.*') || '$'
    ) stored,
    primary key (pattern, queue_name)
);
create index on pgmq.topic_bindings (queue_name);
comment on table pgmq.topic_bindings is
'One row for each pattern bound to a queue. It can be edited directly: what is committed counts at once.';
comment on column pgmq.topic_bindings.compiled_regex is 'The pattern as a regular expression.';
grant select on table pgmq.topic_bindings to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.topic_bindings', '');

create table pgmq.topic_version (
    version uuid primary key default pg_catalog.gen_random_uuid(),
    is_open boolean not null
)
with (autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);
comment on table pgmq.topic_version is
'Internal: stands for the contents of pgmq.topic_bindings; docs/topics.md says how. Its triggers keep it.';
-- A role that reads the bindings needs it, and it reveals nothing.
grant select on table pgmq.topic_version to public;

create table pgmq.notify_insert_throttle (
    queue_name character varying primary key,
    throttle_interval_ms integer not null default 0 check (throttle_interval_ms >= 0),
    last_notified_at timestamptz not null default pg_catalog.to_timestamp(0::double precision)
);
comment on table pgmq.notify_insert_throttle is
'One row for each queue that notifies. Change it with enable_notify_insert, update_notify_insert and
disable_notify_insert: the queue''s own trigger function carries the throttle, and the time of the last notification,
too.';
comment on column pgmq.notify_insert_throttle.last_notified_at is 'Not kept here: see list_notify_insert_throttles.';
grant select on table pgmq.notify_insert_throttle to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.notify_insert_throttle', '');

create table pgmq.dispatch_lock ();
comment on table pgmq.dispatch_lock is
'Internal: never holds a row. pgmq._dispatch locks it, as no other role can.';
-- A dump locks it against changes, for which it must read it.
grant select on table pgmq.dispatch_lock to public;

grant usage on schema pgmq to pg_monitor;
