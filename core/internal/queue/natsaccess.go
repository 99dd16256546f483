package queue

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// credentials returns how to prove oneself with what a file holds; without a file, with what the address does. Errors say nothing of its content.
func credentials(file string) (nats.Option, error) {
	if file == "" {
		return func(*nats.Options) error { return nil }, nil
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("credentials for NATS: %w", err)
	}
	defer clear(content)
	if bytes.Contains(content, []byte("BEGIN NATS USER JWT")) {
		return nats.UserCredentials(file), nil
	}
	seed, err := nats.NkeyOptionFromSeed(file)
	if err != nil {
		return nil, fmt.Errorf("credentials for NATS: %s has neither a user's JWT and seed, as nsc writes them, nor the seed of an nkey", file)
	}
	return seed, nil
}

// unreachable tells why there is no connection.
func unreachable(addresses string, err error) error {
	var untrusted *tls.CertificateVerificationError
	switch {
	case barred(err):
		return fmt.Errorf("NATS at %s does not let this server in: the name and password or the token in queue, or the file in queue_credentials, are not what it wants: %w", addresses, err)
	case errors.As(err, &untrusted):
		return fmt.Errorf("NATS at %s shows a certificate that this server does not trust; SSL_CERT_FILE names the file of a CA of your own: %w", addresses, err)
	default:
		return fmt.Errorf("NATS does not answer at %s: %w", addresses, err)
	}
}

// barred reports whether NATS was there and refused who asked.
func barred(err error) bool {
	for _, refusal := range []error{nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrNkeysNotSupported} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

// redact returns addresses without what their users prove themselves with.
func redact(urls string) string {
	parts := strings.Split(urls, ",")
	for i, part := range parts {
		u, err := url.Parse(strings.TrimSpace(part))
		if err != nil || u.Host == "" {
			parts[i] = "(an address that cannot be parsed)"
			continue
		}
		parts[i] = u.Scheme + "://" + u.Host
	}
	return strings.Join(parts, ",")
}
