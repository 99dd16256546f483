package store

import (
	"context"
	"crypto/subtle"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	// keyProof are the columns that prove a key, which are read before it is proved: they take as much room in every row, and are its first.
	keyProof = `k.public_id, k.id, k.account, k.hash, k.pepper`
	keyRest  = `k.type, k.last4, k.imported, k.name, k.description, k.scopes, k.allow_query, k.allowed_ips, k.allowed_origins, k.metadata, k.max_runs, k.runs_used,
	k.credited, k.refill, k.refill_at, k.rate_limits, k.rate_state, k.max_concurrent, k.created_at, k.created_by, k.updated_at, k.expires_at, k.disabled_at,
	k.disabled_by, k.disabled_why, k.revoked_at, k.revoked_by, k.revoked_why, k.last_used_at, k.revision`
	keyColumns = keyProof + `, ` + keyRest
)

const (
	sqlKeyInsert = `insert into keys (id, account, type, public_id, hash, pepper, last4, imported, name, description, scopes, allow_query, allowed_ips, allowed_origins,
		metadata, max_runs, runs_used, credited, refill, refill_at, rate_limits, rate_state, max_concurrent, created_at, created_by, updated_at,
		expires_at, disabled_at, disabled_by, disabled_why, revoked_at, revoked_by, revoked_why, last_used_at, revision, limited, lookup)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $30,
		$31, $32, $33, $34, $35, $36, $37)`
	sqlKeyTaken = `select count(*) from keys where id = $1`
	sqlKey      = `select ` + keyColumns + ` from keys k where k.account = $1 and k.id = $2`
	sqlKeys     = `select ` + keyColumns + ` from keys k`
	sqlKeyTouch = `update keys set last_used_at = $1 where id = $2 and last_used_at < $1`
	// sqlKeyUpdate writes what may change about a key but its counters, which admissions alone write.
	sqlKeyUpdate = `update keys set name = $1, description = $2, scopes = $3, allow_query = $4, allowed_ips = $5, allowed_origins = $6, metadata = $7,
		max_runs = $8, credited = $9, refill = $10, refill_at = $11, rate_limits = $12, rate_state = $13, max_concurrent = $14, updated_at = $15,
		expires_at = $16, disabled_at = $17, disabled_by = $18, disabled_why = $19, limited = $20, revision = revision + 1
		where account = $21 and id = $22`
	sqlKeyReplace = `update keys set lookup = $1, public_id = $2, hash = $3, pepper = $4, last4 = $5, imported = $6 where account = $7 and id = $8`
	sqlKeyRevoke  = `update keys set revoked_at = $1, revoked_by = $2, revoked_why = $3, updated_at = $1, revision = revision + 1
		where account = $4 and id = $5 and revoked_at = 0`

	sqlSecretInsert = `insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, '', '')`
	// sqlSecretTaken counts the secrets with an id, and those that are found by its number.
	sqlSecretTaken = `select (select count(*) from key_secrets where public_id = $1),
		(select count(*) from keys where lookup = $2) + (select count(*) from key_secrets where replaced and lookup = $2)`
	// sqlProof takes the same steps whether the id exists or not: it finds the key whose number is the next after $1, and the secret whose number is among those that
	// were replaced. There is one with the highest number, in both places. $1 is one less than the number that is looked for: no row has it, so it is never met on the way.
	sqlProof = `select s.public_id, s.key_id, s.account, s.hash, s.pepper, s.expires_at, ` + keyProof + `, 0 from keys k
		cross join key_secrets s where k.lookup >= $1 and s.replaced and s.lookup >= $1 order by k.lookup, s.lookup limit 1`
	sqlKeyRest = `select ` + keyRest + ` from keys k where k.lookup = $1`
	// sqlProofAndKey is both for PostgreSQL, in one round trip.
	sqlProofAndKey = `select s.public_id, s.key_id, s.account, s.hash, s.pepper, s.expires_at, ` + keyColumns + `
		from (select * from keys where lookup >= $1 order by lookup limit 1) k
		cross join (select * from key_secrets where replaced and lookup >= $1 order by lookup limit 1) s`
	sqlSecretColumns = `s.public_id, s.key_id, s.hash, s.pepper, s.last4, s.imported, s.created_at, s.created_by, s.expires_at, s.last_used_at, s.last_source, s.last_agent`
	sqlKeySecrets    = `select ` + sqlSecretColumns + ` from key_secrets s join keys k on k.id = s.key_id where k.account = $1 and s.key_id = $2
		order by s.created_at desc, s.public_id limit $3`
	// sqlSecretsReplace makes all secrets of a key replaced ones, which work no longer than they would have.
	sqlSecretsReplace = `update key_secrets set replaced = true, lookup = case when replaced then lookup else $4 end, account = $1,
		expires_at = case when expires_at = 0 or expires_at > $2 then $2 else expires_at end where key_id = $3`

	sqlOriginInsert = `insert into key_origins (origin, key_id) values ($1, $2) on conflict (origin, key_id) do nothing`
	sqlOriginsClear = `delete from key_origins where key_id = $1`
	sqlOriginKnown  = `select 1 from key_origins o join keys k on k.id = o.key_id
		where o.origin = $1 and k.revoked_at = 0 and k.disabled_at = 0 and (k.expires_at = 0 or k.expires_at > $2) limit 1`
)

// CreateKey adds a key, which has used no run yet whatever k says, with its first secret. It is CodeConflict when a key or secret with that id exists.
func (s *Store) CreateKey(ctx context.Context, k auth.Key, ev core.AuditEvent) error {
	secret := k.Secret()
	d, err := encodeKey(&k)
	if err != nil {
		return fmt.Errorf("create key: %w", err)
	}
	return s.write(ctx, &change{name: "create key", lane: control}, func(t *tx) error {
		if err := secretFree(t, &secret); err != nil {
			return err
		}
		var taken int64
		if err := t.row(sqlKeyTaken, k.ID).Scan(&taken); err != nil {
			return err
		}
		if taken > 0 {
			return core.Errorf(core.CodeConflict, "a key with this id exists already")
		}
		if err := t.put(sqlKeyInsert, k.ID, k.Account, string(k.Type), k.PublicID, k.Hash, k.Pepper, k.Last4, k.Imported, k.Name, k.Description, d.scopes, k.AllowQuery, d.ips,
			d.origins, d.metadata, k.MaxRuns, 0, 0, d.refill, micros(k.RefillAt), d.limits, "", k.MaxConcurrent, micros(k.CreatedAt), k.CreatedBy,
			micros(k.UpdatedAt), micros(k.ExpiresAt), micros(k.DisabledAt), k.DisabledBy, k.DisabledWhy, micros(k.RevokedAt), k.RevokedBy, k.RevokedWhy,
			micros(k.LastUsedAt), max(k.Revision, 1), k.Limited(), keyNumber(k.PublicID)); err != nil {
			return err
		}
		if err := addSecret(t, k.ID, &secret); err != nil {
			return err
		}
		for _, origin := range k.AllowedOrigins {
			if err := t.put(sqlOriginInsert, origin, k.ID); err != nil {
				return err
			}
		}
		return t.audit(ev)
	})
}

// secretFree refuses a secret that would not be found, because another one would be.
func secretFree(t *tx, secret *auth.KeySecret) error {
	var same, alike int64
	if err := t.row(sqlSecretTaken, secret.PublicID, keyNumber(secret.PublicID)).Scan(&same, &alike); err != nil {
		return err
	}
	switch {
	case same > 0 && secret.Imported:
		return core.Errorf(core.CodeConflict, "a key with this secret exists already")
	case same > 0:
		return core.Errorf(core.CodeConflict, "a key with this id exists already")
	case alike > 0 && secret.Imported:
		return core.Errorf(core.CodeConflict, "by chance, this secret would be looked up in the place of another key's; give its holder a new key")
	case alike > 0:
		return core.Errorf(core.CodeConflict, "by chance, this key would be looked up in the place of another one; try again")
	}
	return nil
}

func addSecret(t *tx, keyID string, secret *auth.KeySecret) error {
	return t.put(sqlSecretInsert, secret.PublicID, keyID, secret.Hash, secret.Pepper, secret.Last4, secret.Imported, micros(secret.CreatedAt), secret.CreatedBy,
		micros(secret.ExpiresAt))
}

// KeyBySecret looks for the secret with the public id: see [auth.KeyReader]. It is the one look-up without an account: which account it is, is what the key says.
func (s *Store) KeyBySecret(ctx context.Context, publicID string, proved func(*auth.FoundSecret) bool) (*auth.Key, error) {
	if s.quick == nil {
		return s.keyByRow(ctx, publicID, proved)
	}
	if ctx.Err() != nil {
		return nil, ended(ctx)
	}
	k, err := s.keyBySteps(publicID, proved)
	return k, foundKey(err)
}

// keyBySteps reads nothing before the proof that differs in size from key to key, and what it reads after it is of the same state of the database.
func (s *Store) keyBySteps(publicID string, proved func(*auth.FoundSecret) bool) (*auth.Key, error) {
	c, err := s.quick.take()
	if err != nil {
		return nil, err
	}
	defer s.quick.put(c)
	number := keyNumber(publicID)
	row, err := c.stand(sqlProof, []any{number - 1})
	if err != nil {
		return nil, err
	}
	defer row.reset()
	// Which of the two it is, if one of them, should not be known by the time that takes: there is no branch.
	var replacedID string
	if err := row.column(0, &replacedID); err != nil {
		return nil, err
	}
	replaced := subtle.ConstantTimeCompare([]byte(replacedID), []byte(publicID))
	var (
		found   auth.FoundSecret
		expires int64
	)
	if err := row.read([2]int{proofColumns, 0}[replaced], &found.PublicID, &found.KeyID, &found.Account, &found.Hash, &found.Pepper, &expires); err != nil {
		return nil, err
	}
	found.ExpiresAt = fromMicros(expires)
	if !proved(&found) {
		return nil, nil
	}
	if replaced == 1 {
		return readKey(c, sqlKey, []any{found.Account, found.KeyID}, (*rawKey).dest)
	}
	k, err := readKey(c, sqlKeyRest, []any{number}, (*rawKey).rest)
	if err == nil {
		k.PublicID, k.ID, k.Account, k.Hash, k.Pepper = found.PublicID, found.KeyID, found.Account, found.Hash, found.Pepper
	}
	return k, err
}

// proofColumns is how many columns of sqlProof there are of either secret.
const proofColumns = 6

func readKey(c *liteConn, query string, args []any, dest func(*rawKey) []any) (*auth.Key, error) {
	row, err := c.stand(query, args)
	if err != nil {
		return nil, err
	}
	defer row.reset()
	var key rawKey
	if err := row.read(0, dest(&key)...); err != nil {
		return nil, err
	}
	return key.decode()
}

// keyByRow reads everything at once.
func (s *Store) keyByRow(ctx context.Context, publicID string, proved func(*auth.FoundSecret) bool) (*auth.Key, error) {
	var (
		found   auth.FoundSecret
		expires int64
		key     rawKey
	)
	dest := append([]any{&found.PublicID, &found.KeyID, &found.Account, &found.Hash, &found.Pepper, &expires}, key.dest()...)
	if err := s.row(ctx, sqlProofAndKey, keyNumber(publicID)-1).Scan(dest...); err != nil {
		return nil, foundKey(err)
	}
	found.ExpiresAt = fromMicros(expires)
	k := &key.key
	present := auth.FoundSecret{PublicID: k.PublicID, KeyID: k.ID, Account: k.Account, Hash: k.Hash, Pepper: k.Pepper}
	replaced := subtle.ConstantTimeCompare([]byte(found.PublicID), []byte(publicID))
	found = [2]auth.FoundSecret{present, found}[replaced]
	switch {
	case !proved(&found):
		return nil, nil
	case replaced == 1:
		return s.Key(ctx, found.Account, found.KeyID)
	}
	return key.decode()
}

// Key returns a key of the account, CodeNotFound when there is none with that id.
func (s *Store) Key(ctx context.Context, account, id string) (*auth.Key, error) {
	k, err := scanKey(s.row(ctx, sqlKey, account, id))
	if err != nil {
		return nil, foundKey(err)
	}
	return &k, nil
}

func foundKey(err error) error { return found(err, "key") }

// maxSecrets bounds how many secrets of one key are read: the newest, and those that were rotated out last.
const maxSecrets = 50

// KeySecrets returns a key's secrets, the newest first, the last 50 at most. A key that the account does not have has none.
func (s *Store) KeySecrets(ctx context.Context, account, id string) ([]auth.KeySecret, error) {
	return all(ctx, s, "list secrets of key", func(row scanner) (k auth.KeySecret, err error) {
		var created, expires, used int64
		err = row.Scan(&k.PublicID, &k.KeyID, &k.Hash, &k.Pepper, &k.Last4, &k.Imported, &created, &k.CreatedBy, &expires, &used, &k.LastSource, &k.LastAgent)
		k.CreatedAt, k.ExpiresAt, k.LastUsedAt = fromMicros(created), fromMicros(expires), fromMicros(used)
		return k, err
	}, sqlKeySecrets, account, id, maxSecrets)
}

// Keys returns a page of the account's keys, newest first.
func (s *Store) Keys(ctx context.Context, account string, p core.Page) (core.List[auth.Key], error) {
	return read(ctx, s, listing[auth.Key]{
		name: "keys", account: account,
		columns: sqlKeys, where: "account = $1", args: []any{account},
		key: "id", keyOf: func(k *auth.Key) string { return k.ID },
		scan: scanKey,
	}, p)
}

// UpdateKey changes a key. edit is given the key as it is in the transaction and edits it, or refuses with a *core.Error; it may run more than once. Ids,
// the account, counters, the state of rate limits and who made or revoked the key are not changed by it. With a secret the key gets that text, and those it had
// work until overlapEnd at most. Revision goes up by one, and an admission that was prepared before is not made.
//
// When edit returns core.ErrUnchanged, nothing is written. CodeNotFound when the account has no such key. essential changes make
// things safer, and are written even to a full disk.
func (s *Store) UpdateKey(ctx context.Context, account, id string, essential bool, edit func(*auth.Key) (*auth.KeySecret, time.Time, error), ev core.AuditEvent) (*auth.Key, error) {
	var k auth.Key
	err := s.write(ctx, &change{name: "update key", lane: control, essential: essential}, func(t *tx) (err error) {
		if k, err = scanKey(t.row(sqlKey, account, id)); err != nil {
			return notFound(err, "key")
		}
		before := k
		secret, overlapEnd, err := edit(&k)
		if errors.Is(err, core.ErrUnchanged) {
			return nil
		}
		if err != nil {
			return err
		}
		k.RunsUsed, k.Revision = before.RunsUsed, before.Revision+1
		k.RateState = keptRates(before.RateLimits, k.RateLimits, before.RateState)
		if secret != nil {
			if err := secretFree(t, secret); err != nil {
				return err
			}
			k.PublicID, k.Hash, k.Pepper, k.Last4, k.Imported = secret.PublicID, secret.Hash, secret.Pepper, secret.Last4, secret.Imported
		}
		d, err := encodeKey(&k)
		if err != nil {
			return err
		}
		if err := t.put(sqlKeyUpdate, k.Name, k.Description, d.scopes, k.AllowQuery, d.ips, d.origins, d.metadata,
			k.MaxRuns, k.Credited, d.refill, micros(k.RefillAt), d.limits, d.state, k.MaxConcurrent, micros(k.UpdatedAt), micros(k.ExpiresAt),
			micros(k.DisabledAt), k.DisabledBy, k.DisabledWhy, k.Limited(), account, id); err != nil {
			return err
		}
		if secret != nil {
			if err := t.put(sqlKeyReplace, keyNumber(k.PublicID), k.PublicID, k.Hash, k.Pepper, k.Last4, k.Imported, account, id); err != nil {
				return err
			}
			if err := t.put(sqlSecretsReplace, account, micros(overlapEnd), id, keyNumber(before.PublicID)); err != nil {
				return err
			}
			if err := addSecret(t, id, secret); err != nil {
				return err
			}
		}
		if d.origins != "" || len(before.AllowedOrigins) > 0 {
			if err := t.put(sqlOriginsClear, id); err != nil {
				return err
			}
			for _, origin := range k.AllowedOrigins {
				if err := t.put(sqlOriginInsert, origin, id); err != nil {
					return err
				}
			}
		}
		return t.audit(ev)
	})
	if err != nil {
		return nil, err
	}
	return &k, nil
}

// keptRates returns the state of the limits that stay as they are. One that is new or altered starts full.
func keptRates(before, after []core.RateLimit, state map[string]int64) map[string]int64 {
	kept := make(map[string]int64)
	for _, limit := range after {
		for _, old := range before {
			if at, ok := state[limit.Name]; ok && old == limit {
				kept[limit.Name] = at
			}
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// RevokeKey revokes a key at ev.Time in the name of ev.Actor and returns it. From its return on, no admission with the key
// succeeds. A key that is revoked already is returned unchanged, and nothing is written. CodeNotFound when the account has no such key.
func (s *Store) RevokeKey(ctx context.Context, account, id, why string, ev core.AuditEvent) (*auth.Key, error) {
	var k auth.Key
	err := s.write(ctx, &change{name: "revoke key", lane: control, essential: true}, func(t *tx) (err error) {
		if k, err = scanKey(t.row(sqlKey, account, id)); err != nil {
			return notFound(err, "key")
		}
		if !k.RevokedAt.IsZero() {
			return nil
		}
		k.RevokedAt, k.RevokedBy, k.RevokedWhy = fromMicros(micros(ev.Time)), ev.Actor, why
		k.UpdatedAt, k.Revision = k.RevokedAt, k.Revision+1
		if err := t.put(sqlKeyRevoke, micros(ev.Time), ev.Actor, why, account, id); err != nil {
			return err
		}
		return t.audit(ev)
	})
	if err != nil {
		return nil, err
	}
	return &k, nil
}

// TouchKeys records when keys, by id, were last used. A time older than the recorded one changes nothing, and an id that does
// not exist is passed over. Admissions record the use of their key themselves.
func (s *Store) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	if len(used) == 0 {
		return nil
	}
	return s.write(ctx, &change{name: "touch keys", lane: intake, size: int64(len(used)) * 64}, func(t *tx) error {
		for id, at := range used {
			if err := t.put(sqlKeyTouch, micros(at), id); err != nil {
				return err
			}
		}
		return nil
	})
}

// OriginAllowed reports whether some key that can be used at the time now may be used by pages of the origin.
func (s *Store) OriginAllowed(ctx context.Context, origin string, now time.Time) (bool, error) {
	var one int64
	err := s.row(ctx, sqlOriginKnown, origin, micros(now)).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil, unavailable("look for an origin", err)
}

// keyDocuments are the parts of a key that are kept as JSON. "" stands for none.
type keyDocuments struct{ scopes, ips, origins, metadata, refill, limits, state string }

func encodeKey(k *auth.Key) (d keyDocuments, err error) {
	put := func(to *string, absent bool, v any) {
		if absent || err != nil {
			return
		}
		*to, err = encode(v)
	}
	put(&d.scopes, false, k.Scopes)
	put(&d.ips, len(k.AllowedIPs) == 0, k.AllowedIPs)
	put(&d.origins, len(k.AllowedOrigins) == 0, k.AllowedOrigins)
	put(&d.metadata, len(k.Metadata) == 0, k.Metadata)
	put(&d.refill, k.Refill == nil, k.Refill)
	put(&d.limits, len(k.RateLimits) == 0, k.RateLimits)
	put(&d.state, len(k.RateState) == 0, k.RateState)
	return d, err
}

// rawKey is a key as its row has it.
type rawKey struct {
	key                                                              auth.Key
	scopes, ips, origins, metadata, refill, limits, state            string
	refillAt, created, updated, expires, disabled, revoked, lastUsed int64
}

// dest returns where the columns of a key go.
func (r *rawKey) dest() []any {
	k := &r.key
	return append([]any{&k.PublicID, &k.ID, &k.Account, &k.Hash, &k.Pepper}, r.rest()...)
}

// rest returns where the columns go that do not prove a key.
func (r *rawKey) rest() []any {
	k := &r.key
	return []any{
		(*string)(&k.Type), &k.Last4, &k.Imported, &k.Name, &k.Description, &r.scopes, &k.AllowQuery, &r.ips, &r.origins, &r.metadata, &k.MaxRuns, &k.RunsUsed,
		&k.Credited, &r.refill, &r.refillAt, &r.limits, &r.state, &k.MaxConcurrent, &r.created, &k.CreatedBy, &r.updated, &r.expires, &r.disabled,
		&k.DisabledBy, &k.DisabledWhy, &r.revoked, &k.RevokedBy, &k.RevokedWhy, &r.lastUsed, &k.Revision,
	}
}

// decode returns the key, which stays a part of r.
func (r *rawKey) decode() (*auth.Key, error) {
	k := &r.key
	for _, d := range []struct {
		from string
		to   any
	}{{r.scopes, &k.Scopes}, {r.ips, &k.AllowedIPs}, {r.origins, &k.AllowedOrigins}, {r.metadata, &k.Metadata}, {r.limits, &k.RateLimits}, {r.state, &k.RateState}} {
		if len(d.from) == 0 {
			continue
		}
		if err := json.Unmarshal([]byte(d.from), d.to); err != nil {
			return nil, fmt.Errorf("row of key %s: %w", k.ID, err)
		}
	}
	if len(r.refill) > 0 {
		k.Refill = &core.Refill{}
		if err := json.Unmarshal([]byte(r.refill), k.Refill); err != nil {
			return nil, fmt.Errorf("row of key %s: %w", k.ID, err)
		}
	}
	k.RefillAt = fromMicros(r.refillAt)
	k.CreatedAt, k.UpdatedAt, k.ExpiresAt, k.DisabledAt = fromMicros(r.created), fromMicros(r.updated), fromMicros(r.expires), fromMicros(r.disabled)
	k.RevokedAt, k.LastUsedAt = fromMicros(r.revoked), fromMicros(r.lastUsed)
	return k, nil
}

func scanKey(row scanner) (auth.Key, error) {
	var r rawKey
	if err := row.Scan(r.dest()...); err != nil {
		return auth.Key{}, err
	}
	k, err := r.decode()
	if err != nil {
		return auth.Key{}, err
	}
	return *k, nil
}

// notFound makes the refusal of an operation on something that does not exist. Within a transaction other errors stay as they
// are: the writer classifies them.
func notFound(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return found(err, what)
	}
	return err
}
