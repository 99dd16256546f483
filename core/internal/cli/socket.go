package cli

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
)

// maxSocketPath is what fits into a socket address on every system, with the final zero.
const maxSocketPath = 100

// socketAlias returns a short path to name in dir, since a socket address holds about a hundred bytes and a data directory may be
// anywhere. It is valid until release is called. Only Linux can be asked for one; elsewhere the system's own error has to do.
func socketAlias(dir, name string) (path string, release func(), err error) {
	path = filepath.Join(dir, name)
	if len(path) <= maxSocketPath || runtime.GOOS != "linux" {
		return path, func() {}, nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return filepath.Join("/proc/self/fd", strconv.FormatUint(uint64(f.Fd()), 10), name), func() { f.Close() }, nil
}

func listenUnix(dir, name string) (net.Listener, error) {
	path, release, err := socketAlias(dir, name)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // the alias is gone by then
	return l, nil
}

func dialUnix(ctx context.Context, dir, name string) (net.Conn, error) {
	path, release, err := socketAlias(dir, name)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}
