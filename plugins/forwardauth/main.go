// Command keyfire-auth-forwardauth is the auth plugin that leaves the decision to an HTTP service of one's own, as Envoy's ext_authz and
// the forward-auth of other proxies do. README.md beside it says how to configure it.
package main

import "github.com/keyfire/keyfire/sdk/authplugin"

func main() { authplugin.Serve(newBackend()) }
