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
    created_at timestamptz not null default now()
);
comment on table pgmq.meta is 'One row a queue, with the name as it was given.';
-- The script of a trusted extension runs as the superuser: who asked for the extension is to be able to use it, and
-- to let others.
grant all on table pgmq.meta to @extowner@ with grant option;
select pg_catalog.pg_extension_config_dump('pgmq.meta', '');

grant usage on schema pgmq to pg_monitor;
grant select on table pgmq.meta to pg_monitor;
