// Command keyfire-auth-introspection is the auth plugin for opaque OAuth tokens: it asks the authorization server that gave them out
// (RFC 7662). README.md beside it says how to configure it.
package main

import "github.com/keyfire/keyfire/sdk/authplugin"

func main() { authplugin.Serve(newBackend()) }
