-- Tapes of attempts of steps: what a node learned from outside, so that it can be replayed. They are read one by one, and only by those who replay.
create table run_tapes (
    account text   not null,
    run_id  text   not null,
    step    text   not null,
    attempt bigint not null,
    body    bytea  not null,
    primary key (account, run_id, step, attempt),
    foreign key (account, run_id) references runs (account, id) on delete cascade
);
