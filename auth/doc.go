// Package auth turns a credential into a principal. It holds the key format, the type secrets live in, the Authenticator
// contract, the chain that asks authenticators in order, and the keyring, which is the authenticator for built-in API keys.
//
// An Authenticator has three outcomes and no others: a principal; [ErrNotApplicable], which passes the credential on to the next one
// in the chain; or any other error, which stops the chain and refuses the request. There is no cache of positive answers
// anywhere: whoever admits a run checks the key's state again in the transaction that writes the run.
package auth
