package authplugin_test

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"strings"

	"github.com/keyfire/keyfire/sdk/authplugin"
)

// legacy admits the tokens of a system that is to be replaced. Its configuration holds their digests.
type legacy struct {
	tokens map[string]string // digest in hex to user
}

func (l *legacy) Configure(_ context.Context, config []byte) error {
	var c struct {
		Tokens map[string]string `json:"tokens"`
	}
	if err := authplugin.DecodeConfig(config, &c); err != nil {
		return err
	}
	l.tokens = c.Tokens
	return nil
}

func (l *legacy) Authenticate(_ context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	if !strings.HasPrefix(r.Credential, "legacy_") {
		return nil, authplugin.ErrNotMine
	}
	sum := sha256.Sum256([]byte(r.Credential))
	for digest, user := range l.tokens {
		if subtle.ConstantTimeCompare([]byte(digest), []byte(hex.EncodeToString(sum[:]))) == 1 {
			return &authplugin.Principal{Subject: user, Scopes: []string{"run:*"}}, nil
		}
	}
	return nil, authplugin.Deny("unknown token")
}

// A plugin's main is one line.
func ExampleServe() {
	main := func() { authplugin.Serve(&legacy{}) }
	_ = main
}
