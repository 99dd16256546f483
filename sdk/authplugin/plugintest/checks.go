package plugintest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// check is one thing a plugin must do, and why a server insists on it. Every check starts a process of its own.
type check struct {
	name, why string
	run       func(context.Context, *kit) error
}

var checks = []check{
	{"refuses to run by itself", "started by hand, a plugin must say what it is, exit with a status other than 0 and print nothing to standard output", runsByItself},
	{"shakes hands", "a plugin must start with an empty environment, listen on a unix socket with TLS and state a version of at most 64 characters", handshake},
	{"judges its configuration", "an operator must hear what is wrong with a configuration before it is used", settings},
	{"decides the cases", "the answers are the point of the whole", decidesCases},
	{"admits nothing else", "no credential that nobody gave out may be admitted, and none may end the process", admitsNothingElse},
	{"serves many callers", "calls come from many requests at once and must not be mixed up", manyCallers},
	{"gives up in time", "a server waits no longer than its deadline; a plugin that goes on regardless runs out of memory first and of luck later", givesUp},
	{"keeps secrets", "standard error ends up in the server's log, where a credential must not be", keepsSecrets},
	{"ends when it is asked", "a reload waits two seconds for the old process and then kills it", endsWhenAsked},
	{"ends with the server", "standard input ends when the server has died, however it died; a plugin that stays is an orphan that holds credentials", endsWithServer},
}

func runsByItself(ctx context.Context, k *kit) error {
	if k.self {
		return nil // without the cookie the test binary runs the tests; authplugin.Serve has its own test of this
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.cfg.Executable) // #nosec G204 -- the author's own program
	cmd.Env = append([]string{"PATH=/usr/bin:/bin"}, k.cfg.Env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return errors.New("it was still running after five seconds")
	case !errors.As(err, &exit):
		return fmt.Errorf("it ended with %w, want a status other than 0", err)
	case stdout.Len() > 0:
		return fmt.Errorf("it wrote %.100q to standard output", stdout.String())
	case stderr.Len() == 0:
		return errors.New("it said nothing on standard error")
	}
	return nil
}

func handshake(ctx context.Context, k *kit) error {
	s, err := k.start()
	if err != nil {
		return err
	}
	defer s.stop()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	d, err := s.rpc.Describe(ctx, &authv1.DescribeRequest{})
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	if !authv1.Printable(d.GetVersion(), 0, authv1.MaxVersion) {
		return fmt.Errorf("the version %.100q is not at most %d printable characters", d.GetVersion(), authv1.MaxVersion)
	}
	return nil
}

func settings(ctx context.Context, k *kit) error {
	s, err := k.start()
	if err != nil {
		return err
	}
	defer s.stop()
	validate := func(config string) ([]string, error) {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		r, err := s.rpc.Validate(ctx, &authv1.ValidateRequest{ConfigJson: []byte(config)})
		return r.GetProblems(), err
	}
	if problems, err := validate(k.cfg.Settings); err != nil {
		return fmt.Errorf("good settings: %w", err)
	} else if len(problems) > 0 {
		return fmt.Errorf("fault is found with good settings: %q", problems)
	}
	// Nothing that is not an object is a configuration, and no plugin knows this member.
	bad := append([]string{"", "null", "[]", "{", `{"no-plugin-has-this-setting": 1}`}, k.cfg.BadSettings...)
	for _, config := range bad {
		problems, err := validate(config)
		if err == nil && len(problems) == 0 {
			problems, err = k.configureOnce(ctx, config) // of a plugin that has no Validate
		}
		if err != nil {
			return fmt.Errorf("settings %s: %w", config, err)
		} else if len(problems) == 0 {
			return fmt.Errorf("no fault was found with the settings %q", config)
		}
	}
	return nil
}

// configureOnce configures a process of its own and returns what it finds fault with.
func (k *kit) configureOnce(ctx context.Context, config string) ([]string, error) {
	s, err := k.start()
	if err != nil {
		return nil, err
	}
	defer s.stop()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := s.rpc.Configure(ctx, &authv1.ConfigureRequest{ConfigJson: []byte(config)})
	return r.GetProblems(), err
}

func decidesCases(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	var wrong []error
	for _, c := range k.cfg.Cases {
		if err := s.decide(ctx, c); err != nil {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

func admitsNothingElse(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	for _, c := range k.cfg.Cases {
		if c.Want != Allow {
			continue
		}
		for what, r := range hostile(c.Request) {
			v, res, err := s.ask(ctx, r)
			if err != nil {
				return fmt.Errorf("case %q with %s: %w", c.Name, what, err)
			}
			if v == Allow {
				return fmt.Errorf("case %q with %s was allowed as %q", c.Name, what, res.GetAllow().GetSubject())
			}
		}
		if err := s.decide(ctx, c); err != nil {
			return fmt.Errorf("after hostile requests: %w", err)
		}
	}
	return nil
}

// hostile returns requests made from a good one, none of which is good.
func hostile(good authplugin.Request) map[string]authplugin.Request {
	random := rand.New(rand.NewPCG(1, 2)) // #nosec G404 -- the same every time, so that a failure can be repeated
	all := make(map[string]authplugin.Request)
	if good.Scheme != authplugin.SchemeHeader {
		with := func(what, credential string) { r := good; r.Credential = credential; all[what] = r }
		with("no credential", "")
		with("a credential of 64 KiB", strings.Repeat("A", 64<<10))
		with("a credential of control characters", "\x00\x01\r\n\x1b[31m")
		with("a credential of format verbs", "%s%n%d{{.}}${x}../../../etc/passwd")
		with("a credential of filter and SQL syntax", "*)(uid=*))(|(uid=*' OR '1'='1")
		with("the credential twice", good.Credential+good.Credential)
		for n := range 50 {
			b := make([]byte, 1+random.IntN(200))
			for i := range b {
				b[i] = byte(' ' + random.IntN(95))
			}
			with(fmt.Sprintf("random credential %d", n), string(b))
		}
		return all
	}
	all["no headers"] = func() authplugin.Request { r := good; r.Header = nil; return r }()
	for name := range good.Header {
		for what, value := range map[string]string{"empty": "", "garbage": "\x01%s=,=,;", "64 KiB": strings.Repeat("a", 64<<10)} {
			r := good
			r.Header = good.Header.Clone()
			r.Header.Set(name, value)
			all["header "+name+" "+what] = r
		}
	}
	if len(good.Body) > 0 {
		for n := range 20 {
			r := good
			r.Body = bytes.Clone(good.Body)
			at := random.IntN(len(r.Body))
			r.Body[at] ^= 1 << random.IntN(8)
			all[fmt.Sprintf("a bit of the body flipped at %d (%d)", at, n)] = r
		}
	}
	return all
}

func manyCallers(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	var callers sync.WaitGroup
	wrong := make([]error, 16)
	for i := range wrong {
		callers.Go(func() {
			for n := range 2 * len(k.cfg.Cases) {
				if err := s.decide(ctx, k.cfg.Cases[(i+n)%len(k.cfg.Cases)]); err != nil {
					wrong[i] = fmt.Errorf("among %d callers: %w", len(wrong), err)
					return
				}
			}
		})
	}
	callers.Wait()
	return errors.Join(wrong...)
}

func givesUp(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	for _, c := range k.cfg.Cases {
		gone, cancel := context.WithTimeout(ctx, time.Millisecond)
		_, _ = s.rpc.Authenticate(gone, encode(c.Request))
		cancel()
	}
	for _, c := range k.cfg.Cases {
		if err := s.decide(ctx, c); err != nil {
			return fmt.Errorf("after calls whose caller went away: %w", err)
		}
	}
	return nil
}

func keepsSecrets(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	for _, c := range k.cfg.Cases {
		_, _, _ = s.ask(ctx, c.Request)
	}
	s.stop() // so that everything has been written
	written := s.process.output.String()
	for _, c := range k.cfg.Cases {
		secrets := []string{c.Request.Credential, string(c.Request.Body)}
		if _, password, ok := c.Request.Basic(); ok {
			secrets = append(secrets, password)
		}
		for _, secret := range secrets {
			if len(secret) >= 6 && strings.Contains(written, secret) {
				return fmt.Errorf("the output holds the credential or body of case %q", c.Name)
			}
		}
	}
	return nil
}

func endsWhenAsked(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	s.stop()
	if took := time.Since(began); took >= 2*time.Second || !s.process.cmd.ProcessState.Exited() {
		return fmt.Errorf("it had to be killed after %s: %s", took.Round(time.Millisecond), s.process.cmd.ProcessState)
	}
	return nil
}

func endsWithServer(ctx context.Context, k *kit) error {
	s, err := k.configured(ctx)
	if err != nil {
		return err
	}
	defer s.stop()
	if err := s.process.lifeline.Close(); err != nil {
		return err
	}
	select {
	case <-s.process.exited:
		return nil
	case <-time.After(2 * time.Second):
		return errors.New("two seconds after standard input ended it was still running")
	}
}

// decide asks about a case and compares the answer.
func (s *started) decide(ctx context.Context, c Case) error {
	v, res, err := s.ask(ctx, c.Request)
	switch {
	case err != nil:
		return fmt.Errorf("case %q: %w", c.Name, err)
	case v != c.Want:
		return fmt.Errorf("case %q: %s (%v), want %s", c.Name, v, res, c.Want)
	case v != Allow || c.Principal.Subject == "":
		return nil
	}
	got, want := res.GetAllow(), c.Principal
	if got.GetSubject() != want.Subject || got.GetAccount() != want.Account || !slices.Equal(got.GetScopes(), want.Scopes) || !maps.Equal(got.GetAttributes(), want.Attributes) {
		text, _ := json.Marshal(want)
		return fmt.Errorf("case %q: principal %v, want %s", c.Name, got, text)
	}
	return nil
}

// ask makes one call within the deadline. The error is for a plugin that broke the protocol or did not answer; what it could not decide
// is a verdict.
func (s *started) ask(ctx context.Context, r authplugin.Request) (Verdict, *authv1.AuthenticateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	res, err := s.rpc.Authenticate(ctx, encode(r))
	select {
	case <-s.process.exited:
		return "", nil, fmt.Errorf("the process ended: %s", s.process.cmd.ProcessState)
	default:
	}
	switch {
	case status.Code(err) == codes.DeadlineExceeded:
		return "", nil, fmt.Errorf("no answer within %s", s.timeout)
	case status.Code(err) == codes.ResourceExhausted:
		return "", nil, fmt.Errorf("the answer is longer than %d bytes", authv1.MaxResponse)
	case err != nil:
		return Undecided, nil, nil
	}
	if err := res.Check(); err != nil {
		return "", nil, err
	}
	switch {
	case res.GetAllow() != nil:
		return Allow, res, nil
	case res.GetDeny() != nil:
		return Deny, res, nil
	}
	return NotMine, res, nil
}

func encode(r authplugin.Request) *authv1.AuthenticateRequest {
	req := &authv1.AuthenticateRequest{
		Scheme: r.Scheme, Credential: r.Credential, Method: r.Method, Path: r.Path, Workflow: r.Workflow, Body: r.Body, Traceparent: r.TraceParent,
	}
	if r.Source.IsValid() {
		req.Source = r.Source.String()
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		req.Headers = append(req.Headers, &authv1.Header{Name: http.CanonicalHeaderKey(name), Values: r.Header[name]})
	}
	return req
}
