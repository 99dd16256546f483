package wasm

const sysMemfdCreate = 279
