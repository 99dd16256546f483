package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// SQLite notices damage to its own structures and none to what is stored in them: a byte of a run's output that a disk has changed is served as it
// is. So each page of a database file ends with a checksum, in space that the format reserves for such use, which is written with the page and
// compared when the page is read. (The frames of the WAL have SQLite's own.) SQLite calls the operating system through a table of functions; the two of
// reading and writing are replaced for the database file. A file from before there were checksums has no such space and is read as it is.

const (
	pageSize     = 4096
	pageSumSize  = 8
	pageSumMagic = 0x4b667331 // "Kfs1": an empty space is no checksum

	checkedVFS = "keyfire-checked"
)

// hasPageSums reports whether the pages of a database file have checksums.
func hasPageSums(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	first := make([]byte, pageSize)
	if _, err := io.ReadFull(f, first); err != nil {
		return false, nil
	}
	// Either will do, for one of them may be what is damaged.
	reserved := binary.BigEndian.Uint16(first[16:]) == pageSize && first[20] == pageSumSize
	a, b := binary.BigEndian.Uint32(first[pageSize-8:]), binary.BigEndian.Uint32(first[pageSize-4:])
	return reserved || b == a^pageSumMagic, nil
}

// unsoundPage returns the number of the first page of a database file that is not as it was written, counted from 1; 0 if there is none, or no checksums.
func unsoundPage(path string) int64 {
	sums, err := hasPageSums(path)
	if err != nil || !sums {
		return 0
	}
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	r, page := bufio.NewReaderSize(f, 1<<20), make([]byte, pageSize)
	for n := int64(0); ; n++ {
		if _, err := io.ReadFull(r, page); err != nil {
			return 0
		}
		if !pageSound(page, n*pageSize) {
			return n + 1
		}
	}
}

// makeDatabase makes an empty database whose pages have checksums at path, unless there is something.
func makeDatabase(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.Size() > 0 {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	page := make([]byte, pageSize)
	copy(page, "SQLite format 3\x00")
	binary.BigEndian.PutUint16(page[16:], pageSize)
	copy(page[18:], []byte{1, 1, pageSumSize, 64, 32, 32}) // versions of the format; fractions that never differ
	binary.BigEndian.PutUint32(page[24:], 1)               // changes
	binary.BigEndian.PutUint32(page[28:], 1)               // pages
	binary.BigEndian.PutUint32(page[44:], 4)               // version of the schema's format
	binary.BigEndian.PutUint32(page[56:], 1)               // UTF-8
	binary.BigEndian.PutUint32(page[92:], 1)               // changes when the next was written
	binary.BigEndian.PutUint32(page[96:], sqlite3.SQLITE_VERSION_NUMBER)
	page[100] = 13 // a leaf without cells
	binary.BigEndian.PutUint16(page[105:], pageSize-pageSumSize)
	sumPage(page, 0)
	part := path + ".new-part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(page)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(part, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// pageSum returns the checksum of a page at an offset of the file: one that lies in another's place has a wrong one.
func pageSum(page []byte, at int64) uint32 {
	var where [8]byte
	binary.BigEndian.PutUint64(where[:], uint64(at))
	return crc32.Update(crc32.Update(0, castagnoli, where[:]), castagnoli, page[:pageSize-pageSumSize])
}

// sumPage writes the checksum of a page.
func sumPage(page []byte, at int64) {
	sum := pageSum(page, at)
	binary.BigEndian.PutUint32(page[pageSize-8:], sum)
	binary.BigEndian.PutUint32(page[pageSize-4:], sum^pageSumMagic)
}

// pageSound reports whether a page is as it was written. A page of zeros is one that never was: SQLite passes over some, which it does not read anything from.
func pageSound(page []byte, at int64) bool {
	a, b := binary.BigEndian.Uint32(page[pageSize-8:]), binary.BigEndian.Uint32(page[pageSize-4:])
	if a == pageSum(page, at) && b == a^pageSumMagic {
		return true
	}
	for _, c := range page {
		if c != 0 {
			return false
		}
	}
	return true
}

// registerChecked makes the functions known to SQLite, under the name it returns, once in a process: SQLite's list of them is the process's.
var registerChecked = sync.OnceValues(func() (string, error) {
	tls := libc.NewTLS() // kept, as the functions are
	base := sqlite3.Xsqlite3_vfs_find(tls, 0)
	name, err := libc.CString(checkedVFS)
	if err != nil {
		return "", err
	}
	own := sqlite3.Xsqlite3_malloc(tls, int32(unsafe.Sizeof(sqlite3.Tsqlite3_vfs{})))
	if base == 0 || own == 0 {
		return "", errors.New("SQLite has no functions for files")
	}
	v := at[sqlite3.Tsqlite3_vfs](own)
	*v = *at[sqlite3.Tsqlite3_vfs](base)
	v.FszOsFile = (v.FszOsFile + 7) &^ 7
	checked.open, checked.base, checked.size = v.FxOpen, base, uintptr(v.FszOsFile)
	v.FszOsFile += int32(unsafe.Sizeof(fileState{}))
	v.FpNext, v.FzName, v.FxOpen = 0, name, function(checkedOpen)
	if rc := sqlite3.Xsqlite3_vfs_register(tls, own, 0); rc != sqlite3.SQLITE_OK {
		return "", fmt.Errorf("SQLite takes no functions for files: code %d", rc)
	}
	return checkedVFS, nil
})

// pageSumVFS returns the name of the functions that a database file is to be opened with: those that check its pages, if these have checksums, or "" for SQLite's own.
func pageSumVFS(path string) (string, error) {
	sums, err := hasPageSums(path)
	if err != nil || !sums {
		return "", err
	}
	return registerChecked()
}

// checked is what the functions have in common. It grows by one entry for each table of functions that SQLite has for files, of which there are a handful.
var checked struct {
	open, base uintptr // SQLite's own
	size       uintptr // of a file of SQLite's own

	mu     sync.Mutex
	tables map[fileTable]uintptr // ours
}

// fileTable names a table of functions for files: SQLite's own of which it is made, and whether it is for a WAL.
type fileTable struct {
	own uintptr
	wal bool
}

// fileState is what we keep of a file. It lies behind SQLite's own, in the memory that SQLite sets aside for a file.
type fileState struct {
	own uintptr // SQLite's functions
	gathered
}

func stateOf(file uintptr) *fileState { return at[fileState](file + checked.size) }

// at returns what lies at an address that SQLite gave us, which is none of Go's memory.
func at[T any](address uintptr) *T { return *(**T)(unsafe.Pointer(&address)) }

// function returns a function as SQLite calls it, and call turns such a one into a value of its type.
func function[F any](f F) uintptr { return *(*uintptr)(unsafe.Pointer(&f)) }

func call[F any](address uintptr) F { return *(*F)(unsafe.Pointer(&address)) }

type (
	openFunc     = func(tls *libc.TLS, vfs, name, file uintptr, flags int32, out uintptr) int32
	closeFunc    = func(tls *libc.TLS, file uintptr) int32
	transferFunc = func(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32
	truncateFunc = func(tls *libc.TLS, file uintptr, size int64) int32
	syncFunc     = func(tls *libc.TLS, file uintptr, flags int32) int32
	sizeFunc     = func(tls *libc.TLS, file, size uintptr) int32
)

// checkedOpen opens a file as SQLite does, and has the pages of a database file checked, and the frames of a WAL gathered.
func checkedOpen(tls *libc.TLS, _, name, file uintptr, flags int32, out uintptr) int32 {
	rc := call[openFunc](checked.open)(tls, checked.base, name, file, flags, out)
	wal := flags&sqlite3.SQLITE_OPEN_WAL != 0
	if rc != sqlite3.SQLITE_OK || flags&sqlite3.SQLITE_OPEN_MAIN_DB == 0 && !wal {
		return rc
	}
	f := at[sqlite3.Tsqlite3_file](file)
	checked.mu.Lock()
	defer checked.mu.Unlock()
	table := checked.tables[fileTable{f.FpMethods, wal}]
	if table == 0 {
		if table = sqlite3.Xsqlite3_malloc(tls, int32(unsafe.Sizeof(sqlite3.Tsqlite3_io_methods{}))); table == 0 {
			_ = call[closeFunc](at[sqlite3.Tsqlite3_io_methods](f.FpMethods).FxClose)(tls, file)
			f.FpMethods = 0 // it is not open
			return sqlite3.SQLITE_NOMEM
		}
		m := at[sqlite3.Tsqlite3_io_methods](table)
		*m = *at[sqlite3.Tsqlite3_io_methods](f.FpMethods)
		if wal {
			gather(m)
		} else {
			m.FxRead, m.FxWrite = function(checkedRead), function(checkedWrite)
		}
		if checked.tables == nil {
			checked.tables = map[fileTable]uintptr{}
		}
		checked.tables[fileTable{f.FpMethods, wal}] = table
	}
	*stateOf(file) = fileState{own: f.FpMethods}
	f.FpMethods = table
	return rc
}

// methods returns SQLite's own functions for a file.
func methods(file uintptr) *sqlite3.Tsqlite3_io_methods {
	return at[sqlite3.Tsqlite3_io_methods](stateOf(file).own)
}

func checkedRead(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32 {
	rc := call[transferFunc](methods(file).FxRead)(tls, file, buf, n, offset)
	if rc == sqlite3.SQLITE_OK && n == pageSize && offset%pageSize == 0 && !pageSound(at[[pageSize]byte](buf)[:], offset) {
		return sqlite3.SQLITE_CORRUPT
	}
	return rc
}

func checkedWrite(tls *libc.TLS, file, buf uintptr, n int32, offset int64) int32 {
	if n == pageSize && offset%pageSize == 0 {
		sumPage(at[[pageSize]byte](buf)[:], offset)
	}
	return call[transferFunc](methods(file).FxWrite)(tls, file, buf, n, offset)
}
