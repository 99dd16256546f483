module github.com/keyfire/keyfire/sdk/node

go 1.24
