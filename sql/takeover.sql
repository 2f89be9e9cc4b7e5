-- ALTER EXTENSION pgmq UPDATE from the reference implementation. build.py puts between the two parts of this file what
-- CREATE EXTENSION runs: its functions as CREATE OR REPLACE, so that those of the same signature keep their privileges
-- and what depends on them; its types and tables where they are missing.
--
-- The script runs as a superuser, on an extension, a schema and tables that may belong to others. What it does not know
-- it refuses, by the catalogs alone, before anything of theirs is evaluated: merely to plan a query, PostgreSQL runs what
-- the predicate of an index calls. Then the schema, the lists and the extension become the superuser's, and only then
-- are the lists read. Nothing is adopted that is not known by its exact signature.
-- A GRANT or REVOKE in a script counts as the extension's own, and dumps leave out what is: its last statements put that
-- right.

-- @part before
set local search_path = pg_catalog, pg_temp;

do $do$
begin
    if (
        select not bool_and(r.rolsuper)
        from pg_roles as r
        where r.rolname in (session_user, current_user)
    ) then
        raise exception 'pgmq: only a superuser can update from the reference implementation'
            using errcode = 'insufficient_privilege',
                detail = format('The session is of role %I, and runs as role %I.', session_user, current_user),
                hint = 'Nothing has been changed. Connect as a superuser, and update again.';
    end if;
end
$do$;

-- The functions of this version, as the next function shows them.
create function pgmq._functions_of_this_version()
returns text[]
language sql
as $function$
    select array[
        @signatures@
    ]
$function$;

-- The members of the extension: a function with its name, arguments, result and number of defaults, a table or composite
-- type with its relation. Row types and array types are members by themselves since PostgreSQL 17.
create function pgmq._members()
returns table (classid oid, objid oid, relation oid, signature text)
language sql
as $function$
    select d.classid,
        d.objid,
        case d.classid
            when 'pg_class'::regclass then d.objid
            else nullif(coalesce(element.typrelid, t.typrelid), 0)
        end,
        format(
            '%s(%s) %s, %s',
            p.proname,
            pg_get_function_identity_arguments(p.oid),
            pg_get_function_result(p.oid),
            p.pronargdefaults
        )
    from pg_extension as e
    join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
    left join pg_type as t on t.oid = d.objid and d.classid = 'pg_type'::regclass
    left join pg_type as element on element.oid = t.typelem and element.typarray = t.oid
    left join pg_proc as p on p.oid = d.objid and d.classid = 'pg_proc'::regclass
    where e.extname = 'pgmq'
$function$;

create function pgmq._refuse_the_unknown()
returns void
language plpgsql
as $function$
declare
    lists constant oid[] := array(
        select c.oid
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle')
    );
    problem text;
    remedy text;
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

    -- Functions that are not known go, see below.
    select pg_describe_object(m.classid, m.objid, 0)
    into problem
    from pgmq._members() as m
    left join pg_class as c on c.oid = m.relation and c.relnamespace = 'pgmq'::regnamespace
    where m.classid <> 'pg_proc'::regclass
        and (m.classid, m.objid) <> ('pg_namespace'::regclass, 'pgmq'::regnamespace)
        and not coalesce(
            c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle')
            or c.relname in ('message_record', 'queue_record', 'metrics_result') and c.relkind = 'c'
            or c.relname ~ '^[qa]_' and c.relkind in ('r', 'p', 'S'),
            false
        )
    limit 1;
    if problem is not null then
        raise exception 'pgmq: the extension has a member that this version does not know: %', problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. Where it is not needed, drop it; else let it be by itself, '
                    'alter extension pgmq drop ...; then update again.';
    end if;

    -- Names of ours that others have taken. A superuser's own overloads of our functions are left alone.
    select format('%s belongs to role %I', pg_describe_object(f.classid, f.objid, 0), pg_get_userbyid(f.owner)),
        format('drop %s %s', replace(i.type, 'composite type', 'type'), i.identity)
    into problem, remedy
    from (
        select 'pg_class'::regclass, c.oid, c.relowner
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relname in (
                'meta',
                'topic_bindings',
                'topic_version',
                'notify_insert_throttle',
                'dispatch_lock',
                'message_record',
                'queue_record',
                'metrics_result'
            )
            and not exists (
                select
                from pgmq._members() as m
                where m.relation = c.oid
            )
        union all
        select 'pg_proc'::regclass, p.oid, p.proowner
        from pg_proc as p
        join pg_roles as r on r.oid = p.proowner and not r.rolsuper
        where p.pronamespace = 'pgmq'::regnamespace
            and p.proname in (
                select split_part(s, '(', 1)
                from unnest(pgmq._functions_of_this_version()) as s
            )
            and not exists (
                select
                from pgmq._members() as m
                where (m.classid, m.objid) = ('pg_proc'::regclass, p.oid)
            )
    ) as f (classid, objid, owner)
    cross join lateral pg_identify_object(f.classid, f.objid, 0) as i
    order by i.type, i.identity
    limit 1;
    if problem is not null then
        raise exception 'pgmq: %, and not to the extension', problem
            using errcode = 'insufficient_privilege',
                hint = format('Nothing has been changed. Drop it (%s) or move it to another schema, and update again.',
                    remedy);
    end if;

    -- What would run when the lists are read or written.
    select f.problem, f.remedy
    into problem, remedy
    from (
        select format('trigger %I of table %s', t.tgname, t.tgrelid::regclass),
            format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass)
        from pg_trigger as t
        where t.tgrelid = any (lists)
            and not t.tgisinternal
        union all
        select format('rule %I of table %s', r.rulename, r.ev_class::regclass),
            format('drop rule %I on %s', r.rulename, r.ev_class::regclass)
        from pg_rewrite as r
        where r.ev_class = any (lists)
        union all
        -- A superuser's foreign keys to the lists are left alone.
        select format('constraint %I of table %s', n.conname, n.conrelid::regclass),
            format('alter table %s drop constraint %I', n.conrelid::regclass, n.conname)
        from pg_constraint as n
        join pg_class as c on c.oid = n.conrelid
        join pg_roles as r on r.oid = c.relowner
        where n.conrelid = any (lists)
            and n.contype not in ('p', 'u', 'n', 't')
            and not (
                n.contype = 'f'
                and n.confrelid = any (lists)
                and n.conname in ('topic_bindings_meta_queue_name_fk', 'notify_insert_throttle_meta_queue_name_fk')
            )
            or n.confrelid = any (lists) and n.conrelid <> all (lists) and not r.rolsuper
        union all
        select format('index %s', i.indexrelid::regclass),
            case
                when n.oid is null then format('drop index %s', i.indexrelid::regclass)
                else format('alter table %s drop constraint %I', n.conrelid::regclass, n.conname)
            end
        from pg_index as i
        left join pg_constraint as n on n.conindid = i.indexrelid and n.conrelid = i.indrelid
        where i.indrelid = any (lists)
            and pg_get_indexdef(i.indexrelid) not in (
                'CREATE UNIQUE INDEX meta_queue_name_key ON pgmq.meta USING btree (queue_name)',
                'CREATE UNIQUE INDEX topic_bindings_unique_pattern_queue ON pgmq.topic_bindings USING btree '
                    || '(pattern, queue_name)',
                'CREATE INDEX idx_topic_bindings_covering ON pgmq.topic_bindings USING btree (pattern) '
                    || 'INCLUDE (queue_name, compiled_regex)',
                'CREATE UNIQUE INDEX notify_insert_throttle_queue_name_key ON pgmq.notify_insert_throttle USING btree '
                    || '(queue_name)',
                'CREATE INDEX idx_notify_throttle_active ON pgmq.notify_insert_throttle USING btree '
                    || '(queue_name, last_notified_at) WHERE (throttle_interval_ms > 0)'
            )
        union all
        select format('extended statistics %I of table %s', s.stxname, s.stxrelid::regclass),
            format('drop statistics %s.%I', s.stxnamespace::regnamespace, s.stxname)
        from pg_statistic_ext as s
        where s.stxrelid = any (lists)
        union all
        select format('policy %I of table %s', o.polname, o.polrelid::regclass),
            format('drop policy %I on %s', o.polname, o.polrelid::regclass)
        from pg_policy as o
        where o.polrelid = any (lists)
        union all
        select format('row level security of table %s', c.oid::regclass),
            format('alter table %s disable row level security, no force row level security', c.oid::regclass)
        from pg_class as c
        where c.oid = any (lists)
            and (c.relrowsecurity or c.relforcerowsecurity)
        union all
        select format('type %s of table %s', c.reloftype::regtype, c.oid::regclass),
            format('alter table %s not of', c.oid::regclass)
        from pg_class as c
        where c.oid = any (lists)
            and c.reloftype <> 0
        union all
        select format('table %s, which inherits from table %s', h.inhrelid::regclass, h.inhparent::regclass),
            format('alter table %s no inherit %s', h.inhrelid::regclass, h.inhparent::regclass)
        from pg_inherits as h
        where h.inhrelid = any (lists)
            or h.inhparent = any (lists)
        union all
        -- The expression of compiled_regex, which goes before it has been evaluated, has only to be one of PostgreSQL.
        select format('value of column %I of table %s', a.attname, a.attrelid::regclass),
            case
                when a.attidentity <> '' then
                    format('alter table %s alter column %I drop identity', a.attrelid::regclass, a.attname)
                when a.attgenerated <> '' then
                    format('alter table %s alter column %I drop expression', a.attrelid::regclass, a.attname)
                else format('alter table %s alter column %I drop default', a.attrelid::regclass, a.attname)
            end
        from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid
        left join pg_attrdef as d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where a.attrelid = any (lists)
            and a.attnum > 0
            and not a.attisdropped
            and (d.oid is not null or a.attidentity <> '' or a.attgenerated <> '')
            and not (
                a.attidentity = ''
                and a.attgenerated = ''
                and (c.relname, a.attname, pg_get_expr(d.adbin, d.adrelid)) in (
                    ('meta', 'created_at', 'now()'),
                    ('topic_bindings', 'bound_at', 'now()'),
                    ('notify_insert_throttle', 'throttle_interval_ms', '0'),
                    ('notify_insert_throttle', 'last_notified_at', 'to_timestamp((0)::double precision)')
                )
                or a.attgenerated = 's'
                and a.attname = 'compiled_regex'
                and not exists (
                    select
                    from pg_depend as u
                    where (
                            u.classid = 'pg_attrdef'::regclass and u.objid = d.oid
                            -- So it is up to PostgreSQL 14.
                            or u.classid = 'pg_class'::regclass and u.objid = a.attrelid and u.objsubid = a.attnum
                        )
                        and (u.refclassid <> 'pg_class'::regclass or u.refobjid <> a.attrelid)
                )
            )
    ) as f (problem, remedy)
    order by f.problem
    limit 1;
    if problem is not null then
        raise exception 'pgmq: the % is unknown to this version', problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = format('Nothing has been changed. Remove it (%s), update again, and make it again where it is '
                    'needed.', remedy);
    end if;
end
$function$;

select pgmq._refuse_the_unknown();

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

-- Once more: until now others could change what has been looked at.
select pgmq._refuse_the_unknown();

-- From here on all of it is the superuser's. The former owners can go on working: with the schema and the lists they may
-- do what an application does, but nobody else makes a trigger or a foreign key on a list (see references.sql).
do $do$
declare
    me constant oid := (select r.oid from pg_roles as r where r.rolname = current_user);
    owned record;
begin
    for owned in
        select n.nspowner::regrole as owner
        from pg_namespace as n
        where n.oid = 'pgmq'::regnamespace
            and n.nspowner <> me
    loop
        alter schema pgmq owner to current_user;
        execute format('grant usage, create on schema pgmq to %s with grant option', owned.owner);
    end loop;

    for owned in
        select c.oid::regclass as relation, c.relkind, c.relowner::regrole as owner
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relname in (
                'meta',
                'topic_bindings',
                'notify_insert_throttle',
                'message_record',
                'queue_record',
                'metrics_result'
            )
            and c.relowner <> me
    loop
        if owned.relkind = 'c' then
            execute format('alter type %s owner to current_user', owned.relation);
        else
            execute format('alter table %s owner to current_user', owned.relation);
            execute format(
                'grant select, insert, update, delete on table %s to %s with grant option', owned.relation, owned.owner
            );
        end if;
    end loop;

    -- Who owns an extension may add to it, and a later update would replace what he has added under a new name of ours
    -- and leave it his. PostgreSQL has no command for it. Of the first superuser's it keeps no note.
    for owned in
        select e.oid
        from pg_extension as e
        where e.extname = 'pgmq'
            and e.extowner <> me
    loop
        update pg_extension
        set extowner = me
        where oid = owned.oid;
        delete from pg_shdepend
        where dbid = (select b.oid from pg_database as b where b.datname = current_database())
            and classid = 'pg_extension'::regclass
            and objid = owned.oid
            and deptype = 'o';
        if me <> 10 then
            insert into pg_shdepend (dbid, classid, objid, objsubid, refclassid, refobjid, deptype)
            select b.oid, 'pg_extension'::regclass, owned.oid, 0, 'pg_authid'::regclass, me, 'o'
            from pg_database as b
            where b.datname = current_database();
        end if;
    end loop;
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

    select q.queue_name
    into queue
    from pgmq._queues_of_the_reference() as q
    where length(q.queue_name) > 47
        or q.queue_name ~ '[$;'']|--'
    limit 1;
    if found then
        raise exception 'pgmq: queue % has a name that no queue can have', quote_ident(queue.queue_name)
            using errcode = 'invalid_name',
                detail = 'A name has at most 47 characters, and no $, semicolon, single quote or double hyphen.',
                hint = 'Nothing has been changed. Move its messages to a queue with another name, delete it from '
                    'pgmq.meta, and update again.';
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
        select m.objid::regprocedure::text as signature,
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
                    and u.refobjid = m.objid
            ) as dependents
        from pgmq._members() as m
        where m.classid = 'pg_proc'::regclass
            and not (same_types and m.signature = any (pgmq._functions_of_this_version()))
            and m.objid::regprocedure not in (
                'pgmq._functions_of_this_version()'::regprocedure,
                'pgmq._members()'::regprocedure,
                'pgmq._queues_of_the_reference()'::regprocedure,
                'pgmq._refuse_the_unknown()'::regprocedure
            )
    loop
        if dropped.dependents is not null then
            raise exception 'pgmq: function % goes, and % depends on it', dropped.signature, dropped.dependents
                using errcode = 'dependent_objects_still_exist',
                    hint = 'Nothing has been changed. Drop what depends on it, and update again.';
        end if;
        execute format('drop routine %s', dropped.signature);
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
alter table pgmq.meta
alter column created_at set default now();
do $do$
begin
    if to_regclass('pgmq.topic_bindings') is not null then
        alter table pgmq.topic_bindings
        alter column bound_at set default now(),
        drop column compiled_regex;
        alter table pgmq.topic_bindings
        add column compiled_regex text generated always as (
            @compiled_regex@
        ) stored,
        add primary key (pattern, queue_name);
    end if;
    if to_regclass('pgmq.notify_insert_throttle') is not null then
        alter table pgmq.notify_insert_throttle
        alter column throttle_interval_ms set default 0,
        alter column last_notified_at set default to_timestamp(0::double precision),
        add primary key (queue_name),
        add check (throttle_interval_ms >= 0);
    end if;
end
$do$;

-- @part after
-- The functions have been replaced, and belong now to who owns the extension, as CREATE EXTENSION would have it. A
-- member that is not known has come while the script ran.
do $do$
declare
    function record;
begin
    for function in
        select m.objid::regprocedure as name,
            pg_get_userbyid(p.proowner) as owner,
            m.signature = any (pgmq._functions_of_this_version()) as is_known
        from pgmq._members() as m
        join pg_proc as p on p.oid = m.objid and m.classid = 'pg_proc'::regclass
        where p.proowner <> (select r.oid from pg_roles as r where r.rolname = current_user)
    loop
        if not function.is_known then
            raise exception 'pgmq: function % belongs to role %', function.name, quote_ident(function.owner)
                using errcode = 'insufficient_privilege',
                    hint = 'Nothing has been changed. It was added to the extension just now; update again.';
        end if;
        execute format('alter function %s owner to current_user', function.name);
    end loop;
end
$do$;

-- What is there under the names of a queue's own objects may be left from this implementation, where it has been dropped
-- and the reference was created over its queues. Then it belongs to the owner of the queue.
do $do$
declare
    planted record;
begin
    select format('pgmq.%I', o.name) as name, i.type, i.identity, pg_get_userbyid(o.owner) as owner
    into planted
    from pgmq._queues_of_the_reference() as q
    join pg_class as t on t.relname = q.queue_table and t.relnamespace = 'pgmq'::regnamespace
    cross join lateral (
        select 'pg_proc'::regclass, p.oid, p.proname, p.proowner
        from pg_proc as p
        where p.pronamespace = 'pgmq'::regnamespace
        union all
        select 'pg_class'::regclass, c.oid, c.relname, c.relowner
        from pg_class as c
        where c.relnamespace = 'pgmq'::regnamespace
            and c.relkind <> 'c'
        union all
        select 'pg_type'::regclass, y.oid, y.typname, y.typowner
        from pg_type as y
        left join pg_class as c on c.oid = y.typrelid
        where y.typnamespace = 'pgmq'::regnamespace
            and coalesce(c.relkind = 'c', true)
            and not exists (
                select
                from pg_type as element
                where element.typarray = y.oid
            )
    ) as o (classid, objid, name, owner)
    cross join lateral pg_identify_object(o.classid, o.objid, 0) as i
    where starts_with(o.name::text, pgmq._stem(q.queue_name) || '$')
        and o.owner <> t.relowner
    order by i.type, i.identity
    limit 1;
    if found then
        raise exception 'pgmq: % belongs to role %', planted.name, quote_ident(planted.owner)
            using errcode = 'insufficient_privilege',
                detail = 'Its name is one that a queue of another role needs.',
                hint = format('Nothing has been changed. Drop it (drop %s %s), and update again.',
                    replace(planted.type, 'composite type', 'type'), planted.identity);
    end if;
end
$do$;

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
            pgmq.format_table_name(q.queue_name, 'q'::text) as new_queue_table,
            pgmq.format_table_name(q.queue_name, 'a'::text) as new_archive_table,
            t.relowner as owner
        from pgmq._queues_of_the_reference() as q
        join pg_class as t on t.relname = q.queue_table and t.relnamespace = 'pgmq'::regnamespace
        order by q.queue_name
    loop
        if queue.queue_table <> queue.new_queue_table then
            execute format('alter table pgmq.%I rename to %I', queue.queue_table, queue.new_queue_table);
            execute format('alter table pgmq.%I rename to %I', queue.archive_table, queue.new_archive_table);
        end if;

        -- See above. A statement of the script replaces only what is a member.
        for object in
            select format('routine %s', p.oid::regprocedure)
            from pg_proc as p
            where p.pronamespace = 'pgmq'::regnamespace
                and starts_with(p.proname::text, pgmq._stem(queue.queue_name) || '$')
                and p.proowner = queue.owner
            union all
            select format('sequence %s', c.oid::regclass)
            from pg_class as c
            where c.relnamespace = 'pgmq'::regnamespace
                and c.relkind = 'S'
                and starts_with(c.relname::text, pgmq._stem(queue.queue_name) || '$')
                and c.relowner = queue.owner
        loop
            execute format('alter extension pgmq add %s', object);
        end loop;

        perform pgmq.compile(queue.queue_name);
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
drop function pgmq._refuse_the_unknown();

do $do$
declare
    object text;
begin
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
            when d.classid = 'pg_proc'::regclass then format('routine %s', d.objid::regprocedure)
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

-- On the lists and the schema, the extension's own privileges are those that CREATE EXTENSION gives.
do $do$
declare
    granted record;
begin
    for granted in
        select i.classoid,
            i.objoid,
            acldefault(o.kind, o.owner) || makeaclitem('pg_monitor'::regrole, o.owner, o.privilege, false) as initprivs,
            o.owner
        from pg_init_privs as i
        join (
            select 'pg_class'::regclass, c.oid, c.relowner, 'r'::"char", 'SELECT'
            from pg_class as c
            where c.relnamespace = 'pgmq'::regnamespace
                and c.relname in ('meta', 'topic_bindings', 'notify_insert_throttle')
            union all
            select 'pg_namespace'::regclass, n.oid, n.nspowner, 'n', 'USAGE'
            from pg_namespace as n
            where n.nspname = 'pgmq'
        ) as o (classid, objid, owner, kind, privilege) on i.classoid = o.classid and i.objoid = o.objid
        where i.objsubid = 0
    loop
        update pg_init_privs as i
        set initprivs = granted.initprivs
        where i.classoid = granted.classoid
            and i.objoid = granted.objoid
            and i.objsubid = 0
            and i.initprivs <> granted.initprivs;
        -- By these PostgreSQL knows, since version 17, whom the row above names.
        delete from pg_shdepend as s
        where s.dbid = (select b.oid from pg_database as b where b.datname = current_database())
            and s.classid = granted.classoid
            and s.objid = granted.objoid
            and s.deptype = 'i'
            and s.refobjid <> granted.owner;
    end loop;
end
$do$;

-- Nothing is a member, and nobody owns a member, that the script does not expect.
do $do$
declare
    problem text;
begin
    select pg_describe_object(m.classid, m.objid, 0)
    into problem
    from pgmq._members() as m
    left join pg_class as c on c.oid = m.relation and c.relnamespace = 'pgmq'::regnamespace
    left join pg_proc as p on p.oid = m.objid and m.classid = 'pg_proc'::regclass
    where (m.classid, m.objid) <> ('pg_namespace'::regclass, 'pgmq'::regnamespace)
        and m.objid not in (
            'pgmq._functions_of_this_version()'::regprocedure,
            'pgmq._members()'::regprocedure
        )
        and not coalesce(
            pg_get_userbyid(coalesce(c.relowner, p.proowner)) = current_user
            and (
                m.signature = any (pgmq._functions_of_this_version())
                or c.relname in (
                    'meta',
                    'topic_bindings',
                    'topic_version',
                    'notify_insert_throttle',
                    'dispatch_lock',
                    'message_record',
                    'queue_record',
                    'metrics_result'
                )
            ),
            false
        )
    limit 1;
    if problem is not null then
        raise exception 'pgmq: the extension has a member that this version does not know: %', problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. It has come while the update ran; update again.';
    end if;
    if 8 <> (
        select count(distinct m.relation)
        from pgmq._members() as m
    ) then
        raise exception 'pgmq: a table or type of the extension is not its member'
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Nothing has been changed. It has been made while the update ran; update again.';
    end if;
end
$do$;

drop function pgmq._members();
drop function pgmq._functions_of_this_version();
