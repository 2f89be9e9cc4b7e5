-- ALTER EXTENSION pgmq UPDATE from the reference implementation. build.py puts between the two parts of this file what
-- CREATE EXTENSION runs: its functions as CREATE OR REPLACE, so that those of the same signature keep their privileges
-- and what depends on them; its types and tables where they are missing.
--
-- The script of a trusted extension runs as the superuser, on tables that belong to others: it runs nothing of theirs.
-- So it looks for nothing outside of pg_catalog, writes no row of theirs, and reads no table that might be a view.
-- A GRANT or REVOKE in a script counts as the extension's own, and dumps leave out what is: on what was there before
-- there is none.

-- @part before
set local search_path = pg_catalog, pg_temp;

-- The lists of pgmq; what else there is in the schema are queues and archives.
do $do$
declare
    problem text;
begin
    -- What pgmq.meta and the others have to be.
    with expected (relation, columns, is_needed) as (
        values
            (
                'meta',
                'queue_name character varying, is_partitioned boolean, is_unlogged boolean, '
                    || 'created_at timestamp with time zone',
                true
            ),
            (
                'topic_bindings',
                'pattern text, queue_name text, bound_at timestamp with time zone, compiled_regex text',
                false
            ),
            (
                'notify_insert_throttle',
                'queue_name character varying, throttle_interval_ms integer, last_notified_at timestamp with time zone',
                false
            )
    )
    select format('pgmq.%s is not the table (%s)', e.relation, e.columns)
    into problem
    from expected as e
    left join pg_class as c on c.relname = e.relation and c.relnamespace = 'pgmq'::regnamespace
    where (c.oid is not null or e.is_needed)
        and (
            c.relkind is distinct from 'r'
            or e.columns <> (
                select string_agg(
                    format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum
                )
                from pg_attribute as a
                where a.attrelid = c.oid
                    and a.attnum > 0
                    and not a.attisdropped
            )
        )
    limit 1;
    if problem is not null then
        raise exception 'pgmq: %', problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. Give it these columns, in this order, and update again.';
    end if;

    select pg_describe_object(d.classid, d.objid, 0)
    into problem
    from pg_depend as d
    join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
    left join pg_class as c on c.oid = d.objid and d.classid = 'pg_class'::regclass
    where d.refclassid = 'pg_extension'::regclass
        and d.deptype = 'e'
        and d.classid not in ('pg_proc'::regclass, 'pg_type'::regclass)
        and d.objid <> 'pgmq'::regnamespace
        and not coalesce(
            c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle')
            or c.relkind in ('r', 'p', 'S') and c.relname ~ '^[qa]_',
            false
        )
    limit 1;
    if problem is not null then
        raise exception 'pgmq: the extension has a member that this version does not know: %', problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. Where it is not needed, drop it; else let it be by itself, '
                    'alter extension pgmq drop ...; then update again.';
    end if;
end
$do$;

-- All locks of tables at once or none: a session that has used one queue and is about to use another must not wait for
-- this one while this one waits for it. Half of deadlock_timeout is when neither has been taken for a deadlock. It tries for a
-- minute, or for lock_timeout where that is set.
do $do$
declare
    usual_timeout constant text := current_setting('lock_timeout');
    patience constant interval := current_setting('deadlock_timeout')::interval / 2;
    give_up constant timestamptz := clock_timestamp()
        + coalesce(nullif(usual_timeout::interval, interval '0'), interval '1 minute');
    pause_begins timestamptz;
    locked text;
begin
    loop
        pause_begins := clock_timestamp() + patience;
        begin
            for locked in
                select c.oid::regclass::text
                from pg_class as c
                where c.relnamespace = 'pgmq'::regnamespace
                    and c.relkind in ('r', 'p')
                    and not c.relispartition
                    and (
                        c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle')
                        or c.relname ~ '^[qa]_'
                    )
                order by c.relname
            loop
                perform set_config(
                    'lock_timeout',
                    greatest(1, 1000 * extract(epoch from pause_begins - clock_timestamp()))::integer::text,
                    true
                );
                execute format('lock table %s in access exclusive mode', locked);
            end loop;
            exit;
        exception
            when lock_not_available then
                if clock_timestamp() > give_up then
                    raise exception 'pgmq: table % is in use', locked
                        using errcode = 'lock_not_available',
                            hint = 'Nothing has been changed. See pg_locks for the transactions that hold it; '
                                'update again when they have ended.';
                end if;
        end;
        perform pg_sleep(extract(epoch from patience));
    end loop;
    perform set_config('lock_timeout', usual_timeout, true);
end
$do$;

-- The queues as the reference has them: it cuts the name of a table at 63 bytes, as the server does.
create function pgmq._queues_of_the_reference()
returns table (queue_name text, queue_table name, archive_table name)
language sql
as $function$
    select m.queue_name::text,
        lower('q_' || m.queue_name)::name,
        lower('a_' || m.queue_name)::name
    from pgmq.meta as m
    order by m.queue_name
$function$;

do $do$
declare
    queue record;
    problem text;
begin
    select q.queue_table, string_agg(format('%L', q.queue_name), ' and ' order by q.queue_name) as names
    into queue
    from pgmq._queues_of_the_reference() as q
    group by q.queue_table
    having count(*) > 1
    limit 1;
    if found then
        raise exception 'pgmq: the queues % are one table, pgmq.%', queue.names, quote_ident(queue.queue_table)
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. Bind to one of them what the other is bound to '
                    '(pgmq.topic_bindings), delete the other from pgmq.meta, and update again. The messages stay.';
    end if;

    for queue in
        select q.queue_name, t.name as table_name, t.columns, c.oid, c.relkind, t.is_queue
        from pgmq._queues_of_the_reference() as q
        cross join lateral (
            values
                (
                    q.queue_table,
                    '{msg_id, read_ct, enqueued_at, last_read_at, vt, message, headers}'::text[],
                    true
                ),
                (
                    q.archive_table,
                    '{msg_id, read_ct, enqueued_at, last_read_at, archived_at, vt, message, headers}'::text[],
                    false
                )
        ) as t (name, columns, is_queue)
        left join pg_class as c on c.relname = t.name and c.relnamespace = 'pgmq'::regnamespace
    loop
        if queue.oid is null or queue.relkind not in ('r', 'p') then
            raise exception 'pgmq: queue % has no table pgmq.%',
                quote_ident(queue.queue_name), quote_ident(queue.table_name)
                using errcode = 'undefined_table',
                    hint = 'Nothing has been changed. Make the table, or delete the queue from pgmq.meta, '
                        'and update again.';
        end if;

        select format(
            'table pgmq.%I of queue %I has no column %I of type %s', queue.table_name, queue.queue_name, e.name, e.type
        )
        into problem
        from unnest(queue.columns) as n (name)
        cross join lateral (
            select n.name,
                case
                    when n.name in ('message', 'headers') then 'jsonb'
                    when n.name = 'msg_id' then 'bigint'
                    when n.name = 'read_ct' then 'integer'
                    else 'timestamp with time zone'
                end as type
        ) as e
        left join pg_attribute as a on a.attrelid = queue.oid and a.attname = e.name and not a.attisdropped
        where format_type(a.atttypid, a.atttypmod) is distinct from e.type
        limit 1;
        if problem is not null then
            raise exception 'pgmq: %', problem
                using errcode = 'undefined_column',
                    hint = 'Nothing has been changed. Add the column, and update again.';
        elsif queue.is_queue and pg_get_serial_sequence(format('pgmq.%I', queue.table_name), 'msg_id') is null then
            raise exception 'pgmq: column msg_id of table pgmq.% draws from no sequence', quote_ident(queue.table_name)
                using errcode = 'object_not_in_prerequisite_state',
                    hint = 'Nothing has been changed. Make it an identity column, and update again.';
        elsif queue.relkind = 'p' and octet_length(lower('q_' || queue.queue_name)) > 63 then
            raise exception 'pgmq: queue % is partitioned, and its name has too many bytes',
                quote_ident(queue.queue_name)
                using errcode = 'name_too_long',
                    hint = 'Nothing has been changed. Move its messages to a queue with a shorter name, drop it, '
                        'and update again.';
        end if;
    end loop;
end
$do$;

-- Types and functions that this version has not, or has with another signature. What else depends on one stops it.
do $do$
declare
    dropped record;
    same_types boolean;
begin
    select coalesce(bool_and(t.attributes = g.attributes), true)
    into same_types
    from (
        values
            (
                'message_record',
                'msg_id bigint, read_ct integer, enqueued_at timestamp with time zone, '
                    || 'last_read_at timestamp with time zone, vt timestamp with time zone, message jsonb, '
                    || 'headers jsonb'
            ),
            (
                'queue_record',
                'queue_name character varying, is_partitioned boolean, is_unlogged boolean, '
                    || 'created_at timestamp with time zone'
            ),
            (
                'metrics_result',
                'queue_name text, queue_length bigint, newest_msg_age_sec integer, oldest_msg_age_sec integer, '
                    || 'total_messages bigint, scrape_time timestamp with time zone, queue_visible_length bigint, '
                    || 'default_partition_length bigint'
            )
    ) as t (name, attributes)
    cross join lateral (
        select string_agg(format('%s %s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum)
        from pg_attribute as a
        where a.attrelid = to_regclass('pgmq.' || t.name)
            and a.attnum > 0
            and not a.attisdropped
    ) as g (attributes);

    for dropped in
        select p.oid::regprocedure::text as signature,
            (
                select string_agg(
                    distinct case
                        when r.oid is null then pg_describe_object(u.classid, u.objid, 0)
                        else pg_describe_object('pg_class'::regclass, r.ev_class, 0)
                    end,
                    ', '
                )
                from pg_depend as u
                left join pg_rewrite as r on u.classid = 'pg_rewrite'::regclass and r.oid = u.objid
                where u.refclassid = 'pg_proc'::regclass
                    and u.refobjid = p.oid
            ) as dependents
        from pg_depend as d
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
        join pg_proc as p on p.oid = d.objid
        where d.classid = 'pg_proc'::regclass
            and d.refclassid = 'pg_extension'::regclass
            and d.deptype = 'e'
            and not (
                same_types
                and lower(
                    format(
                        '%s(%s) %s, %s',
                        p.proname,
                        pg_get_function_identity_arguments(p.oid),
                        pg_get_function_result(p.oid),
                        p.pronargdefaults
                    )
                ) = any (
                    array[
                        @signatures@
                    ]
                )
            )
            and p.proname <> '_queues_of_the_reference'
    loop
        if dropped.dependents is not null then
            raise exception 'pgmq: function % goes, and % depends on it', dropped.signature, dropped.dependents
                using errcode = 'dependent_objects_still_exist',
                    hint = 'Nothing has been changed. Drop what depends on it, and update again.';
        end if;
        execute format('drop function %s', dropped.signature);
    end loop;

    if not same_types then
        drop type if exists pgmq.message_record, pgmq.queue_record, pgmq.metrics_result;
    end if;
end
$do$;

-- The reference gives pg_monitor all tables and sequences to come; here each queue is given to it.
do $do$
declare
    given record;
begin
    for given in
        select d.defaclrole::regrole as role, case d.defaclobjtype when 'r' then 'tables' else 'sequences' end as what
        from pg_default_acl as d
        where d.defaclnamespace = 'pgmq'::regnamespace
            and d.defaclobjtype in ('r', 'S')
            and exists (
                select
                from aclexplode(d.defaclacl) as a
                where a.grantee = 'pg_monitor'::regrole
            )
    loop
        execute format(
            'alter default privileges for role %s in schema pgmq revoke select on %s from pg_monitor',
            given.role,
            given.what
        );
    end loop;
end
$do$;

-- The constraints and indexes of the lists, under the names and of the kind they have here. A list that is missing
-- comes with what CREATE EXTENSION runs.
drop index if exists pgmq.idx_topic_bindings_covering;
drop index if exists pgmq.topic_bindings_queue_name_idx;
drop index if exists pgmq.idx_notify_throttle_active;
alter table if exists pgmq.topic_bindings
drop constraint if exists topic_bindings_meta_queue_name_fk,
drop constraint if exists topic_bindings_unique_pattern_queue;
alter table if exists pgmq.notify_insert_throttle
drop constraint if exists notify_insert_throttle_meta_queue_name_fk,
drop constraint if exists notify_insert_throttle_queue_name_key;
alter table if exists pgmq.notify_insert_throttle
set logged;
do $do$
begin
    if to_regclass('pgmq.topic_bindings') is not null then
        alter table pgmq.topic_bindings
        drop column compiled_regex;
        alter table pgmq.topic_bindings
        add column compiled_regex text generated always as (
            @compiled_regex@
        ) stored,
        add primary key (pattern, queue_name);
    end if;
    if to_regclass('pgmq.notify_insert_throttle') is not null then
        alter table pgmq.notify_insert_throttle
        add primary key (queue_name),
        add check (throttle_interval_ms >= 0);
    end if;
end
$do$;

-- @part after
-- A queue's own functions and sequences: members of the extension while the script makes them, by themselves at its
-- end.
do $do$
declare
    queue record;
    object text;
begin
    for queue in
        select q.queue_name,
            q.queue_table,
            q.archive_table,
            pgmq.format_table_name(q.queue_name, 'q') as new_queue_table,
            pgmq.format_table_name(q.queue_name, 'a') as new_archive_table
        from pgmq._queues_of_the_reference() as q
    loop
        if queue.queue_table <> queue.new_queue_table then
            execute format('alter table pgmq.%I rename to %I', queue.queue_table, queue.new_queue_table);
            execute format('alter table pgmq.%I rename to %I', queue.archive_table, queue.new_archive_table);
        end if;

        -- Left from this implementation, where it has been dropped and the reference was created over its queues.
        for object in
            select format('function %s', p.oid::regprocedure)
            from pg_proc as p
            where p.pronamespace = 'pgmq'::regnamespace
                and starts_with(p.proname, pgmq._stem(queue.queue_name) || '$')
            union all
            select format('sequence %s', c.oid::regclass)
            from pg_class as c
            where c.relnamespace = 'pgmq'::regnamespace
                and c.relkind = 'S'
                and starts_with(c.relname, pgmq._stem(queue.queue_name) || '$')
        loop
            execute format('alter extension pgmq add %s', object);
        end loop;

        perform pgmq.compile(queue.queue_name);
        perform pgmq._compile_notify(queue.queue_name);
        if (
            select relkind = 'p'
            from pg_class
            where oid = format('pgmq.%I', queue.new_queue_table)::regclass
        ) then
            -- See docs/partitions.md.
            execute format('alter table pgmq.%I alter column msg_id set generated by default', queue.new_queue_table);
        end if;

        -- An index on vt alone serves no query any more, and each message pays for it three times. One on the headers
        -- was to make grouped reads fast, which another does.
        for object in
            select i.indexrelid::regclass
            from pg_index as i
            join pg_class as c on c.oid = i.indexrelid
            join pg_am as m on m.oid = c.relam
            join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
            where i.indrelid = format('pgmq.%I', queue.new_queue_table)::regclass
                and i.indnatts = 1
                and not i.indisunique
                and not i.indisreplident
                and i.indpred is null
                and i.indexprs is null
                and (m.amname, a.attname) in (('btree', 'vt'), ('gin', 'headers'))
            order by m.amname
        loop
            if (
                select m.amname = 'gin'
                from pg_class as c
                join pg_am as m on m.oid = c.relam
                where c.oid = object::regclass
            ) then
                perform pgmq.create_fifo_index(queue.queue_name);
            end if;
            execute format('drop index %s', object);
        end loop;
    end loop;
end
$do$;

drop function pgmq._queues_of_the_reference();

do $do$
declare
    object text;
begin
    -- As CREATE EXTENSION would have made them.
    for object in
        select p.oid::regprocedure
        from pg_depend as d
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
        join pg_proc as p on p.oid = d.objid
        where d.classid = 'pg_proc'::regclass
            and d.refclassid = 'pg_extension'::regclass
            and d.deptype = 'e'
            and strpos(p.proname, '$') = 0
            and pg_get_userbyid(p.proowner) <> current_user
    loop
        execute format('alter function %s owner to current_user', object);
    end loop;
    -- But for the two that write the lists: as a superuser they would run what the lists' owner makes a trigger of
    -- them.
    for object in
        select pg_get_userbyid(c.relowner)
        from pg_class as c
        where c.oid = 'pgmq.topic_bindings'::regclass
    loop
        execute format('alter function pgmq._check_queue() owner to %I', object);
        execute format('alter function pgmq._follow_queue() owner to %I', object);
    end loop;

    -- What the script has granted on the tables of queues would count as the extension's, too: no longer when they have
    -- been members and are none.
    for object in
        select format('%s %s', case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass)
        from pg_init_privs as i
        join pg_class as c on c.oid = i.objoid and c.relnamespace = 'pgmq'::regnamespace
        where i.classoid = 'pg_class'::regclass
            and i.objsubid = 0
            and not exists (
                select
                from pg_depend as d
                where d.classid = 'pg_class'::regclass
                    and d.objid = c.oid
                    and d.refclassid = 'pg_extension'::regclass
                    and d.deptype = 'e'
            )
    loop
        execute format('alter extension pgmq add %s', object);
    end loop;

    for object in
        select case
            when d.classid = 'pg_proc'::regclass then format('function %s', d.objid::regprocedure)
            when c.relkind = 'S' then format('sequence %s', c.oid::regclass)
            else format('table %s', c.oid::regclass)
        end
        from pg_depend as d
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pgmq'
        left join pg_class as c on c.oid = d.objid and d.classid = 'pg_class'::regclass
        left join pg_proc as p on p.oid = d.objid and d.classid = 'pg_proc'::regclass
        where d.refclassid = 'pg_extension'::regclass
            and d.deptype = 'e'
            and (c.relname ~ '^[qa]_' or strpos(p.proname, '$') > 0)
    loop
        execute format('alter extension pgmq drop %s', object);
    end loop;
end
$do$;
