package auth

import "slices"

// Role is what a user may do in their account. Each holds everything that the one before it does.
type Role string

// The roles.
const (
	Viewer   Role = "viewer"   // sees workflows, runs and the names of keys and secrets; changes nothing and runs nothing
	Operator Role = "operator" // also runs and publishes workflows, manages keys and secrets, reads the audit log
	Owner    Role = "owner"    // also manages the account's users
	// Superuser operates the server: it manages accounts, may act for each of them, and manages auth plugins. Superusers belong to the default account.
	Superuser Role = "superuser"
)

// Roles returns all roles, the one that may least first.
func Roles() []Role { return []Role{Viewer, Operator, Owner, Superuser} }

// Valid reports whether there is such a role.
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Scopes returns what a user with the role may do; nil for one that does not exist. The lists are closed: a new scope belongs to nobody until it is put
// in here, and a test fails while it is in none of them.
func (r Role) Scopes() []string {
	viewer := []string{ScopeRunsRead, ScopeWorkflowsRead, ScopeKeysRead, ScopeSecretsRead}
	operator := slices.Concat(viewer, []string{ScopeRunAll, ScopeWorkflowsWrite, ScopeKeysWrite, ScopeSecretsWrite, ScopeAuditRead, ScopeUsersRead})
	switch r {
	case Viewer:
		return viewer
	case Operator:
		return operator
	case Owner:
		return append(operator, ScopeUsersWrite)
	case Superuser:
		return SuperuserScopes()
	}
	return nil
}

// Scopes of people and accounts. Those of accounts are the server's: only superusers and the local socket hold them, and a key that they make for it.
const (
	ScopeUsersRead     = "users:read"     // see the account's users
	ScopeUsersWrite    = "users:write"    // create, change and delete users who may do no more than oneself
	ScopeAccountsRead  = "accounts:read"  // see all accounts of the server
	ScopeAccountsWrite = "accounts:write" // create, disable and delete accounts, and act for each of them
)

// ServerScopes returns the scopes that reach beyond an account. A key holds one only when it is asked for by name.
func ServerScopes() []string { return []string{ScopeAccountsRead, ScopeAccountsWrite} }

// SuperuserScopes returns every scope.
func SuperuserScopes() []string { return append(AdminScopes(), ServerScopes()...) }
