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
            using detail = format('It has %s characters.', length(queue_name)),
                hint = 'Choose a shorter name.';
    elsif queue_name ~ $$[$;']|--$$ then
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
        else left(l.name, 8) || '$' || left(encode(sha256(convert_to(l.name, 'UTF8')), 'hex'), 16)
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
    return pgmq._identifier(prefix || '_' || queue_name, 63);
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
                detail = format('It has %s characters.', length(queue_name));
    end if;
    return pgmq.format_table_name(queue_name, 'q');
end
$function$;
comment on function pgmq._sought_table(text) is
'Internal: the name of the table of a queue that must exist, which one with too long a name does not.';

create function pgmq.acquire_queue_lock(queue_name text)
returns void
language plpgsql
as $function$
begin
    perform pg_advisory_xact_lock(hashtextextended('pgmq.' || pgmq.format_table_name(queue_name, 'q'), 0));
end
$function$;
comment on function pgmq.acquire_queue_lock(text) is
'Waits for the advisory lock that creating and dropping this queue takes, and holds it until the transaction ends.
Sending and reading do not take it. Errors: as validate_queue_name. Privileges: none.';

-- What the names of a queue's own functions, sequences and indexes begin with. They go on with "$" and at most 12
-- characters, for which a longer table name makes room.
create function pgmq._stem(queue_name text)
returns text
stable
language sql
as $function$
    select pgmq._identifier('q_' || queue_name, 49)
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
        from pg_class
        where relname = table_name collate "C"
            and relnamespace = 'pgmq'::regnamespace
            and relkind in ('r', 'p')
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
    function_name constant text := 'pgmq.' || quote_ident(pgmq._stem(queue_name) || '$' || verb);
begin
    if to_regproc(function_name) is not null then
        return function_name;
    elsif pgmq._table_exists(queue_table) then
        raise exception 'pgmq: queue % has no function for %', quote_ident(queue_name), verb
            using errcode = 'object_not_in_prerequisite_state',
                detail = 'Its table is there: another version made it, or a dump restored it without its functions.',
                hint = format('Its owner or a superuser makes them: select pgmq.compile(%L);', queue_name);
    else
        raise exception 'pgmq: queue % does not exist', quote_ident(queue_name)
            using errcode = 'undefined_table',
                hint = format('Create it first: select pgmq.create(%L);', queue_name);
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
            when strpos(queue_name, '$') = 0
                then to_regproc(
                    'pgmq.' || quote_ident(lower(('q_' || queue_name) collate "default") || '$' || verb)
                )::text
        end,
        pgmq._function_or_error(queue_name, verb)
    )
$function$;
comment on function pgmq._function(text, text) is
'Internal: the quoted name of the queue''s own function for this verb, or an error that says why there is none.';

create function pgmq._required(argument text, value anyelement)
returns anyelement
language plpgsql
as $function$
begin
    raise exception 'pgmq: % must not be NULL', argument
        using errcode = 'null_value_not_allowed';
end
$function$;
comment on function pgmq._required(text, anyelement) is 'Internal: refuses an argument that is NULL, in coalesce.';

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
