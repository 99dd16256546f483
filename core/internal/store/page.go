package store

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// A cursor is the position after which the next page starts, sealed together with the list it belongs to. The seal makes a
// cursor that was altered, or that belongs to another account or list, indistinguishable from one that was made up.

const (
	sealKeySize = 32
	sealSize    = 12
	maxCursor   = 512 // characters
)

type cursorSeal struct{ key []byte }

const (
	sqlSealRead  = `select value from settings where name = 'cursor_key'`
	sqlSealWrite = `insert into settings (name, value) values ('cursor_key', $1) on conflict (name) do nothing`
)

// loadCursorSeal reads the key that seals cursors, making it the first time. It lives in the database, so cursors
// outlive a restart and work on every server.
func (s *Store) loadCursorSeal(ctx context.Context) (cursorSeal, error) {
	fresh := make([]byte, sealKeySize)
	if _, err := io.ReadFull(s.cfg.Random, fresh); err != nil {
		return cursorSeal{}, fmt.Errorf("make the cursor key: %w", err)
	}
	var key []byte
	err := s.row(ctx, sqlSealRead).Scan(&key)
	if errors.Is(err, sql.ErrNoRows) {
		err = s.write(ctx, &change{name: "make the cursor key", lane: control}, func(t *tx) error {
			if err := t.put(sqlSealWrite, fresh); err != nil {
				return err
			}
			return t.row(sqlSealRead).Scan(&key)
		})
	}
	if err != nil {
		return cursorSeal{}, fmt.Errorf("read the cursor key: %w", err)
	}
	return cursorSeal{key}, nil
}

// ID returns a name of the database, of letters and digits: the same on every server that uses it, another one for every other.
func (s *Store) ID() string {
	mac := hmac.New(sha256.New, s.seal.key)
	mac.Write([]byte("keyfire database id"))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

func (s cursorSeal) sum(list, account, position string) []byte {
	mac := hmac.New(sha256.New, s.key)
	// Lengths keep one list's name and account from running into each other.
	fmt.Fprintf(mac, "%d:%s%d:%s%s", len(list), list, len(account), account, position)
	return mac.Sum(nil)[:sealSize]
}

func (s cursorSeal) encode(list, account, position string) string {
	return base64.RawURLEncoding.EncodeToString(append(s.sum(list, account, position), position...))
}

func (s cursorSeal) decode(list, account, cursor string) (string, error) {
	invalid := core.Errorf(core.CodeInvalidRequest, "the cursor is not one that this list returned; start again without it")
	if len(cursor) > maxCursor || strings.ContainsAny(cursor, "\r\n") { // which the decoder would skip
		return "", invalid
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(b) <= sealSize {
		return "", invalid
	}
	position := string(b[sealSize:])
	if subtle.ConstantTimeCompare(b[:sealSize], s.sum(list, account, position)) != 1 {
		return "", invalid
	}
	return position, nil
}

// listing is one page being read, newest first, by a key that never changes.
type listing[T any] struct {
	name    string // of the list, for the seal
	account string
	columns string // what is selected, and from where
	where   string // conditions over args, that of the account among them
	args    []any
	key     string // column that the list is ordered by, downwards
	scan    func(scanner) (T, error)
	keyOf   func(*T) string
	numeric bool // the key is a number, not text
}

// query returns the SQL of a page and its arguments. One more row than asked for is read, to know whether there is a next page.
func (l *listing[T]) query(seal cursorSeal, limit int, cursor string) (string, []any, error) {
	query, args := l.columns+" where "+l.where, slices.Clip(l.args)
	if cursor != "" {
		position, err := seal.decode(l.name, l.account, cursor)
		if err != nil {
			return "", nil, err
		}
		after := any(position)
		if l.numeric {
			if after, err = strconv.ParseInt(position, 10, 64); err != nil {
				return "", nil, fmt.Errorf("sealed cursor: %w", err)
			}
		}
		args = append(args, after)
		query += fmt.Sprintf(" and %s < $%d", l.key, len(args))
	}
	args = append(args, limit+1)
	return query + fmt.Sprintf(" order by %s desc limit $%d", l.key, len(args)), args, nil
}

// read returns a page of a list.
func read[T any](ctx context.Context, s *Store, l listing[T], p core.Page) (core.List[T], error) {
	var none core.List[T]
	limit := orDefault(p.Limit, core.DefaultPage)
	if limit < 1 || limit > core.MaxPage {
		return none, core.Errorf(core.CodeInvalidRequest, "limit must be from 1 to %d", core.MaxPage)
	}
	query, args, err := l.query(s.seal, limit, p.Cursor)
	if err != nil {
		return none, err
	}
	if !findable(args) {
		return core.List[T]{Items: []T{}}, nil // a filter that nothing stored can match
	}
	rows, err := s.bulk.QueryContext(s.listing(ctx), query, args...)
	if err != nil {
		return none, unavailable("list "+l.name, err)
	}
	defer rows.Close()
	list := core.List[T]{Items: make([]T, 0, min(limit, 16))}
	for rows.Next() {
		if len(list.Items) == limit {
			list.Next = s.seal.encode(l.name, l.account, l.keyOf(&list.Items[limit-1]))
			break
		}
		item, err := l.scan(rows)
		if err != nil {
			return none, unavailable("list "+l.name, err)
		}
		list.Items = append(list.Items, item)
	}
	if err := rows.Err(); err != nil {
		return none, unavailable("list "+l.name, err)
	}
	return list, nil
}

// all returns every row of a query that is bounded by itself. doing says in errors what it is for.
func all[T any](ctx context.Context, s *Store, doing string, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	if !findable(args) {
		return nil, nil // as in read
	}
	rows, err := s.bulk.QueryContext(s.listing(ctx), query, args...) //nolint:rowserrcheck // scanAll does
	if err != nil {
		return nil, unavailable(doing, err)
	}
	list, err := scanAll(rows, scan)
	return list, unavailable(doing, err)
}

// scanAll reads all rows and closes them.
func scanAll[T any](rows rows, scan func(scanner) (T, error)) ([]T, error) {
	defer rows.Close() //nolint:errcheck // only read
	var list []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return list, rows.Err()
}

// rowsOf returns all rows of a query that is run in a transaction.
func rowsOf[T any](t *tx, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := t.query(query, args...)
	if err != nil {
		return nil, err
	}
	return scanAll(rows, scan)
}

// scanText reads a row of one text, such as an id.
func scanText(row scanner) (text string, err error) {
	err = row.Scan(&text)
	return text, err
}

// where collects the conditions of a filtered list. Names of columns are constants; values are always arguments.
type where struct {
	sql  string
	args []any
}

// add appends a condition that ends where its argument goes.
func (w *where) add(condition string, arg any) {
	if w.sql != "" {
		w.sql += " and "
	}
	w.args = append(w.args, arg)
	w.sql += fmt.Sprintf("%s$%d", condition, len(w.args))
}

func (w *where) equal(column, value string) { w.add(column+" = ", value) }

// equalIf filters unless value is "".
func (w *where) equalIf(column, value string) {
	if value != "" {
		w.equal(column, value)
	}
}
