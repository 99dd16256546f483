package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// remote is the server that a command talks to.
type remote struct {
	*client.Client
	// url is where callers reach it over TCP, "" when that is not known. It is for printing.
	url string
}

// target is the server that the command line and the environment name, "" for the one in the data directory. explicit is whether they name one at all.
func (a *app) target(cmd *cobra.Command) (base string, explicit bool, err error) {
	flags := cmd.Flags()
	base, _ = flags.GetString("url")
	if flags.Changed("url") && flags.Changed("data") {
		return "", false, usagef("--url and --data name two servers; give one of them")
	}
	if !flags.Changed("url") && !flags.Changed("data") {
		base = lookup(a.Environ, envURL)
	}
	return base, base != "" || flags.Changed("data") || lookup(a.Environ, envPrefix+"DATA") != "", nil
}

// account is the account that commands act for, "" for the credential's own.
func (a *app) account(cmd *cobra.Command) string {
	if f := cmd.Flags().Lookup("account"); f != nil && f.Changed {
		return f.Value.String()
	}
	return lookup(a.Environ, envAccount)
}

// connect finds the server that the command line and the environment name: --url or KEYFIRE_URL; or the one that keyfire login was told, unless a data directory is named; or else
// the socket in the data directory. An explicit --data outweighs KEYFIRE_URL. KEYFIRE_KEY is sent either way, and otherwise the session with that server; over the socket no
// credential is needed.
func (a *app) connect(cmd *cobra.Command) (*remote, error) {
	base, explicit, err := a.target(cmd)
	if err != nil {
		return nil, err
	}
	cfg, _, err := loadConfig(a.Environ, cmd.Flags())
	if err != nil {
		return nil, usageError{err}
	}
	if !explicit {
		all, err := a.sessions().read()
		if err != nil {
			return nil, err
		}
		base = all.Current
	}
	key, err := a.environKey()
	if err != nil {
		return nil, err
	}
	if base != "" {
		if key == "" {
			if key, err = a.token(cmd.Context(), trimURL(base)); err != nil {
				return nil, err
			}
		}
		c, err := client.New(client.Config{URL: base, Key: key, Account: a.account(cmd), UserAgent: a.agent()})
		if err != nil {
			return nil, usageError{err}
		}
		return &remote{Client: c, url: trimURL(base)}, nil
	}
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return a.dialSocket(ctx, cfg.Data) },
		DisableKeepAlives: true, // one command, a few calls
	}
	c, err := client.New(client.Config{URL: "http://localhost", Key: key, Account: a.account(cmd), HTTPClient: &http.Client{Transport: transport}, UserAgent: a.agent()})
	if err != nil {
		return nil, err
	}
	return &remote{Client: c, url: servedURL(cfg.Data)}, nil
}

// environKey is the key in KEYFIRE_KEY. The white space around it is that of the file or the manifest it came from.
func (a *app) environKey() (string, error) {
	key := strings.TrimSpace(lookup(a.Environ, envKey))
	if strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usagef("%s holds more than a key: there are spaces, line breaks or other characters in it", envKey)
	}
	return key, nil
}

func (a *app) agent() string { return "keyfire/" + a.Version }

// dialSocket connects to the server of a data directory and turns the ways in which that fails into what to do about it.
func (a *app) dialSocket(ctx context.Context, data string) (net.Conn, error) {
	conn, err := dialUnix(ctx, data, socketFile)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		start := "keyfire serve"
		if data != defaultData(a.Environ) {
			start += " --data " + shellQuote(data)
		}
		return nil, fmt.Errorf("%w in %s; start one with: %s (or set KEYFIRE_URL and KEYFIRE_KEY to use one elsewhere)", errUnreachable, data, start)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the server's data directory %s belongs to another user; run this command as that user, or set KEYFIRE_URL and KEYFIRE_KEY", data)
	}
	return conn, err
}

// servedURL reads where the server of a data directory listens, as it noted beside its pid.
func servedURL(data string) string {
	raw, err := os.ReadFile(filepath.Join(data, lockFile))
	if err != nil {
		return ""
	}
	_, address, _ := strings.Cut(strings.TrimSpace(string(raw)), "\n")
	return address
}

// call runs fn against the server and prints what it returns: with --json the API's own object, otherwise what show writes.
func call[T interface{ Raw() []byte }](a *app, cmd *cobra.Command, fn func(ctx context.Context, s *remote) (T, error), show func(T)) error {
	s, err := a.connect(cmd)
	if err != nil {
		return err
	}
	v, err := fn(cmd.Context(), s)
	if err != nil {
		return unreachable(err)
	}
	if a.json {
		return a.printBody(v.Raw())
	}
	show(v)
	return nil
}

// unreachable tells errors of the network from answers, and drops the method and URL that the HTTP client puts before them: over
// the socket the URL is one that nobody wrote.
func unreachable(err error) error {
	var request *url.Error
	if !errors.As(err, &request) {
		return err
	}
	err = request.Err
	var network *net.OpError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: the connection ended before the answer did (%w), as when a server is killed; what it was asked for may be done or not", errUnreachable, err)
	case errors.As(err, &network) && !errors.Is(err, errUnreachable):
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return err
}

// printBody prints an answer as it came, but for control characters, with one final newline.
func (a *app) printBody(body []byte) error {
	_, err := fmt.Fprintf(a.Stdout, "%s\n", printableJSON(strings.TrimRight(string(body), "\n")))
	return err
}

// table prints rows in columns. The first row is the heading.
func (a *app) table(rows [][]string) {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	w.Flush()
	for line := range strings.Lines(text.String()) { // a column stands below its heading in all rows only if none ends before it
		fmt.Fprintln(a.Stdout, strings.TrimRight(line, " \n"))
	}
}

// fields prints names and values, one a line, leaving out empty values.
func (a *app) fields(pairs ...string) { writeFields(a.Stdout, pairs) }

func writeFields(out io.Writer, pairs []string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", pairs[i], strings.ReplaceAll(pairs[i+1], "\n", "\n\t"))
		}
	}
	w.Flush()
}

// pageFlags gives a list command its paging.
func pageFlags(cmd *cobra.Command, p *client.Page) {
	cmd.Flags().Var((*pageLimit)(&p.Limit), "limit", "how many to show, at most 200 (default: what the server shows at once)")
	cmd.Flags().StringVar(&p.Cursor, "cursor", "", "continue after the page that ended with this cursor")
}

// pageLimit is a flag for the length of a page.
type pageLimit int

func (l *pageLimit) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > core.MaxPage {
		return fmt.Errorf("want a whole number from 1 to %d", core.MaxPage)
	}
	*l = pageLimit(n)
	return nil
}

func (l *pageLimit) String() string {
	if *l == 0 {
		return ""
	}
	return strconv.Itoa(int(*l))
}

func (l *pageLimit) Type() string { return "number" }

// age is a flag that says how far back to look; zero is everything.
type age time.Duration

// String implements pflag.Value.
func (a *age) String() string {
	if *a == 0 {
		return ""
	}
	return plain(time.Duration(*a))
}

// Type implements pflag.Value.
func (a *age) Type() string { return "age" }

// Set implements pflag.Value.
func (a *age) Set(text string) error {
	d, err := core.ParseSpan(text)
	if err != nil || d <= 0 {
		return errors.New("want an age such as 30m, 12h or 7d")
	}
	*a = age(d)
	return nil
}

// begin returns when it begins, zero for everything.
func (a *age) begin() time.Time {
	if *a == 0 {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(*a))
}

// tableOf returns what prints a page of a list as a table, and says how to get the next one.
func tableOf[T any](a *app, header []string, row func(*T) []string) func(*client.List[T]) {
	return func(l *client.List[T]) {
		rows := [][]string{header}
		for i := range l.Data {
			rows = append(rows, row(&l.Data[i]))
		}
		a.table(rows)
		a.more(l.HasMore, l.NextCursor)
	}
}

// more says how to get the next page.
func (a *app) more(hasMore bool, cursor string) {
	if hasMore {
		a.note("there are more; add --cursor %s", shellQuote(cursor))
	}
}

func timeText(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func millis(ms *int64) string {
	if ms == nil {
		return ""
	}
	return (time.Duration(*ms) * time.Millisecond).String()
}

// indent prints JSON for people; numbers and the order of members stay as they are.
func indent(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "null"
	}
	var b bytes.Buffer
	if json.Indent(&b, raw, "", "  ") != nil {
		return printable(string(raw))
	}
	return printableJSON(b.String())
}
