package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// onFullDisk fills the disk of a server and starts it again. It still reads and revokes, stops in order, and is well once there is room again.
const onFullDisk = `
set -eu
size=$(($(du -sm "$FROM" | cut -f 1) + 40)) # how much is compiled in there depends on what else is tested
mount --make-rprivate / 2>/dev/null && mount -t tmpfs -o "size=${size}m,mode=0700" keyfire-test "$DISK" || exit 77
cp -R "$FROM" "$DISK/data"
export KEYFIRE_DATA="$DISK/data"
begin() {
	keyfire serve --listen 127.0.0.1:0 >"$OUT/ready" 2>>"$OUT/log" &
	until [ -s "$OUT/ready" ]; do kill -0 $! || { cat "$OUT/log"; exit 1; }; sleep 0.02; done
}
end() { kill -TERM $1; status=0; wait $1 || status=$?; echo "ended with $status"; : >"$OUT/ready"; }
: >"$OUT/ready"

begin
id=$(keyfire keys create --name ci --global --json 2>/dev/null | sed -n 's/.*"id": *"\(key_[a-z0-9]*\)".*/\1/p' | head -n 1)
cat /dev/zero >"$DISK/filler" 2>/dev/null || true
end $!

begin
keyfire keys revoke "$id" --reason "leaked" >/dev/null && echo "revoked"
end $!

begin
keyfire keys show "$id" | grep -o revoked | head -n 1
rm "$DISK/filler"
until keyfire keys create --name next --global >/dev/null 2>&1; do sleep 0.1; done
keyfire trigger echo -i n:=1 2>/dev/null
end $!
`

func TestStartOnFullDiskD4(t *testing.T) {
	t.Parallel()
	disk, out := t.TempDir(), t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", onFullDisk)
	cmd.Env = cleanEnv("DISK="+disk, "OUT="+out, "FROM="+filepath.Join(sharedDir(t), "data"))
	// A file system of its own needs a mount name space, and that needs a user name space or root.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	said, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || cmd.ProcessState != nil && cmd.ProcessState.ExitCode() == 77 {
		t.Skipf("NOT TESTED: a full disk. This process may not mount a file system (%v)", err)
	}
	want := "ended with 0\nrevoked\nended with 0\nrevoked\n{\n  \"n\": 1\n}\nended with 0\n"
	if err != nil || string(said) != want {
		log, _ := os.ReadFile(filepath.Join(out, "log"))
		t.Fatalf("%v\n%s\nwant\n%s\nlog\n%s", err, said, want, strings.TrimSpace(string(log)))
	}
}

// L1: a server whose terminal goes away stops as with SIGTERM.
func TestHangupL1(t *testing.T) {
	t.Parallel()
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("NOT TESTED: these tests run under nohup, and so would the server")
	}
	s := startServer(t)
	if err := s.signal(syscall.SIGHUP); err != nil || s.err != nil {
		t.Errorf("SIGHUP: %v, %v", err, s.err)
	}
	if _, err := os.Stat(filepath.Join(s.data, socketFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left, %v", err)
	}
}

// TestCompilerEndsFirst: where memory is short, as in a small container, the kernel ends the compiler and not the server that has asked for it.
func TestCompilerEndsFirst(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "keyfire", compileCommandName)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	request := fmt.Sprintf(`{"dir":%q,"size":8,"memory":1073741824,"cpu":60}`+"\n", t.TempDir())
	if _, err := io.WriteString(in, request); err != nil { // and waits for the module
		t.Fatal(err)
	}
	waitUntil(t, func() bool {
		score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid))
		return err == nil && string(score) == "1000\n"
	})
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // with an answer that the module is cut short
}
