//go:build !linux

package server

import (
	"errors"
	"net"

	"github.com/keyfire/keyfire/auth"
)

// localPrincipal refuses: how to ask this system who is at the other end of a socket is not implemented, and the mode of the socket file alone is not
// enough on all of them. Use a credential over TCP.
func localPrincipal(*net.UnixConn) (*auth.Principal, error) {
	return nil, errors.New("the local socket works on Linux only; use a key")
}
