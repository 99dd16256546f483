package store

import (
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite writes each page of a transaction to the WAL by two calls of the operating system, one for the frame's 24 bytes and one for the page, and syncs the file after
// the last. Nothing reads a frame before that, except its own connection; so what is written is gathered, and written in one piece before whatever would notice
// the difference. This rests on synchronous=FULL: others are told of a transaction only after a sync.

// gatheredMost is how much is gathered: some thirty pages, as many as a batch of the writer changes.
const gatheredMost = 128 << 10

// gathered is what was written to a WAL and is not in the file yet.
type gathered struct {
	buffer uintptr // of gatheredMost bytes, 0 until something is written
	n      int64   // bytes in it
	at     int64   // where in the file they belong
}

// gather has the functions for a WAL gather what is written.
func gather(m *sqlite3.Tsqlite3_io_methods) {
	m.FxWrite, m.FxRead, m.FxSync = function(gatheredWrite), function(gatheredRead), function(gatheredSync)
	m.FxTruncate, m.FxFileSize, m.FxClose = function(gatheredTruncate), function(gatheredSize), function(gatheredClose)
}

// flush writes what was gathered. When that fails it is forgotten, as SQLite forgets a transaction of which a write has failed.
func flush(tls *libc.TLS, file uintptr) int32 {
	g := &stateOf(file).gathered
	n := g.n
	if g.n = 0; n == 0 {
		return sqlite3.SQLITE_OK
	}
	return call[transferFunc](methods(file).FxWrite)(tls, file, g.buffer, int32(n), g.at)
}

func gatheredWrite(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32 {
	g := &stateOf(file).gathered
	if g.buffer == 0 {
		g.buffer = sqlite3.Xsqlite3_malloc(tls, gatheredMost)
	}
	if offset != g.at+g.n || g.n+int64(n) > gatheredMost {
		if rc := flush(tls, file); rc != sqlite3.SQLITE_OK {
			return rc
		}
		g.at = offset
	}
	if g.buffer == 0 || n > gatheredMost {
		return call[transferFunc](methods(file).FxWrite)(tls, file, buf, n, offset)
	}
	copy(at[[gatheredMost]byte](g.buffer)[g.n:], unsafe.Slice(at[byte](buf), n))
	g.n += int64(n)
	return sqlite3.SQLITE_OK
}

func gatheredRead(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32 {
	if rc := flush(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return call[transferFunc](methods(file).FxRead)(tls, file, buf, n, offset)
}

func gatheredSync(tls *libc.TLS, file uintptr, flags int32) int32 {
	if rc := flush(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return call[syncFunc](methods(file).FxSync)(tls, file, flags)
}

func gatheredTruncate(tls *libc.TLS, file uintptr, size int64) int32 {
	if rc := flush(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return call[truncateFunc](methods(file).FxTruncate)(tls, file, size)
}

func gatheredSize(tls *libc.TLS, file, size uintptr) int32 {
	if rc := flush(tls, file); rc != sqlite3.SQLITE_OK {
		return rc
	}
	return call[sizeFunc](methods(file).FxFileSize)(tls, file, size)
}

// gatheredClose forgets what was not synced: no transaction ended with it.
func gatheredClose(tls *libc.TLS, file uintptr) int32 {
	sqlite3.Xsqlite3_free(tls, stateOf(file).buffer)
	return call[closeFunc](methods(file).FxClose)(tls, file)
}
