package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// A secret is found by a number, which is a column "lookup" where a key or a replaced secret is: what leads to a number in SQLite is a tree of numbers alone, with the rows at its
// ends. Two secrets with one number are refused to the second, and whoever looks for a secret compares the whole id.

// keyNumber returns the number of a public id: 62 bits of its digest, and always even.
func keyNumber(publicID string) int64 {
	if publicID == "" {
		return lastNumber
	}
	sum := sha256.Sum256([]byte(publicID))
	return int64(binary.BigEndian.Uint64(sum[:]) >> 2 << 1)
}

// lastNumber is that of the secret without an id, so that there is one from every number on.
const lastNumber = math.MaxInt64 - 1

// numbersVersion is the migration that brings the numbers. PostgreSQL makes them by itself; SQLite has no digest, and finds them in two tables.
const numbersVersion = 11

const (
	sqlNumbersTables = `
		create temp table key_numbers (lookup integer not null primary key, place integer not null);
		create temp table secret_numbers (place integer not null primary key, lookup integer not null)`
	sqlNumbersOfKeys    = `select rowid, public_id from keys where rowid > $1 order by rowid limit $2`
	sqlNumbersOfSecrets = `select rowid, public_id from key_secrets where replaced and rowid > $1 order by rowid limit $2`
	sqlKeyNumbers       = `insert into key_numbers (lookup, place) values `
	sqlSecretNumbers    = `insert into secret_numbers (lookup, place) values `
)

// makeNumbers fills the tables.
func makeNumbers(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, sqlNumbersTables); err != nil {
		return err
	}
	if err := numberAll(ctx, tx, sqlNumbersOfKeys, sqlKeyNumbers); err != nil {
		return err
	}
	return numberAll(ctx, tx, sqlNumbersOfSecrets, sqlSecretNumbers)
}

// numberAll numbers the ids that a query finds, some hundred at a time: what a statement costs beside its rows is most of what one row costs.
func numberAll(ctx context.Context, tx *sql.Tx, from, into string) error {
	const most = 500
	marks := make([]string, most)
	for i := range marks {
		marks[i] = fmt.Sprintf("($%d, $%d)", 2*i+1, 2*i+2)
	}
	read, err := tx.PrepareContext(ctx, from) // closed with the transaction
	if err != nil {
		return err
	}
	write, err := tx.PrepareContext(ctx, into+strings.Join(marks, ", "))
	if err != nil {
		return err
	}
	for last := int64(0); ; {
		var row []any
		if row, last, err = numbered(ctx, read, last, most); err != nil || len(row) == 0 {
			return err
		}
		if len(row) == 2*most {
			_, err = write.ExecContext(ctx, row...)
		} else {
			_, err = tx.ExecContext(ctx, into+strings.Join(marks[:len(row)/2], ", "), row...)
		}
		if err != nil {
			return err
		}
	}
}

// numbered returns the numbers and places of the next ids that a query finds, in turns, and the last of those places.
func numbered(ctx context.Context, read *sql.Stmt, after int64, most int) (row []any, last int64, err error) {
	rows, err := read.QueryContext(ctx, after, most)
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&last, &id); err != nil {
			return nil, 0, err
		}
		row = append(row, keyNumber(id), last)
	}
	return row, last, errors.Join(rows.Err(), rows.Close())
}
