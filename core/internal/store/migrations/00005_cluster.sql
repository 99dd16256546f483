-- The servers that share this database. The row of a server is written with every transaction of it, so it says which one was its
-- last, and, by the database's clock, when.
create table servers (
    id         text   not null primary key,
    process    text   not null,
    started_at bigint not null,
    seen_at    bigint not null,
    batch      bigint not null
);

-- The server that executes an inline run, '' where there is only one and for runs that any server may execute.
alter table runs add column server text not null default '';
