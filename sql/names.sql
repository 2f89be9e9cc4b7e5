-- From the name of a queue to its objects.

-- Where an error says no SQLSTATE, here and elsewhere, it is P0001, as what the reference implementation raises has.

create function pgmq.validate_queue_name(queue_name text)
returns void
language plpgsql
as $function$
begin
    if queue_name is null then
        raise exception 'pgmq: queue name must not be NULL'
            using errcode = 'null_value_not_allowed';
    elsif length(queue_name) > 47 then
        raise exception 'pgmq: queue name is too long, maximum length is 47 characters'
            using detail = pg_catalog.format('It has %s characters.', length(queue_name)),
                hint = 'Choose a shorter name.';
    elsif queue_name collate "C" ~ $$[$;']|--$$ then
        raise exception 'pgmq: queue name contains invalid characters: $, ;, --, or '''
            using hint = 'All other characters are allowed.';
    end if;
end
$function$;
comment on function pgmq.validate_queue_name(text) is
'Raises an error where the text cannot be the name of a queue; every function that takes a queue name does the same.
A name has at most 47 characters, and no $, semicolon, single quote or double hyphen. Upper and lower case are one.
Errors: 22004 for NULL, P0001 for a name that is too long or has a character that is refused. Privileges: none.';

-- Bytes count in an identifier, and a name of 47 characters may have more than fit. Such a one ends in a digest of
-- the whole, after a "$" that keeps it from being another queue's. The collation is the database's, wherever the text
-- is from.
create function pgmq._identifier(name text, bytes integer)
returns text
stable
language sql
as $function$
    select case
        when octet_length(l.name) <= bytes then l.name
        else left(l.name, 8) || '$'::text || left(encode(sha256(convert_to(l.name, 'UTF8'::name)), 'hex'::text), 16)
    end
    from lower(name collate "default") as l (name)
$function$;
comment on function pgmq._identifier(text, integer) is
'Internal: the name in lower case, shortened to an unmistakable one where it has more bytes.';

create function pgmq.format_table_name(queue_name text, prefix text)
returns text
language plpgsql
as $function$
begin
    perform pgmq.validate_queue_name(queue_name);
    return pgmq._identifier(prefix || '_'::text || queue_name, 63);
end
$function$;
comment on function pgmq.format_table_name(text, text) is
'Returns the name of a table of a queue: prefix q for the queue itself, a for its archive. It is
lower-cased and not quoted; one of more than 63 bytes is shortened.
Errors: as validate_queue_name. Privileges: none.';

create function pgmq._sought_table(queue_name text)
returns text
language plpgsql
as $function$
begin
    if length(queue_name) > 47 then
        raise exception 'pgmq: queue does not exist: its name is too long, maximum length is 47 characters'
            using errcode = 'undefined_table',
                detail = pg_catalog.format('It has %s characters.', length(queue_name));
    end if;
    return pgmq.format_table_name(queue_name, 'q'::text);
end
$function$;
comment on function pgmq._sought_table(text) is
'Internal: the name of the table of a queue that must exist, which one with too long a name does not.';

create function pgmq._patience()
returns double precision
stable
language sql
as $function$
    select date_part(
        'epoch'::text,
        coalesce(
            nullif(current_setting('lock_timeout'::text)::interval, '0'::interval),
            '1 minute'::interval
        )
    )
$function$;
comment on function pgmq._patience() is
'Internal: for how many seconds a function waits for a lock that others can hold as long as they like: lock_timeout, or
a minute where it is not set.';

create function pgmq.acquire_queue_lock(queue_name text)
returns void
language plpgsql
as $function$
declare
    key constant bigint := hashtextextended(
        'pgmq.'::text || pgmq.format_table_name(queue_name, 'q'::text),
        0::bigint
    );
    usual_timeout constant text := current_setting('lock_timeout'::text);
    holders text;
begin
    -- Anybody can hold an advisory lock, for ever.
    perform set_config('lock_timeout'::text, (1000::double precision * pgmq._patience())::bigint::text, true);
    perform pg_advisory_xact_lock(key);
    perform set_config('lock_timeout'::text, usual_timeout, true);
exception
    when lock_not_available then
        select string_agg(l.pid::text, ', '::text)
        into holders
        from pg_catalog.pg_locks as l
        where l.locktype = 'advisory'::text
            and l.granted
            and l.database = (
                select d.oid
                from pg_catalog.pg_database as d
                where d.datname = current_database()
            )
            and l.classid::bigint = (key >> 32) & 4294967295
            and l.objid::bigint = key & 4294967295
            and l.objsubid = 1::smallint;
        raise exception 'pgmq: the lock of queue % is held by another session', quote_ident(queue_name)
            using errcode = 'lock_not_available',
                detail = pg_catalog.concat('It is held by the process '::text, holders, '.'::text),
                hint = 'Try again when its transaction has ended, or end it: select pg_terminate_backend(...). '
                    'lock_timeout says for how long to wait.';
end
$function$;
comment on function pgmq.acquire_queue_lock(text) is
'Waits for the advisory lock that creating and dropping this queue takes, and holds it until the transaction ends.
Sending and reading do not take it. It waits for lock_timeout, or for a minute where that is not set.
Errors: as validate_queue_name, 55P03 where another session still holds it. Privileges: none.';

-- What the names of a queue's own functions, sequences and indexes begin with. They go on with "$" and at most 12
-- characters, for which a longer table name makes room.
create function pgmq._stem(queue_name text)
returns text
stable
language sql
as $function$
    select pgmq._identifier('q_'::text || queue_name, 49)
$function$;
comment on function pgmq._stem(text) is
'Internal: what the names of a queue''s own functions, sequences and indexes begin with.';

create function pgmq._table_exists(table_name text)
returns boolean
stable
language sql
as $function$
    select exists (
        select
        from pg_catalog.pg_class
        where relname = table_name collate "C"
            and relnamespace = 'pgmq'::regnamespace::oid
            and relkind in ('r'::"char", 'p'::"char")
    )
$function$;
comment on function pgmq._table_exists(text) is 'Internal: whether schema pgmq has a table of this name.';

create function pgmq._function_or_error(queue_name text, verb text)
returns text
stable
language plpgsql
as $function$
declare
    queue_table constant text := pgmq._sought_table(queue_name);
    function_name constant text := pgmq._stem(queue_name) || '$'::text || verb;
begin
    -- A name that has more than one function, since somebody has added one, is no name of a function for to_regproc.
    if exists (
        select
        from pg_catalog.pg_proc as p
        join pg_catalog.pg_class as c
            on c.relnamespace = p.pronamespace
            and c.relowner = p.proowner
        where p.proname = function_name collate "C"
            and p.pronamespace = 'pgmq'::regnamespace::oid
            and c.relname = queue_table collate "C"
    ) then
        return 'pgmq.'::text || quote_ident(function_name);
    elsif pgmq._table_exists(queue_table) then
        raise exception 'pgmq: queue % has no function for %', quote_ident(queue_name), verb
            using errcode = 'object_not_in_prerequisite_state',
                detail = 'Its table is there: another version made it, or a dump restored it without its functions.',
                hint = pg_catalog.format('Its owner or a superuser makes them: select pgmq.compile(%L);', queue_name);
    else
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = pg_catalog.format('Create it first: select pgmq.create(%L);', queue_name);
    end if;
end
$function$;
comment on function pgmq._function_or_error(text, text) is 'Internal: the rare cases of pgmq._function.';

-- A single expression, so that PL/pgSQL takes it in without a call.
create function pgmq._function(queue_name text, verb text)
returns text
stable
language sql
as $function$
    select coalesce(
        case
            when strpos(queue_name collate "C", '$'::text) = 0
                then to_regproc(
                    'pgmq.'::text
                        || quote_ident(lower(('q_'::text || queue_name) collate "default") || '$'::text || verb)
                )::text
        end,
        pgmq._function_or_error(queue_name, verb)
    )
$function$;
comment on function pgmq._function(text, text) is
'Internal: the quoted name of the queue''s own function for this verb, or an error that says why there is none.';

create function pgmq._required(argument text)
returns text
language plpgsql
as $function$
begin
    raise exception 'pgmq: % must not be NULL', argument
        using errcode = 'null_value_not_allowed';
end
$function$;
comment on function pgmq._required(text) is 'Internal: refuses an argument that is NULL, in coalesce.';

-- For Python, which can hand over a text in the server's encoding only as a parameter.
create function pgmq._run(statements text)
returns void
language plpgsql
as $function$
begin
    execute statements;
end
$function$;
comment on function pgmq._run(text) is 'Internal: runs statements with the rights of the caller.';

create function pgmq._number(query text)
returns bigint
language plpgsql
as $function$
declare
    value bigint;
begin
    execute query into value;
    return value;
end
$function$;
comment on function pgmq._number(text) is 'Internal: as pgmq._run, for a query that gives one number.';
