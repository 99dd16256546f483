package plugins

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Report is what Check found out about a plugin.
type Report struct {
	SHA256  string        // of the executable at Path
	Version string        // as it reports it
	Start   time.Duration // from start to handshake
	Output  []LogLine     // what it wrote meanwhile
}

// Check tries a plugin's configuration out: it verifies the executable, starts it, has it judge its configuration without acting on it,
// and stops it. An error says what is wrong and what would be right; the report is filled as far as Check got.
func Check(ctx context.Context, p Plugin) (report Report, err error) {
	if err := p.Validate(); err != nil {
		// The digest of the file is what an operator who has none yet is looking for.
		report.SHA256, _ = Digest(p.Path)
		return report, err
	}
	p = p.withDefaults()
	dir, err := os.MkdirTemp(ShortTempDir(), "keyfire-check-")
	if err != nil {
		return report, fmt.Errorf("check plugin: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if p.User != nil {
		if err := os.Chmod(dir, 0o711); err != nil { // #nosec G302 -- the plugin passes through to its own socket
			return report, fmt.Errorf("check plugin: %w", err)
		}
	}
	b, err := pin(p.Path, p.SHA256, dir)
	if err != nil {
		report.SHA256, _ = Digest(p.Path)
		return report, fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	defer b.close()
	report.SHA256 = b.digest
	f := newForker()
	defer f.close()
	out := newOutput(slog.New(slog.DiscardHandler), time.Now)
	defer func() { report.Output = out.kept() }()

	ctx, cancel := context.WithTimeoutCause(ctx, p.StartTimeout, fmt.Errorf("not ready after %s", p.StartTimeout))
	defer cancel()
	began := time.Now()
	inst, err := (&launcher{dir: dir, forker: f, now: time.Now}).launch(ctx, p, b, out)
	if err != nil {
		return report, fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	defer inst.stop()
	report.Start, report.Version = time.Since(began), inst.version
	if err := inst.validate(ctx); err != nil {
		return report, fmt.Errorf("plugin %s: %w", p.Name, shorten(err))
	}
	return report, nil
}

// ShortTempDir returns the system's directory for temporary files, or /tmp if the path of that leaves no room for a socket.
func ShortTempDir() string {
	dir := os.TempDir()
	if room := len("/keyfire-check-0123456789"); len(dir)+room > MaxRuntimeDir {
		return "/tmp"
	}
	return dir
}

// Digest returns the SHA-256 of the file at path, as the configuration wants it.
func Digest(path string) (string, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() { // a pipe or a device may never end
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("digest: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// lockedReader lets several supervisors share a source of randomness.
type lockedReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lockedReader) Read(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.r.Read(b)
}
