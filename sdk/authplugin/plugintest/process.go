package plugintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"google.golang.org/grpc"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// kit tries one plugin.
type kit struct {
	cfg  Config
	self bool // the plugin is the test binary
}

// started is a plugin process that has shaken hands.
type started struct {
	client  *plugin.Client
	process *process
	rpc     authv1.AuthPluginClient
	timeout time.Duration
}

// startTimeout is what a server allows a plugin to start.
const startTimeout = 10 * time.Second

// start starts the plugin and shakes hands, as a server would. The caller stops it.
func (k *kit) start() (*started, error) {
	p := &process{path: k.cfg.Executable, exited: make(chan struct{})}
	s := &started{process: p, timeout: k.cfg.Timeout}
	s.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: authv1.ProtocolVersion, MagicCookieKey: authv1.CookieKey, MagicCookieValue: authv1.CookieValue,
		},
		Plugins:          plugin.PluginSet{authv1.ServiceName: dialed{}},
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     startTimeout,
		Logger:           hclog.NewNullLogger(),
		SyncStdout:       &p.output,
		SyncStderr:       &p.output,
		GRPCDialOptions: []grpc.DialOption{
			grpc.WithNoProxy(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(authv1.MaxResponse), grpc.MaxCallSendMsgSize(authv1.MaxRequest)),
		},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			p.env, p.dir = append(cmd.Env, k.cfg.Env...), dir
			return p, nil
		},
	})
	protocol, err := s.client.Client()
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("the handshake failed: %w\nthe plugin wrote: %s", err, p.output.tail())
	}
	raw, err := protocol.Dispense(authv1.ServiceName)
	if err != nil {
		s.stop()
		return nil, err
	}
	conn, ok := raw.(*grpc.ClientConn)
	if !ok {
		s.stop()
		return nil, errors.New("not a gRPC plugin")
	}
	s.rpc = authv1.NewAuthPluginClient(conn)
	return s, nil
}

// configured is start followed by Configure with the good settings.
func (k *kit) configured(ctx context.Context) (*started, error) {
	s, err := k.start()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := s.rpc.Configure(ctx, &authv1.ConfigureRequest{ConfigJson: []byte(k.cfg.Settings)}, grpc.WaitForReady(true))
	if err == nil && len(r.GetProblems()) > 0 {
		err = fmt.Errorf("the plugin finds fault with Settings: %q", r.GetProblems())
	}
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("configure: %w\nthe plugin wrote: %s", err, s.process.output.tail())
	}
	return s, nil
}

// stop ends the process, by force if it does not end when it is asked.
func (s *started) stop() {
	late := time.AfterFunc(2*time.Second, func() { _ = s.process.Kill(context.Background()) })
	defer late.Stop()
	s.client.Kill()
	if s.process.cmd != nil {
		<-s.process.exited
	}
	_ = os.RemoveAll(s.process.dir)
}

// process runs the plugin with pipes for all three standard streams. It is a go-plugin runner.
type process struct {
	path string
	env  []string
	dir  string

	cmd      *exec.Cmd
	lifeline io.Closer
	stdout   io.ReadCloser
	output   capture
	exited   chan struct{}
}

var _ runner.Runner = (*process)(nil)

func (p *process) Start(context.Context) error {
	cmd := exec.Command(p.path) //nolint:noctx,gosec // the author's own program; it ends with its test, by Kill
	cmd.Env = p.env
	cmd.Stderr = &p.output
	lifeline, err1 := cmd.StdinPipe()
	stdout, w, err2 := os.Pipe()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	cmd.Stdout = w
	err := cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = stdout.Close()
		return fmt.Errorf("start: %w", err)
	}
	p.cmd, p.lifeline, p.stdout = cmd, lifeline, stdout
	go func() {
		defer close(p.exited)
		_ = cmd.Wait()
	}()
	return nil
}

func (p *process) Wait(context.Context) error { <-p.exited; return nil }

func (p *process) Kill(context.Context) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

func (p *process) Stdout() io.ReadCloser { return p.stdout }
func (p *process) Stderr() io.ReadCloser { return endWith(p.exited) }
func (p *process) Name() string          { return p.path }

func (p *process) ID() string {
	if p.cmd == nil {
		return ""
	}
	return strconv.Itoa(p.cmd.Process.Pid)
}

func (p *process) Diagnose(context.Context) string { return "" }

func (p *process) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" {
		return "", "", fmt.Errorf("the plugin listens on %s; it must listen on a unix socket in $%s", network, plugin.EnvUnixSocketDir)
	}
	return network, addr, nil
}

func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}

// endWith is a stream that ends with a process; standard error itself is captured elsewhere.
type endWith <-chan struct{}

func (e endWith) Read([]byte) (int, error) { <-e; return 0, io.EOF }
func (e endWith) Close() error             { return nil }

// capture keeps the first mebibyte of what the plugin writes.
type capture struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf.Write(b[:min(len(b), max(0, 1<<20-c.buf.Len()))])
	return len(b), nil
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// tail returns the end of it, for an error message.
func (c *capture) tail() string {
	s := c.String()
	return s[max(0, len(s)-2000):]
}

// dialed makes go-plugin hand out its connection.
type dialed struct{ plugin.NetRPCUnsupportedPlugin }

func (dialed) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error {
	return errors.New("client side only")
}

func (dialed) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}
