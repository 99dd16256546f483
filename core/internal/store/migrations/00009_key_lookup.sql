-- A key's row has the present one of its secrets, and is where a credential is looked up. Those that were replaced are few, and looked up in an index of their
-- own, which has all that a look-up needs. account is the key's, and '' for a secret that was not replaced.
alter table key_secrets add column replaced boolean not null default false;
alter table key_secrets add column account text not null default '';
-- The one without an id is what a look-up finds where there is nothing, in this index as among the keys.
update key_secrets set replaced = true, account = (select k.account from keys k where k.id = key_secrets.key_id)
    where public_id = '' or expires_at <> 0;
create index key_secrets_replaced on key_secrets (public_id, replaced, account, key_id, hash, pepper, expires_at) where replaced;
