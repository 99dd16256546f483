module github.com/keyfire/keyfire/examples/nodes

go 1.24

require github.com/keyfire/keyfire/sdk/node v0.0.0

// This module is never published: it shows the SDK beside it.
replace github.com/keyfire/keyfire/sdk/node => ../../sdk/node
