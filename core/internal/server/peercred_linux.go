package server

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// localPrincipal says who is at the other end of a local connection. The kernel vouches for the user id, so no credential is needed: the user that the
// server runs as could read its database anyway, and so could root. Everybody else is refused, whatever the mode of the socket file.
func localPrincipal(c *net.UnixConn) (*auth.Principal, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer of local socket: %w", err)
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return nil, fmt.Errorf("peer of local socket: %w", err)
	}
	return uidPrincipal(cred.Uid, uint32(os.Geteuid()))
}

// uidPrincipal decides about the user at the other end, given the one the server runs as.
func uidPrincipal(peer, own uint32) (*auth.Principal, error) {
	if peer != own && peer != 0 {
		return nil, fmt.Errorf("peer of local socket is user %d; only user %d and root may use it", peer, own)
	}
	return &auth.Principal{
		Account: core.DefaultAccount, Subject: "uid:" + strconv.FormatUint(uint64(peer), 10), Backend: "socket", Scopes: auth.SuperuserScopes(),
	}, nil
}
