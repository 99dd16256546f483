// Command keyfire-auth-hmac is the auth plugin for signed requests: GitHub, Stripe, Slack, Standard Webhooks, and schemes like theirs.
// README.md beside it says how to configure it.
package main

import "github.com/keyfire/keyfire/sdk/authplugin"

func main() { authplugin.Serve(newBackend()) }
