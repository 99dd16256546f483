package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// K1: the secret of a key is nowhere but in the answer that made it. Keys are used well and badly, in the right and in wrong places,
// with everything logged and exported; then every artifact is searched for any 16 characters of any secret.
func TestK1LeakScan(t *testing.T) {
	t.Parallel()
	s := startWatched(t)
	windows := map[string]string{} // 16 characters -> what they are part of
	var bodies bytes.Buffer
	for i := range 20 {
		key := s.createKey(t, client.NewKey{Name: "k" + strconv.Itoa(i), Global: i%2 == 0, Workflow: map[bool]string{false: "echo"}[i%2 == 0], AllowQuery: i%3 == 0})
		addWindows(windows, "a key", key.Secret[publicPrefix:])
		misuse(t, s.url, key.Secret, &bodies)
		if i%4 == 0 {
			if _, err := s.admin.RevokeKey(t.Context(), key.ID, "scan"); err != nil {
				t.Fatal(err)
			}
			misuse(t, s.url, key.Secret, &bodies)
		}
	}
	// L12: the variables of Langflow's clients are often the keys of others. They reach the node, and nothing that is kept.
	const variable = "sk-live-QmFzZTY0aXNub3RlbmNyeXB0aW9uMTIzNDU2Nzg5"
	addWindows(windows, "a variable", variable)
	caller := s.createKey(t, client.NewKey{Name: "langflow", Workflow: "variables"})
	before := bodies.Len()
	for _, do := range []string{"echo", "log", "fail", "garbage", "exit"} {
		for _, path := range []string{"/api/v1/run/variables", "/api/v1/run/variables?stream=true", "/api/v1/process/variables", "/api/v1/webhook/variables"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+path, strings.NewReader(`{"inputs":{"do":"`+do+`"}}`))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Api-Key", caller.Secret)
			req.Header.Set("Content-Type", "application/json")
			req.Header.Set("X-LANGFLOW-GLOBAL-VAR-OPENAI_API_KEY", variable)
			req.Header.Set("X-Langflow-Global-Var-Region", "Bearer "+variable)
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(&bodies, res.Body)
			_ = res.Body.Close()
		}
	}
	if answers := bodies.String()[before:]; strings.Count(answers, core.Redacted) < 6 || !strings.Contains(answers, "succeeded") && !strings.Contains(answers, `"checked":"succeeded"`) {
		t.Errorf("nothing shows that the variables reached the workflow: %s", answers)
	}

	s.search(windows, bodies.Bytes())
}

// watched is a server with everything logged and exported, all of which is kept to be searched.
type watched struct {
	*testServer
	t        *testing.T
	data     string
	exported *syncBuffer
}

// startWatched starts one on a copy of the test data, with further variables in its environment.
func startWatched(t *testing.T, env ...string) *watched {
	t.Helper()
	w := &watched{t: t, data: filepath.Join(t.TempDir(), "data"), exported: &syncBuffer{}}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w.exported, r.Body)
	}))
	t.Cleanup(collector.Close)
	copyData(t, w.data)
	log := &syncBuffer{}
	cmd := exec.Command("keyfire", "serve", "--json", "--data", w.data, "--listen", "127.0.0.1:0", "--log-level", "debug")
	cmd.Env = cleanEnv(append(env, "OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf", "OTEL_METRIC_EXPORT_INTERVAL=500")...)
	p, err := launchCommand(cmd, w.data, log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() { _ = p.kill() })
	w.testServer = &testServer{process: p, admin: socketClient(t, w.data), log: log}
	return w
}

// search stops the server and looks for the windows in all that it has answered, written, logged and exported, and in what the system tells of its process.
func (w *watched) search(windows map[string]string, answers []byte) {
	w.t.Helper()
	artifacts := map[string][]byte{"answers": answers}
	proc := "/proc/" + strconv.Itoa(w.cmd.Process.Pid)
	for _, name := range []string{"environ", "cmdline"} {
		if content, err := os.ReadFile(filepath.Join(proc, name)); err == nil {
			artifacts["process "+name] = content
		}
	}
	readAll(w.t, w.data, "running: ", artifacts) // with the WAL as it is
	if err := w.stop(); err != nil {
		w.t.Error(err)
	}
	readAll(w.t, w.data, "stopped: ", artifacts)
	artifacts["log"], artifacts["exported"] = []byte(w.log.String()), []byte(w.exported.String())
	for _, name := range []string{"log", "exported", "answers", "running: " + databaseFile + "-wal", "stopped: " + databaseFile} {
		if len(artifacts[name]) < 1000 {
			w.t.Errorf("%s has %d bytes: there was nothing to search", name, len(artifacts[name]))
		}
	}
	total := 0
	for name, content := range artifacts {
		total += len(content)
		if found := scan(windows, content); found != "" {
			w.t.Errorf("%s holds part of %s", name, found)
		}
	}
	w.t.Logf("searched %d artifacts with %d bytes for %d windows", len(artifacts), total, len(windows))
}

// The search itself finds what it should, in every form.
func TestK1LeakScanFinds(t *testing.T) {
	t.Parallel()
	const secret = "kft_AAAAbbbbCCCCddddEEEEffffGGGGhhhhIIIIjjjjKKKKllllMMMM"
	windows := map[string]string{}
	addWindows(windows, "a key", secret[publicPrefix:])
	tail := secret[publicPrefix:]
	for _, text := range []string{
		secret, secret[20:36], tail, base64.StdEncoding.EncodeToString([]byte("Bearer " + secret)), base64.URLEncoding.EncodeToString([]byte(secret)),
		hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
	} {
		if scan(windows, []byte("something "+text+" else")) == "" {
			t.Errorf("not found in %q", text)
		}
	}
	for _, text := range []string{secret[:publicPrefix], secret[:publicPrefix] + "..." + secret[len(secret)-4:], secret[20:35]} {
		if found := scan(windows, []byte("something "+text+" else")); found != "" {
			t.Errorf("%q is public", text)
		}
	}
}

const (
	window       = 16
	publicPrefix = 16 // "kft_" and the id, which is no secret
)

// addWindows adds every window of a secret text, called what, in the forms it could be written in. None of these texts has characters that a URL
// escapes, so that form is the text itself.
func addWindows(windows map[string]string, what, text string) {
	inHex := hex.EncodeToString([]byte(text))
	forms := map[string]string{what: text, what + " in hex": inHex, what + " in upper-case hex": strings.ToUpper(inHex)}
	for skip := range 3 { // base64 depends on where in a group of three the text begins
		forms[what+" in base64, "+strconv.Itoa(skip)] = base64.StdEncoding.EncodeToString([]byte(text[skip : skip+(len(text)-skip)/3*3]))
	}
	for form, text := range forms {
		for i := 0; i+window <= len(text); i++ {
			windows[text[i:i+window]] = form
		}
	}
}

func scan(windows map[string]string, content []byte) string {
	for i := 0; i+window <= len(content); i++ {
		if form, ok := windows[string(content[i:i+window])]; ok {
			// What stands around it tells where it came from.
			return fmt.Sprintf("%s: ...%q", form, content[max(0, i-300):i])
		}
	}
	return ""
}

// misuse sends a key where it belongs and to every place it has no business in, and collects the answers.
func misuse(t *testing.T, base, secret string, answers io.Writer) {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	broken := secret[:30] + "x" + secret[31:]
	const runs = "/v1/workflows/echo/runs"
	for _, r := range []struct {
		method, path, body string
		header             []string
	}{
		{method: "POST", path: runs, header: []string{"Authorization", "Bearer " + secret}, body: `{"input":{}}`},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret}, body: `{"input":`},
		{method: "POST", path: runs, header: []string{"X-Bifrost-Key", broken}},
		{method: "POST", path: runs, header: []string{"Authorization", secret}},
		{method: "POST", path: runs, header: []string{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte("key:"+secret))}},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "Authorization", "Bearer " + broken}},
		{method: "POST", path: runs + "?x-api-key=" + secret},
		{method: "POST", path: runs + "?api_key=" + url.QueryEscape(secret) + "&q=" + secret},
		{method: "POST", path: runs + "?key=" + secret, header: []string{"X-API-Key", secret}, body: `{"` + secret + `":1}`},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "Cookie", "key=" + secret, "User-Agent", secret, "Referer", "https://x/?k=" + secret}, body: `{}`},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "Traceparent", secret, "Tracestate", "k=" + secret, "Baggage", "k=" + secret}, body: `{}`},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "Content-Type", "text/" + secret}, body: secret},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "Prefer", "respond-async; k=" + secret}, body: `{}`},
		{method: "POST", path: runs, header: []string{"X-API-Key", secret, "X-Forwarded-For", secret}, body: `{"overrides":{"` + secret + `":{}}}`},
		{method: "POST", path: "/v1/workflows/" + secret + "/runs", header: []string{"X-API-Key", secret}, body: `{}`},
		{method: "GET", path: "/v1/keys/" + secret, header: []string{"X-API-Key", secret}},
		{method: "GET", path: "/v1/runs/" + secret, header: []string{"X-API-Key", secret}},
		{method: "GET", path: "/v1/runs?status=" + secret, header: []string{"X-API-Key", secret}},
		{method: "GET", path: "/" + secret},
		{method: "PATCH", path: runs, header: []string{"X-API-Key", secret}},
	} {
		req, err := http.NewRequestWithContext(t.Context(), r.method, base+r.path, strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(r.header); i += 2 {
			req.Header.Set(r.header[i], r.header[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Header.Write(answers)
		_, err = io.Copy(answers, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode >= 500 {
			t.Errorf("%s %s: %d, %v", r.method, strings.ReplaceAll(r.path, secret, "KEY"), resp.StatusCode, err)
		}
	}
}

// readAll reads the files of a directory, without compiled modules, which are older than the keys.
func readAll(t *testing.T, dir, prefix string, into map[string][]byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == filepath.Base(cacheDir) {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() {
			return nil
		}
		content, err := os.ReadFile(path)
		into[prefix+d.Name()] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
