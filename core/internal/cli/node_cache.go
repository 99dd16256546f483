package cli

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

const (
	// nodeCacheSize is how much keyfire node keeps of what it compiled: some 25 Go programs, or hundreds in other languages.
	nodeCacheSize = 512 << 20
	// nodeCacheOff keeps nothing. It is the value of a flag that otherwise names a directory; one of that name is ./off.
	nodeCacheOff = "off"
)

// cacheFlag gives a command the flag that says where compiled modules are kept.
func (a *app) cacheFlag(flags *pflag.FlagSet) *string {
	dir := lookup(a.Environ, envNodeCache)
	if dir == "" {
		dir = defaultCache(a.Environ)
	}
	return flags.String("cache", dir, "directory that keeps the compiled module for the next time, or off (env "+envNodeCache+")")
}

// defaultCache is off for a process without a home.
func defaultCache(environ []string) string {
	if dir := lookup(environ, "XDG_CACHE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "keyfire")
	}
	if home := lookup(environ, "HOME"); home != "" {
		return filepath.Join(home, ".cache", "keyfire")
	}
	return nodeCacheOff
}

// compiled makes a runtime in which a module is compiled. What could not be found or kept in the cache is in a directory that lasts as long as the command:
// close must be called.
func (a *app) compiled(ctx context.Context, c wasm.Config, cache string, binary []byte) (rt *wasm.Runtime, info wasm.Info, done func() error, err error) {
	if cache == "" {
		return nil, info, nil, usagef("--cache: names no directory; off keeps nothing")
	}
	if cache != nodeCacheOff {
		// Below the directory, because the cache's key is kept beside the cache.
		c.CacheDir, c.CacheSize = filepath.Join(cache, "modules"), nodeCacheSize
		if err = ownDir("cache", cache); err == nil {
			rt, info, err = compileIn(ctx, c, binary)
		}
		if err == nil {
			return rt, info, func() error { return rt.Close(context.WithoutCancel(ctx)) }, nil
		}
		if core.CodeOf(err) != core.CodeInternal || ctx.Err() != nil {
			return nil, info, nil, err // whatever the cache is like
		}
		a.note("the module is compiled for this time only: %v; --cache names another directory, or off", err)
	}
	dir, err := os.MkdirTemp("", "keyfire-node-")
	if err != nil {
		return nil, info, nil, err
	}
	c.CacheDir, c.CacheSize = filepath.Join(dir, "modules"), 0
	if rt, info, err = compileIn(ctx, c, binary); err != nil {
		return nil, info, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return rt, info, func() error { return errors.Join(rt.Close(context.WithoutCancel(ctx)), os.RemoveAll(dir)) }, nil
}

func compileIn(ctx context.Context, c wasm.Config, binary []byte) (*wasm.Runtime, wasm.Info, error) {
	rt, err := wasm.New(ctx, c)
	if err != nil {
		return nil, wasm.Info{}, err
	}
	info, err := rt.Compile(ctx, binary)
	if err != nil {
		return nil, info, errors.Join(err, rt.Close(context.WithoutCancel(ctx)))
	}
	return rt, info, nil
}
