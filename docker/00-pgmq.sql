-- Run once by the entrypoint in a new cluster, before the user's own scripts: with PL/Python in every database, a superuser
-- creates pgmq in it without CASCADE.
create extension if not exists plpython3u;

-- pg_partman's worker keeps the partitions of the default database. It is not there if the command line preloads others.
select exists (select from pg_settings where name = 'pg_partman_bgw.dbname') as has_worker
\gset
\if :has_worker
    alter system set pg_partman_bgw.dbname = :'DBNAME';
    alter system set pg_partman_bgw.role = :'USER';
\endif

\connect postgres
create extension if not exists plpython3u;
\connect template1
create extension if not exists plpython3u;
