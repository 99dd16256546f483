package wasm

const sysMemfdCreate = 319
