package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// browser is a real Chromium without a window, driven over a pair of pipes by the DevTools protocol (https://chromedevtools.github.io/devtools-protocol/).
// It is used by one goroutine.
type browser struct {
	t       *testing.T
	base    string
	in      *os.File
	answers chan message
	session string
	last    int
	loader  string // of the page that is shown
}

type message struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

func openBrowser(t *testing.T, base string) *browser {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("chromium is not installed")
		}
		t.Skip("chromium is not installed: the console is not tested in a browser")
	}
	theirIn, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--headless=new", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir(), "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
		"--no-sandbox", // which needs rights that containers withhold; the only pages it gets are ours
		"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions")
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = theirIn.Close(), theirOut.Close()
	b := &browser{t: t, base: base, in: in, answers: make(chan message, 1024)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(b.answers)
		for r := bufio.NewReader(out); ; {
			raw, err := r.ReadBytes(0)
			if err != nil {
				return
			}
			var m message
			if json.Unmarshal(raw[:len(raw)-1], &m) == nil {
				b.answers <- m
			}
		}
	}()
	t.Cleanup(func() {
		_ = b.send("Browser.close", nil)
		for range b.answers { //nolint:revive // until it has closed its end
		}
		<-ended
		_, _ = in.Close(), out.Close()
		_ = cmd.Wait()
	})
	var target struct {
		TargetID  string `json:"targetId"`
		SessionID string `json:"sessionId"`
	}
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	b.call("Page.enable", nil, nil)
	b.call("Page.setLifecycleEventsEnabled", map[string]any{"enabled": true}, nil)
	return b
}

func (b *browser) send(method string, params any) error {
	b.last++
	raw, err := json.Marshal(map[string]any{"id": b.last, "method": method, "params": params, "sessionId": b.session})
	if b.session == "" {
		raw, err = json.Marshal(map[string]any{"id": b.last, "method": method, "params": params})
	}
	if err != nil {
		return err
	}
	_, err = b.in.Write(append(raw, 0))
	return err
}

// until reads what the browser says until it is what is wanted.
func (b *browser) until(what string, wanted func(message) bool) message {
	b.t.Helper()
	timeout := time.After(startTimeout)
	for {
		select {
		case m, open := <-b.answers:
			if !open {
				b.t.Fatalf("the browser ended before %s", what)
			}
			if wanted(m) {
				return m
			}
		case <-timeout:
			b.t.Fatalf("the browser does not come to %s", what)
		}
	}
}

func (b *browser) call(method string, params, result any) {
	b.t.Helper()
	if params == nil {
		params = map[string]any{}
	}
	if err := b.send(method, params); err != nil {
		b.t.Fatal(err)
	}
	m := b.until(method, func(m message) bool { return m.ID == b.last })
	if m.Error != nil {
		b.t.Fatalf("%s: %s", method, m.Error.Message)
	}
	if result != nil {
		if err := json.Unmarshal(m.Result, result); err != nil {
			b.t.Fatal(err)
		}
	}
}

// loaded waits until another page than the one that is shown is there, and is the loader's if that is given.
func (b *browser) loaded(loader string) {
	b.t.Helper()
	b.until("a loaded page", func(m message) bool {
		var event struct{ Name, LoaderID string }
		if m.Method != "Page.lifecycleEvent" || json.Unmarshal(m.Params, &event) != nil || event.Name != "load" || event.LoaderID == b.loader || loader != "" && event.LoaderID != loader {
			return false
		}
		b.loader = event.LoaderID
		return true
	})
}

func (b *browser) open(path string) {
	b.t.Helper()
	var navigation struct{ LoaderID string }
	b.call("Page.navigate", map[string]any{"url": b.base + path}, &navigation)
	b.loaded(navigation.LoaderID)
}

// eval returns what an expression of JavaScript is on the page, as text.
func (b *browser) eval(format string, args ...any) string {
	b.t.Helper()
	for i, a := range args {
		raw, err := json.Marshal(a)
		if err != nil {
			b.t.Fatal(err)
		}
		args[i] = string(raw)
	}
	var answer struct {
		Result           struct{ Value any }
		ExceptionDetails *struct{ Text string }
	}
	expression := fmt.Sprintf(format, args...)
	b.call("Runtime.evaluate", map[string]any{"expression": "String(" + expression + ")"}, &answer)
	if answer.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, answer.ExceptionDetails.Text)
	}
	text, _ := answer.Result.Value.(string)
	return text
}

// fill gives a field of a form a value; "on" checks a box.
func (b *browser) fill(name, value string) {
	b.t.Helper()
	if b.eval(`(f => f ? (f.type == "checkbox" ? f.checked = true : f.value = %[2]s, f.type == "checkbox" || f.value == %[2]s) : "no such field")(document.querySelector("[name=" + %[1]s + "]"))`, name, value) != "true" {
		b.t.Fatalf("the field %s does not take %q on %s", name, value, b.text())
	}
}

// click clicks what carries the text, which leads to another page.
func (b *browser) click(text string) {
	b.t.Helper()
	// The answer to a click can be lost with the page that it was on, so only the next page is waited for.
	if err := b.send("Runtime.evaluate", map[string]any{"expression": fmt.Sprintf(`[...document.querySelectorAll("button,a")].find(e => e.innerText.trim() == %q).click()`, text)}); err != nil {
		b.t.Fatal(err)
	}
	b.loaded("")
}

// text is what a person reads on the page.
func (b *browser) text() string {
	b.t.Helper()
	return b.eval("document.body.innerText")
}

func (b *browser) reads(texts ...string) {
	b.t.Helper()
	page := b.text()
	for _, text := range texts {
		if !strings.Contains(page, text) {
			b.t.Fatalf("the page does not say %q:\n%s", text, page)
		}
	}
}
