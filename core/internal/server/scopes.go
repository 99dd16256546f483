package server

import "github.com/keyfire/keyfire/auth"

// needs are the scopes without which nothing is done for a request, by operation: whoever may not publish a workflow shall not make the server receive one with
// all its modules, nor learn what is wrong with a key that it could not make anyway. Package admin asks again, and decides.
var needs = map[string]string{
	"create-key":        auth.ScopeKeysWrite,
	"change-key":        auth.ScopeKeysWrite,
	"enable-key":        auth.ScopeKeysWrite,
	"disable-key":       auth.ScopeKeysWrite,
	"rotate-key":        auth.ScopeKeysWrite,
	"import-key":        auth.ScopeKeysWrite,
	"get-key-usage":     auth.ScopeKeysRead,
	"get-tape":          auth.ScopeWorkflowsWrite,
	"get-module":        auth.ScopeWorkflowsWrite,
	"republish-version": auth.ScopeWorkflowsWrite,
	"publish-workflow":  auth.ScopeWorkflowsWrite,
	"rename-workflow":   auth.ScopeWorkflowsWrite,
	"enable-workflow":   auth.ScopeWorkflowsWrite,
	"disable-workflow":  auth.ScopeWorkflowsWrite,
	"set-secret":        auth.ScopeSecretsWrite,
	"create-user":       auth.ScopeUsersWrite,
	"set-user-role":     auth.ScopeUsersWrite,
	"enable-user":       auth.ScopeUsersWrite,
	"disable-user":      auth.ScopeUsersWrite,
	"create-account":    auth.ScopeAccountsWrite,
	"change-account":    auth.ScopeAccountsWrite,
	"enable-account":    auth.ScopeAccountsWrite,
	"disable-account":   auth.ScopeAccountsWrite,
}
