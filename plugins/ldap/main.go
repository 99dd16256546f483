// Command keyfire-auth-ldap is the auth plugin for user names and passwords of an LDAP directory. README.md beside it says how to configure
// it.
package main

import "github.com/keyfire/keyfire/sdk/authplugin"

func main() { authplugin.Serve(newBackend()) }
