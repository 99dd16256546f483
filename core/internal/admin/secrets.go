package admin

import (
	"context"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// SetSecret sets a secret of the account and reports whether it is new. Runs read the new value from their next step on. The value is never given
// back, to anyone but a node whose workflow grants it.
func (s *Service) SetSecret(ctx context.Context, a Actor, name, value string) (secret core.Secret, created bool, err error) {
	if err := a.Require(auth.ScopeSecretsWrite); err != nil {
		return core.Secret{}, false, err
	}
	if s.Vault == nil {
		return core.Secret{}, false, core.Errorf(core.CodeNotSupported, "this server has no key to seal secrets with")
	}
	switch {
	case !core.ValidSecretName(name):
		return core.Secret{}, false, invalid("#/name", "must be an upper-case letter, then upper-case letters, digits and underscores, at most 64")
	case len(value) < core.MinSecret:
		return core.Secret{}, false, invalid("#/value", fmt.Sprintf("must have at least %d bytes: a shorter one could not be kept out of logs and outputs", core.MinSecret))
	case len(value) > core.MaxSecret:
		return core.Secret{}, false, invalid("#/value", fmt.Sprintf("must have at most %d bytes", core.MaxSecret))
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return core.Secret{}, false, invalid("#/value", "must be text in UTF-8; encode other bytes, in base64 for example")
	}
	if name == core.CallbackSecret { // whoever sets it is to hear what is wrong with it, and not the callers
		for secret := range strings.FieldsSeq(value) {
			if _, err := core.CallbackKey(secret); err != nil {
				return core.Secret{}, false, invalid("#/value", err.Error())
			}
		}
	}
	account := a.Principal.Account
	return s.Store.PutSecret(ctx, account, name, s.Vault.Seal(account, name, value), s.event(a, core.ActionSecretSet, name))
}

// Secrets lists the account's secrets, without their values, by name.
func (s *Service) Secrets(ctx context.Context, a Actor) ([]core.Secret, error) {
	if err := a.Require(auth.ScopeSecretsRead); err != nil {
		return nil, err
	}
	return s.Store.Secrets(ctx, a.Principal.Account)
}

// DeleteSecret removes a secret. A node that is granted it fails to read it from then on.
func (s *Service) DeleteSecret(ctx context.Context, a Actor, name string) error {
	if err := a.Require(auth.ScopeSecretsWrite); err != nil {
		return err
	}
	return s.Store.DeleteSecret(ctx, a.Principal.Account, name, s.event(a, core.ActionSecretDelete, name))
}
