package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs testdata/script: each script drives real server and client processes. The commands they have beside testscript's own:
//
//	server start [flags]     start a server on $WORK/data (a copy of one with the test workflows), wait until it listens; sets $URL
//	server stop|kill         end it as an operator or as a power failure does; stop demands exit status 0
//	http [-until N] METHOD PATH [-H header]... [body|@file]
//	                         send a request and print status, headers and body; -until repeats it until the status is N;
//	                         {5000x} stands for 5000 times the letter x
//	status N command...      run a command, which must end with this exit status
//	postgres NAME            set $NAME to the address of an empty PostgreSQL database
//	capture NAME REGEXP      set $NAME to the first group of what the last command printed
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			tb := e.T().(testing.TB)
			data := filepath.Join(e.WorkDir, "data")
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("KEYFIRE_DATA", data)
			e.Setenv(envNodeCache, nodeCache)
			e.Setenv("WORKFLOWS", workflowsDir(tb))
			e.Values[dataValue{}] = data
			e.Values[testValue{}] = tb
			return copyDir(data, filepath.Join(sharedDir(tb), "data"))
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"server": serverCommand, "http": httpCommand, "capture": captureCommand, "status": statusCommand, "postgres": postgresCommand,
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

type dataValue struct{}

// servers holds the running server of each script.
var servers sync.Map // *testscript.TestScript -> *process

func serverCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: server start|stop|kill")
	}
	data := ts.Value(dataValue{}).(string)
	switch args[0] {
	case "start":
		log, err := os.OpenFile(ts.MkAbs("server.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		ts.Check(err)
		defer log.Close()
		p, err := launch(data, log, args[1:]...)
		if err != nil {
			ts.Fatalf("%v\n%s", err, ts.ReadFile("server.log"))
		}
		servers.Store(ts, p)
		ts.Setenv("URL", p.url)
		ts.Defer(func() { ts.Check(p.kill()) })
	case "stop", "kill":
		v, ok := servers.LoadAndDelete(ts)
		if !ok {
			ts.Fatalf("no server is running")
		}
		p := v.(*process)
		if args[0] == "kill" {
			ts.Check(p.kill())
			return
		}
		if err := p.stop(); err != nil {
			ts.Fatalf("server stop: %v\n%s", err, ts.ReadFile("server.log"))
		}
	default:
		ts.Fatalf("unknown: server %s", args[0])
	}
}

func httpCommand(ts *testscript.TestScript, neg bool, args []string) {
	until := 0
	if len(args) > 1 && args[0] == "-until" {
		var err error
		until, err = strconv.Atoi(args[1])
		ts.Check(err)
		args = args[2:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: http [-until N] METHOD PATH [-H header]... [body|@file]")
	}
	for i, arg := range args {
		args[i] = repeated.ReplaceAllStringFunc(arg, func(s string) string {
			n, _ := strconv.Atoi(s[1 : len(s)-2])
			return strings.Repeat(s[len(s)-2:len(s)-1], n)
		})
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		status := httpOnce(ts, args)
		if until == 0 || status == until {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("status is still %d, want %d", status, until)
		}
	}
}

var repeated = regexp.MustCompile(`\{\d+[a-z]\}`)

func httpOnce(ts *testscript.TestScript, args []string) int {
	var body io.Reader
	header := http.Header{}
	rest := args[2:]
	for len(rest) >= 2 && rest[0] == "-H" {
		name, value, _ := strings.Cut(rest[1], ":")
		header.Add(name, strings.TrimSpace(value))
		rest = rest[2:]
	}
	if len(rest) > 0 {
		text := rest[0]
		if file, ok := strings.CutPrefix(text, "@"); ok {
			text = ts.ReadFile(file)
		}
		body = strings.NewReader(text)
		if header.Get("Content-Type") == "" {
			header.Set("Content-Type", "application/json")
		}
	}
	req, err := http.NewRequest(args[0], ts.Getenv("URL")+args[1], body)
	ts.Check(err)
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var lines []string
	for name, values := range resp.Header {
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	sort.Strings(lines)
	fmt.Fprintf(ts.Stdout(), "HTTP %d\n%s\n\n%s\n", resp.StatusCode, strings.Join(lines, "\n"), content)
	return resp.StatusCode
}

func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func captureCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: capture NAME REGEXP")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("nothing printed matches %s", args[1])
	}
	ts.Setenv(args[0], m[1])
}
