// Package upstream reaches the service that an auth plugin of ours asks about credentials. What it sends there is worth stealing, so it hides how that is
// kept from others: encrypted, unless it stays on this machine, by way of no proxy, and never to where a redirect points.
package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// CheckURL refuses an address that credentials must not be sent to. The error continues "url: ".
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && (u.Scheme != "http" || !Loopback(u.Hostname())) {
		return errors.New("must be an https URL, or an http one of a loopback address")
	}
	return nil
}

// Loopback reports whether a host is this machine, so that what is sent to it crosses no network.
func Loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Client returns a client for requests to a service. caFile holds, in PEM, the certificates that the service's is judged by; "" is the system's. The client has
// no timeout of its own: a plugin is given one with each credential.
func Client(caFile string) (*http.Client, error) {
	encrypted, err := TLS(caFile)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 16, MaxConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: encrypted,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// TLS is Client for services that do not speak HTTP.
func TLS(caFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca_file: holds no certificate in PEM")
	}
	return c, nil
}
