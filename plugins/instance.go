package plugins

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// instance is one process of a plugin that has shaken hands. It is made by launch and ended by stop, whether or not the process has
// ended by itself.
type instance struct {
	spec    Plugin
	process *process
	client  *plugin.Client
	rpc     authv1.AuthPluginClient
	health  grpc_health_v1.HealthClient
	version string
	started time.Time
	proved  atomic.Bool // it has given a verdict
	denials *denials

	mu     sync.Mutex
	calls  int
	closed bool
	idle   chan struct{} // closed when closed is set and calls is 0
}

// launcher holds what processes of all plugins of a Host have in common.
type launcher struct {
	dir    string
	forker *forker
	now    func() time.Time
}

// socketDirPrefix is how the directories that hold one process's socket are called. go-plugin adds a number.
const socketDirPrefix = "plugin-dir"

// launch starts the executable and shakes hands. It returns an instance that has not been configured, or no process.
func (l *launcher) launch(ctx context.Context, spec Plugin, b *binary, out *output) (*instance, error) {
	inst := &instance{
		spec: spec, started: l.now(), denials: &denials{now: l.now}, idle: make(chan struct{}),
		process: &process{binary: b, user: spec.User, forker: l.forker, output: out, exited: make(chan struct{})},
	}
	inst.client = plugin.NewClient(l.clientConfig(inst.process, spec, out))
	// go-plugin's start knows no context, and its Kill asks a process that may not be listening. Killing the process ends all its waits.
	stop := context.AfterFunc(ctx, func() {
		_ = inst.process.Kill(ctx)
	})
	err := inst.connect()
	inTime := stop()
	if err = handshakeError(err, inTime); !inTime {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), cmp.Or(err, ctx.Err()))
	}
	if err == nil {
		err = inst.describe(ctx)
	}
	if err != nil {
		how := inst.kill()
		return nil, fmt.Errorf("start plugin: %w%s", shorten(err), how)
	}
	return inst, nil
}

// handshakeError says what go-plugin does not: what the first line of a plugin has to be. What a process printed that was ended because it took too long is no more than nothing.
func handshakeError(err error, inTime bool) error {
	if err == nil {
		return nil
	}
	printed, ok := strings.CutPrefix(err.Error(), "Unrecognized remote plugin message: ")
	switch printed, _, _ = strings.Cut(printed, "\n"); {
	case !ok:
		return err
	case printed == "" && !inTime:
		return errors.New("it has not printed the line of the handshake, 1|1|unix|<socket>|grpc|<certificate>")
	case printed == "":
		return errors.New("its standard output ended before the line of the handshake, 1|1|unix|<socket>|grpc|<certificate>")
	}
	return fmt.Errorf("it must print the line of the handshake, 1|1|unix|<socket>|grpc|<certificate>, and nothing before; it printed %s", printed)
}

func (l *launcher) clientConfig(p *process, spec Plugin, out *output) *plugin.ClientConfig {
	return &plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: authv1.ProtocolVersion, MagicCookieKey: authv1.CookieKey, MagicCookieValue: authv1.CookieValue,
		},
		Plugins:          plugin.PluginSet{authv1.ServiceName: dialed{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     2 * spec.StartTimeout, // never reached: the context ends first, and says why
		UnixSocketConfig: &plugin.UnixSocketConfig{TempDir: l.dir},
		Logger:           hclog.NewNullLogger(), // the supervisor logs what happens, in the server's words
		SyncStdout:       &streamed{out: out, process: p},
		SyncStderr:       &streamed{out: out, process: p},
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithNoProxy(),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(authv1.MaxResponse), grpc.MaxCallSendMsgSize(authv1.MaxRequest)),
			grpc.WithMaxHeaderListSize(16 << 10),
			// Windows of a fixed size. gRPC would otherwise measure the line by a ping with every message, which costs a socket between two
			// processes more than the message does.
			grpc.WithStaticStreamWindowSize(authv1.MaxResponse), grpc.WithStaticConnWindowSize(4 * authv1.MaxResponse),
			// A connection that broke is not mended: the process is ended and another one started.
			grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: spec.StartTimeout, Backoff: backoff.Config{BaseDelay: time.Second, Multiplier: 2, MaxDelay: 30 * time.Second}}),
		},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			p.env, p.dir = append(cmd.Env, spec.Env...), dir
			return p, nil
		},
	}
}

// connect starts the process and reads its handshake.
func (i *instance) connect() error {
	protocol, err := i.client.Client()
	if err != nil {
		return err
	}
	raw, err := protocol.Dispense(authv1.ServiceName)
	if err != nil {
		return err
	}
	conn, ok := raw.(*grpc.ClientConn)
	if !ok {
		return errors.New("not a gRPC plugin")
	}
	i.rpc, i.health = authv1.NewAuthPluginClient(conn), grpc_health_v1.NewHealthClient(conn)
	return nil
}

func (i *instance) describe(ctx context.Context) error {
	// Not waiting for the connection to become ready: the plugin listens before it says so, and one that cannot be connected to is to be told why.
	d, err := i.rpc.Describe(ctx, &authv1.DescribeRequest{})
	switch {
	case err != nil:
		return fmt.Errorf("describe: %w", err)
	case !authv1.Printable(d.GetVersion(), 0, authv1.MaxVersion):
		return fmt.Errorf("describe: the version must be at most %d printable characters", authv1.MaxVersion)
	case i.spec.Version != "" && d.GetVersion() != i.spec.Version:
		return fmt.Errorf("%w: it says it is version %q, the configuration says %q", ErrRefused, d.GetVersion(), i.spec.Version)
	}
	i.version = d.GetVersion()
	return nil
}

// configure hands over the configuration.
func (i *instance) configure(ctx context.Context) error {
	r, err := i.rpc.Configure(ctx, &authv1.ConfigureRequest{ConfigJson: i.spec.Config})
	if err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	return problems(r.GetProblems())
}

// validate asks about the configuration without acting on it.
func (i *instance) validate(ctx context.Context) error {
	r, err := i.rpc.Validate(ctx, &authv1.ValidateRequest{ConfigJson: i.spec.Config})
	if err != nil {
		return fmt.Errorf("validate: %w", err)
	}
	return problems(r.GetProblems())
}

func problems(list []string) error {
	if len(list) == 0 {
		return nil
	}
	if len(list) > 20 {
		list = append(list[:20:20], fmt.Sprintf("and %d more", len(list)-20))
	}
	for n, p := range list {
		list[n] = escape([]byte(p[:min(len(p), maxLine)]))
	}
	return errors.New("configuration: " + strings.Join(list, "; "))
}

// ping asks the process, not the backend behind it, whether it is there: the health service answers even while every Authenticate waits
// for a slow directory, and does not answer when the process is stopped.
func (i *instance) ping(ctx context.Context) error {
	_, err := i.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: authv1.ServiceName})
	return err
}

// begin counts a call in. It reports false when the instance is being replaced.
func (i *instance) begin() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return false
	}
	i.calls++
	return true
}

// end counts a call out.
func (i *instance) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.calls--; i.closed && i.calls == 0 {
		close(i.idle)
	}
}

// drain lets no new call in and returns when the others are done or the plugin's deadline, which bounds them all, has passed.
func (i *instance) drain() {
	i.mu.Lock()
	if !i.closed {
		i.closed = true
		if i.calls == 0 {
			close(i.idle)
		}
	}
	i.mu.Unlock()
	select {
	case <-i.idle:
	case <-i.process.exited:
	case <-time.After(i.spec.Timeout + grace):
	}
}

// politely is how long a process may take to end after it was asked to.
const politely = 2 * time.Second

// stop asks the process to end, kills it if it does not, and clears up. No call may be under way that is still wanted.
func (i *instance) stop() {
	late := time.AfterFunc(politely, func() { _ = i.process.Kill(context.Background()) })
	defer late.Stop()
	i.release()
}

// kill ends the process at once and clears up. It says how the process ended if it did so by itself.
func (i *instance) kill() (how string) {
	select {
	case <-i.process.exited:
		how = ": the process had ended: " + i.process.how()
	default:
		_ = i.process.Kill(context.Background())
	}
	i.release()
	return how
}

// release ends go-plugin's side, which waits for the process, and removes what is left in the file system.
func (i *instance) release() {
	i.client.Kill()
	if i.process.started() {
		<-i.process.exited
	}
	if i.process.dir != "" {
		_ = os.RemoveAll(i.process.dir) // go-plugin removes it too, but not after every kind of failure
	}
}

// dialed makes go-plugin hand out its connection.
type dialed struct{ plugin.NetRPCUnsupportedPlugin }

func (dialed) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the server side is in the plugin")
}

func (dialed) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// streamed takes what a Go plugin writes to os.Stdout and os.Stderr, which go-plugin sends over the connection in chunks.
type streamed struct {
	out     *output
	process *process
	partial []byte
}

func (s *streamed) Write(b []byte) (int, error) {
	for rest := b; ; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		s.partial = append(s.partial, line[:min(len(line), max(0, maxLine-len(s.partial)))]...)
		if !whole {
			return len(b), nil
		}
		if dropped, ok := s.out.admit(); ok {
			s.out.line(escape(s.partial), s.process.pid(), dropped)
		}
		s.partial, rest = s.partial[:0], after
	}
}

// shorten keeps a hostile error text out of the log: go-plugin quotes the handshake line, which can be any 64 KiB.
func shorten(err error) error {
	text := err.Error()
	if s, ok := status.FromError(err); ok {
		text = s.Code().String() + ": " + s.Message()
	}
	const most = 500
	if len(text) > most {
		text = text[:most] + " [cut]"
	}
	return &shortened{text: escape([]byte(text)), err: err}
}

type shortened struct {
	text string
	err  error
}

func (s *shortened) Error() string { return s.text }
func (s *shortened) Unwrap() error { return s.err }
