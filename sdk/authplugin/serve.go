package authplugin

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// window is how many bytes of a request may be on the way before the plugin has taken them in.
const window = 1 << 20

// Serve makes the running process the plugin a. It is the last call of main: it does not return, and it ends the process when the
// server asks for it, or has died in whatever way. A process that no server started exits with status 2 and says so.
func Serve(a Authenticator) {
	if os.Getenv(authv1.CookieKey) != authv1.CookieValue {
		fmt.Fprintln(os.Stderr, "this program is a Keyfire auth plugin and cannot be run by itself\nhint: name it under `auth` in the server's configuration; `keyfire plugin check` tries it out")
		os.Exit(2)
	}
	go exitWithServer(os.Stdin)
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: authv1.ProtocolVersion, MagicCookieKey: authv1.CookieKey, MagicCookieValue: authv1.CookieValue,
		},
		Plugins: plugin.PluginSet{authv1.ServiceName: &served{server: newServer(a)}},
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			// Windows of a fixed size: the measuring of the line that gRPC does instead costs more than a message on it.
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(authv1.MaxRequest), grpc.StaticStreamWindowSize(window), grpc.StaticConnWindowSize(4*window))...)
		},
		// What go-plugin says about itself is of interest when it keeps the plugin from starting.
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr}),
	})
	os.Exit(0)
}

// exitWithServer ends the process once stdin ends. The server holds the other end of that pipe and never writes to it, so the kernel
// tells of the server's death even after kill -9, and on systems without a parent-death signal.
func exitWithServer(stdin io.Reader) {
	_, _ = io.Copy(io.Discard, stdin)
	_ = os.RemoveAll(os.Getenv(plugin.EnvUnixSocketDir))
	os.Exit(0)
}

// served adapts the gRPC service to go-plugin.
type served struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

func (s *served) GRPCServer(_ *plugin.GRPCBroker, g *grpc.Server) error {
	authv1.RegisterAuthPluginServer(g, s.server)
	return nil
}

func (s *served) GRPCClient(context.Context, *plugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, fmt.Errorf("a plugin has no client side")
}

var _ plugin.GRPCPlugin = (*served)(nil)
