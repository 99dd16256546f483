module github.com/keyfire/keyfire/examples/nodes/gallery/go

go 1.24

require github.com/keyfire/keyfire/sdk/node v0.0.0

replace github.com/keyfire/keyfire/sdk/node => ../../../../sdk/node
