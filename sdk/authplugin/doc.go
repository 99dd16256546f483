// Package authplugin is for writing an auth plugin: a program of its own that decides who a credential belongs to, which a Keyfire
// server starts, supervises and asks. One method makes a plugin, and [Serve] makes a program of it:
//
//	func main() { authplugin.Serve(legacy{}) }
//
//	func (legacy) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
//		user, ok := lookUp(r.Credential)
//		if !ok {
//			return nil, authplugin.Deny("unknown token")
//		}
//		return &authplugin.Principal{Subject: user, Scopes: []string{"run:*"}}, nil
//	}
//
// There are four answers and no others: a principal; [ErrNotMine], which passes the credential on to the next backend its shape
// names; [Deny], which refuses it for good; and any other error, which means that the plugin cannot decide. The server then answers
// 503, for a backend that is down must not look like a wrong password.
//
// A plugin reads its configuration by implementing [Configurer], and lets an operator check one without starting it by implementing
// [Validator]. Whatever it writes to standard error or with log/slog ends up, bounded, in the server's log under the plugin's name.
// Package plugintest runs a plugin as the server does and tells whether it keeps the contract.
package authplugin
