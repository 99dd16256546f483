module github.com/keyfire/keyfire/examples/nodes

go 1.24
