-- What a fresh install finds in schema pgmq. Queues survive DROP EXTENSION, so tables, their sequences and the queues'
-- own functions are legal. Anything else that expressions or calls can name might be a trap: a function that matches a
-- call of the extension better than the extension's own would run with the rights of whoever calls it.
do $do$
declare
    found record;
begin
    select pg_describe_object(d.classid, d.objid, 0) as described,
        replace(i.type, 'composite type', 'type') || ' ' || i.identity as named,
        pg_get_userbyid(coalesce(s.refobjid, 10)) as owner
    into found
    from pg_depend as d
    left join pg_proc as p on p.oid = d.objid and d.classid = 'pg_proc'::regclass
    -- The first superuser's are not noted.
    left join pg_shdepend as s
        on s.classid = d.classid
        and s.objid = d.objid
        and s.deptype = 'o'
        and s.dbid = (select b.oid from pg_database as b where b.datname = current_database())
    cross join lateral pg_identify_object(d.classid, d.objid, 0) as i
    where d.refclassid = 'pg_namespace'::regclass
        and d.refobjid = 'pgmq'::regnamespace
        -- Row types and array types depend on their table or type, not on the schema.
        and d.classid in (
            'pg_proc'::regclass,
            'pg_type'::regclass,
            'pg_operator'::regclass,
            'pg_opclass'::regclass,
            'pg_opfamily'::regclass,
            'pg_collation'::regclass,
            'pg_conversion'::regclass,
            'pg_ts_config'::regclass,
            'pg_ts_dict'::regclass,
            'pg_ts_parser'::regclass,
            'pg_ts_template'::regclass
        )
        and coalesce(p.proname::text !~ '^q_.*[$]', true)
    order by i.type, i.identity
    limit 1;
    if found.named is not null then
        raise exception 'pgmq: schema pgmq holds %, which belongs to role %', found.described, quote_ident(found.owner)
            using errcode = 'object_not_in_prerequisite_state',
                detail = 'A schema that is there already may hold only the tables, sequences and functions of queues.',
                hint = format('Nothing has been changed. Drop it (drop %s) or move it to another schema, '
                    'and install again.', found.named);
    end if;
end
$do$;

-- Whoever owns the schema can rename it, and put another in its place that privileged functions would look into. The
-- privileges of a former owner go with the ownership, and so does CREATE, which he may have granted to others.
do $do$
declare
    is_safe boolean;
    grantee text;
begin
    select r.rolsuper or r.rolname = current_user
    into is_safe
    from pg_namespace as n
    join pg_roles as r on r.oid = n.nspowner
    where n.oid = 'pgmq'::regnamespace::oid;
    alter schema pgmq owner to current_user;
    if is_safe then
        return;
    end if;
    for grantee in
        select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
        from pg_namespace as n
        cross join lateral aclexplode(n.nspacl) as a
        where n.oid = 'pgmq'::regnamespace::oid
            and a.privilege_type = 'CREATE'
            and a.grantee <> n.nspowner
    loop
        execute format('revoke create on schema pgmq from %s cascade', grantee);
    end loop;
end
$do$;
