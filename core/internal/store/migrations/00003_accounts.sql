-- Accounts. A deleted one keeps its row, under its id as its name, so that whoever belonged to it is refused while its objects are being removed, and its
-- audit events have an owner for good.
create table accounts (
    id           text   not null primary key,
    name         text   not null unique,
    title        text   not null,
    created_at   bigint not null,
    created_by   text   not null,
    disabled_at  bigint not null,
    disabled_by  text   not null,
    disabled_why text   not null,
    deleted_at   bigint not null,
    purged_at    bigint not null
);
create index accounts_to_purge on accounts (deleted_at) where deleted_at > 0 and purged_at = 0;

insert into accounts (id, name, title, created_at, created_by, disabled_at, disabled_by, disabled_why, deleted_at, purged_at)
    values ('acct_default', 'default', '', 0, 'system', 0, '', '', 0, 0);
-- Accounts that were only names in a configuration until now.
insert into accounts (id, name, title, created_at, created_by, disabled_at, disabled_by, disabled_why, deleted_at, purged_at)
    select account, account, '', 0, 'system', 0, '', '', 0, 0
    from (select account from keys union select account from workflows union select account from secrets) as used
    where account <> 'acct_default' and account <> '';

create table users (
    account       text   not null,
    id            text   not null,
    name          text   not null,
    role          text   not null,
    password      text   not null,
    pepper        bigint not null,
    password_at   bigint not null,
    created_at    bigint not null,
    created_by    text   not null,
    disabled_at   bigint not null,
    disabled_by   text   not null,
    disabled_why  text   not null,
    last_login_at bigint not null,
    primary key (account, id),
    unique (account, name)
);

create table sessions (
    id         text   not null primary key,
    account    text   not null,
    user_id    text   not null,
    created_at bigint not null,
    source_ip  text   not null,
    expires_at bigint not null,
    ended_at   bigint not null,
    ended_why  text   not null,
    foreign key (account, user_id) references users (account, id) on delete cascade
);
create index sessions_by_user on sessions (account, user_id);
create index sessions_by_expiry on sessions (expires_at);

-- Every refresh token a session has had, so that one that comes a second time is known.
create table refresh_tokens (
    public_id  text   not null primary key,
    account    text   not null,
    session_id text   not null,
    hash       bytea  not null,
    pepper     bigint not null,
    created_at bigint not null,
    expires_at bigint not null,
    used_at    bigint not null,
    foreign key (session_id) references sessions (id) on delete cascade
);
create index refresh_tokens_by_session on refresh_tokens (session_id);

create table setup_tokens (
    public_id  text   not null primary key,
    hash       bytea  not null,
    pepper     bigint not null,
    created_at bigint not null,
    expires_at bigint not null
);
