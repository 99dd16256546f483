// Package authv1 is the generated code of version 1 of the auth plugin protocol, auth.proto. Plugin authors use package
// authplugin, which wraps it; the protocol itself is for plugins in other languages and for the server.
package authv1

//go:generate ./generate.sh
