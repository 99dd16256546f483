-- What all callers of an account may use together, as keys have it for one: the limits, the state of the rates, and how many runs at once.
-- limited says whether there is any, which is all that an admission asks of an account without.
alter table accounts add column rate_limits text not null default '';
alter table accounts add column rate_state text not null default '';
alter table accounts add column max_concurrent bigint not null default 0;
alter table accounts add column limited boolean not null default false;
