-- +goose Up

-- Every request looks up a secret, and finds all it needs here: with very many keys each further page that it has to see is one that may not be in memory.
create unique index key_secrets_lookup on key_secrets (public_id, key_id, hash, pepper, expires_at);
