package wasm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/keyfire/keyfire/core"
)

// Bounds of a compilation. The first two hold on Linux; elsewhere the wall clock alone stops a child.
const (
	childMemory = 1 << 30          // bytes of address space beyond what the process starts with
	childCPU    = 20               // seconds of CPU
	childWall   = 25 * time.Second // from start to answer
	childBusy   = 10 * time.Second // of CPU: a child that got less than this within childWall was kept from working
	childLoad   = 2 * time.Second  // of CPU, to read the compiled module back, which the server will have to do
	childAnswer = 64 << 10         // bytes of the answer
)

// childRequest is the line of JSON that begins a child's standard input. The module's bytes follow it.
type childRequest struct {
	Dir    string `json:"dir"`  // where to put what was compiled
	Size   int    `json:"size"` // bytes of the module
	Memory int64  `json:"memory"`
	CPU    int    `json:"cpu"`
}

// childAnswerJSON is what a child writes to standard output. Without an error the directory holds the compiled module.
type childAnswerJSON struct {
	Refused string `json:"refused,omitempty"` // what is wrong with the module
	Failed  string `json:"failed,omitempty"`  // what went wrong otherwise
}

// CompileChild is the main function of the process that modules are compiled in, Config.CompileCommand: it reads one module from stdin,
// compiles it within hard limits of memory and CPU that it sets on its own process, answers on stdout, and returns the exit code.
//
// It lowers the limits of the calling process for good, so call it only from a main that was started for the purpose.
func CompileChild(stdin io.Reader, stdout io.Writer) int {
	in := bufio.NewReader(stdin)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return answer(stdout, childAnswerJSON{Failed: "read the request: " + err.Error()})
	}
	var req childRequest
	if err := json.Unmarshal(line, &req); err != nil || req.Size < 0 || req.Size > core.MaxModule {
		return answer(stdout, childAnswerJSON{Failed: fmt.Sprintf("malformed request: %v", err)})
	}
	if err := limitProcess(req.Memory, req.CPU); err != nil {
		return answer(stdout, childAnswerJSON{Failed: err.Error()})
	}
	// Collect before the limit is hit: the hard limit kills.
	debug.SetMemoryLimit(req.Memory * 3 / 4)
	binary := make([]byte, req.Size)
	if _, err := io.ReadFull(in, binary); err != nil {
		return answer(stdout, childAnswerJSON{Failed: "read the module: " + err.Error()})
	}
	refused, failed := compileInto(context.Background(), req.Dir, binary)
	var a childAnswerJSON
	if refused != nil {
		a.Refused = cut(refused.Error()) // it may name what the module has, at any length
	}
	if failed != nil {
		a.Failed = failed.Error()
	}
	return answer(stdout, a)
}

func answer(w io.Writer, a childAnswerJSON) int {
	if err := json.NewEncoder(w).Encode(a); err != nil {
		return 1
	}
	return 0
}

// compileInto compiles a module into an engine cache in dir, and then loads it from there as the server will. refused is an error of the
// module, failed any other.
func compileInto(ctx context.Context, dir string, binary []byte) (refused, failed error) {
	_, m, err := examine(binary)
	if err != nil {
		return err, nil
	}
	rw, err := rewrite(m)
	if err != nil {
		return err, nil
	}
	small, refused, failed := compileOutlined(ctx, dir, rw.binary)
	if refused != nil || failed != nil {
		return refused, failed
	}
	file, err := onlyFile(dir)
	if err != nil {
		return nil, err
	}
	code := held{path: filepath.Join(dir, file)}
	if code.File, err = os.Open(code.path); err != nil {
		return nil, err
	}
	defer code.Close()
	began := cpuTime()
	refused, failed = compileOnce(ctx, dir, small)
	took := cpuTime() - began
	switch {
	case refused != nil || failed != nil:
	case !code.there():
		failed = errors.New("the engine does not find what it has compiled")
	case took > childLoad:
		refused = fmt.Errorf("loading it takes %s of CPU once it is compiled; at most %s are allowed", took.Round(time.Millisecond), childLoad)
	}
	return refused, failed
}

func compileOnce(ctx context.Context, dir string, binary []byte) (refused, failed error) {
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return nil, err
	}
	defer cache.Close(ctx)
	rt := wazero.NewRuntimeWithConfig(ctx, engineConfig().WithCompilationCache(cache))
	defer rt.Close(ctx)
	compiled, err := rt.CompileModule(ctx, binary)
	var disk *fs.PathError
	if errors.As(err, &disk) { // the cache could not be written, which is no fault of the module
		return nil, err
	}
	if err != nil {
		return err, nil
	}
	return nil, compiled.Close(ctx)
}
