// Command faulty is the auth plugin of the host's tests: it does what a credential says, "<prefix>_<fault>", and everything a plugin must not do. It is
// built by the tests as plugins are shipped, so that what they measure is not the race detector.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

func main() {
	if os.Getenv(authv1.CookieKey) != "" {
		misstart(os.Getenv("FAULT"))
		misstart(nextStart())
	}
	authplugin.Serve(&faulty{})
}

// nextStart returns the fault that an earlier process left for this one, in the directory FAULT_DIR.
func nextStart() string {
	note := filepath.Join(os.Getenv("FAULT_DIR"), "next")
	fault, err := os.ReadFile(note)
	if err != nil || os.Remove(note) != nil {
		return ""
	}
	return string(fault)
}

// misstart never returns for a FAULT it knows.
func misstart(fault string) {
	switch fault {
	case "":
		return
	case "exit 0":
		os.Exit(0)
	case "hang":
		time.Sleep(time.Hour)
	case "panic":
		panic("at start")
	case "garbage":
		fmt.Println("\x1b[31mhello, world|\xff\xfe")
	case "long garbage":
		fmt.Println(strings.Repeat("A", 1<<20))
	case "wrong version":
		fmt.Println("1|99|unix|/nowhere|grpc|")
	case "wrong core version":
		fmt.Println("2|1|unix|/nowhere|grpc|")
	case "netrpc":
		fmt.Println("1|1|unix|" + os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/s|netrpc|")
	case "tcp":
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc|")
	case "foreign socket":
		fmt.Println("1|1|unix|/tmp/somebody-elses.sock|grpc|")
	case "no certificate":
		fmt.Println("1|1|unix|" + os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/s|grpc|")
	}
	time.Sleep(time.Hour)
}

// faulty does what the credential says.
type faulty struct {
	mu     sync.Mutex
	config struct {
		Account string   `json:"account"`
		Scopes  []string `json:"scopes"`
		Label   string   `json:"label"`
		Fail    string   `json:"fail"`
	}
}

func (f *faulty) Version() string { return "1.2.3" }

func (f *faulty) Validate(config []byte) error {
	var c struct {
		Account, Label, Fail string
		Scopes               []string
	}
	if err := authplugin.DecodeConfig(config, &c); err != nil {
		return err
	}
	if c.Fail != "" {
		return errors.Join(errors.New("first problem"), errors.New(c.Fail))
	}
	return nil
}

func (f *faulty) Configure(_ context.Context, config []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Validate(config); err != nil {
		return err
	}
	return json.Unmarshal(config, &f.config)
}

func (f *faulty) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	f.mu.Lock()
	p := &authplugin.Principal{Subject: "alice", Account: f.config.Account, Scopes: f.config.Scopes, Attributes: map[string]string{"label": f.config.Label}}
	f.mu.Unlock()
	_, fault, _ := strings.Cut(r.Credential, "_")
	if start, ok := strings.CutPrefix(fault, "start "); ok { // the process after this one fails that way
		if err := os.WriteFile(filepath.Join(os.Getenv("FAULT_DIR"), "next"), []byte(start), 0o600); err != nil {
			return nil, err
		}
		fault = "kill"
	}
	switch fault {
	case "ok":
	case "see": // tells everything it was shown
		p.Attributes = map[string]string{
			"scheme": r.Scheme, "source": r.Source.String(), "method": r.Method, "path": r.Path, "workflow": r.Workflow,
			"body": string(r.Body), "header": fmt.Sprint(map[string][]string(r.Header)), "trace": r.TraceParent, "env": strings.Join(visibleEnv(), " "),
		}
	case "deny":
		return nil, authplugin.Deny("unknown token")
	case "deny-cached":
		return nil, &authplugin.Denied{Reason: fmt.Sprint(time.Now().UnixNano()), TTL: 10 * time.Second}
	case "deny-late": // once it is let go, having said that it waits
		if err := os.WriteFile(filepath.Join(os.Getenv("FAULT_DIR"), "waits"), nil, 0o600); err != nil {
			return nil, err
		}
		for ctx.Err() == nil {
			if _, err := os.Stat(filepath.Join(os.Getenv("FAULT_DIR"), "go")); err == nil {
				return nil, &authplugin.Denied{Reason: fmt.Sprint(time.Now().UnixNano()), TTL: 10 * time.Second}
			}
			time.Sleep(time.Millisecond)
		}
		return nil, ctx.Err()
	case "not mine":
		return nil, authplugin.ErrNotMine
	case "error":
		return nil, errors.New("directory is down")
	case "both":
		return p, errors.New("and yet")
	case "neither":
		return nil, nil
	case "no subject":
		p.Subject = ""
	case "control characters":
		p.Subject = "alice\nroot"
	case "foreign account":
		p.Account = "acct_other"
	case "foreign scope":
		p.Scopes = []string{"keys:write"}
	case "expired":
		p.ExpiresAt = time.Now().Add(-time.Second)
	case "many scopes":
		p.Scopes = strings.Split(strings.Repeat("run:workflow/x ", 100), " ")
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case "deaf":
		time.Sleep(3 * time.Second)
	case "panic":
		panic("secret " + r.Credential)
	case "crash":
		go panic("in another goroutine")
		time.Sleep(time.Hour)
	case "exit 0":
		os.Exit(0)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Hour) // the signal may take a moment to stop this thread
	case "big reply":
		return nil, authplugin.Deny(strings.Repeat("x", 64<<20))
	case "half reply":
		go func() { time.Sleep(time.Millisecond); _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }()
		return nil, authplugin.Deny(strings.Repeat("x", 60<<10))
	case "flood":
		flood(os.Stderr, 100<<20)
	case "escape":
		_, _ = fmt.Fprintln(os.Stderr, "\x1b[31mred\x07 and \xff")
	default:
		return nil, authplugin.Deny("unknown token")
	}
	return p, nil
}

func flood(w io.Writer, n int) {
	line := []byte(strings.Repeat("flood ", 20) + "\n")
	for ; n > 0; n -= len(line) {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
}

// visibleEnv is the environment but for the handshake's part of it.
func visibleEnv() []string {
	var all []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PLUGIN_") && !strings.HasPrefix(e, "KEYFIRE_") {
			all = append(all, e)
		}
	}
	return all
}
