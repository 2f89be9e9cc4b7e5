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
-- So that a queue can be dropped where all tables are published.
alter table pgmq.meta replica identity using index meta_queue_name_key;
-- The script of a trusted extension runs as the superuser: who asked for the extension is to be able to use it, and
-- to let others.
grant all on table pgmq.meta to @extowner@ with grant option;
grant select on table pgmq.meta to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.meta', '');

create table pgmq.topic_bindings (
    pattern text not null,
    queue_name text not null,
    bound_at timestamptz not null default now(),
    compiled_regex text generated always as (
        '^' || replace(replace(replace(pattern, '.', '\.'), '*', '[^.]+'), '#', '.*') || '$'
    ) stored,
    primary key (pattern, queue_name)
);
create index on pgmq.topic_bindings (queue_name);
comment on table pgmq.topic_bindings is
'One row for each pattern bound to a queue. It can be edited directly: what is committed counts at once.';
comment on column pgmq.topic_bindings.compiled_regex is 'The pattern as a regular expression.';
grant all on table pgmq.topic_bindings to @extowner@;
grant select on table pgmq.topic_bindings to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.topic_bindings', '');

create table pgmq.topic_version (
    version uuid primary key default gen_random_uuid(),
    is_open boolean not null
)
with (autovacuum_vacuum_threshold = 50, autovacuum_vacuum_scale_factor = 0);
comment on table pgmq.topic_version is
'Internal: stands for the contents of pgmq.topic_bindings; docs/topics.md says how. Its triggers keep it.';
-- Who may read the bindings needs it, and it tells nothing.
grant select on table pgmq.topic_version to public;

create table pgmq.notify_insert_throttle (
    queue_name character varying primary key,
    throttle_interval_ms integer not null default 0 check (throttle_interval_ms >= 0),
    last_notified_at timestamptz not null default to_timestamp(0)
);
comment on table pgmq.notify_insert_throttle is
'One row for each queue that notifies. Change it with enable_notify_insert, update_notify_insert and
disable_notify_insert: the queue''s own trigger function carries the throttle, and the time of the last notification,
too.';
comment on column pgmq.notify_insert_throttle.last_notified_at is 'Not kept here: see list_notify_insert_throttles.';
grant all on table pgmq.notify_insert_throttle to @extowner@;
grant select on table pgmq.notify_insert_throttle to pg_monitor;
select pg_catalog.pg_extension_config_dump('pgmq.notify_insert_throttle', '');

-- The bindings and throttles of a queue go with its row of pgmq.meta, and need it, as with a foreign key. That is not what
-- they have: pg_restore --jobs loads the tables of an extension in any order, with their constraints in place. As foreign
-- keys do, the triggers work with the rights of the tables' owner.
create function pgmq._check_queue()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    -- A dump turns this off, for what comes before that to which it refers.
    if current_setting('check_function_bodies')::boolean then
        perform
        from pgmq.meta as m
        where m.queue_name = new.queue_name
        for key share;
        if not found then
            raise exception 'pgmq: queue % does not exist', quote_ident(new.queue_name)
                using errcode = 'foreign_key_violation',
                    hint = 'The name is to be spelled as in pgmq.meta.';
        end if;
    end if;
    return new;
end
$function$;
comment on function pgmq._check_queue() is 'Internal: the trigger that refuses bindings and throttles of an unknown queue.';
revoke execute on function pgmq._check_queue() from public;

create function pgmq._follow_queue()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if tg_op = 'UPDATE' then
        update pgmq.topic_bindings
        set queue_name = new.queue_name
        where queue_name = old.queue_name;
        update pgmq.notify_insert_throttle
        set queue_name = new.queue_name
        where queue_name = old.queue_name;
    else
        delete from pgmq.topic_bindings
        where queue_name = old.queue_name;
        delete from pgmq.notify_insert_throttle
        where queue_name = old.queue_name;
    end if;
    return null;
end
$function$;
comment on function pgmq._follow_queue() is 'Internal: the trigger by which bindings and throttles follow their queue.';
revoke execute on function pgmq._follow_queue() from public;

create trigger check_queue
before insert or update of queue_name on pgmq.topic_bindings
for each row execute function pgmq._check_queue();

create trigger check_queue
before insert or update of queue_name on pgmq.notify_insert_throttle
for each row execute function pgmq._check_queue();

create trigger follow_queue
after delete or update of queue_name on pgmq.meta
for each row execute function pgmq._follow_queue();

grant usage on schema pgmq to pg_monitor;
