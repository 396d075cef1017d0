// Command jitter runs go test with a scheduler that makes goroutines race: whenever one wakes up, or takes or releases a
// mutex, it may yield to others for a while, or keep its processor busy for up to some milliseconds. Tests that rest on an
// order that nobody promises fail once in a thousand runs on a calm machine, and much more often here. Its arguments are
// those of go test:
//
//	go run ./integration/jitter -run TestLostConnection -count 500 ./invokers/h2
//
// The jitter is put into copies of two files of the standard library, with go test's -overlay. It is drawn anew in each
// run, so there is no seed; GOMAXPROCS changes much, also beyond the cores of the machine. In a bubble of testing/synctest
// it takes no time.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// A patch is one change to a file of the standard library. What it looks for is there exactly once.
type patch struct {
	file     string // below src of GOROOT
	from, to string
}

// jitter may not yield where the runtime relies on going on at once: on its own stacks, in its own goroutines, and while it
// holds locks. A worker of the garbage collector may not even be preempted after it was woken, so it does not come here.
const jitter = `
//go:linkname sync_jitter internal/sync.runtime_jitter
func sync_jitter() { jitter() }

func jitter() {
	gp := getg()
	if gp.m.curg != gp || gp.m.locks != 0 || gp.m.mallocing != 0 || gp.m.preemptoff != "" || !mainStarted || isSystemGoroutine(gp, false) {
		return
	}
	switch dice := cheaprandn(8192); {
	case dice < 3:
		usleep(1000 + cheaprandn(12000))
	case dice < 40:
		usleep(20 + cheaprandn(400))
	case dice < 900:
		for n := 1 + cheaprandn(4); n > 0; n-- {
			Gosched()
		}
	}
}
`

var patches = []patch{
	{"runtime/proc.go", "\n\tmcall(park_m)\n}\n", "\n\tmcall(park_m)\n\tif reason != waitReasonGCWorkerIdle {\n\t\tjitter()\n\t}\n}\n" + jitter},
	{"internal/sync/mutex.go", "func (m *Mutex) Lock() {\n", "func (m *Mutex) Lock() {\n\truntime_jitter()\n"},
	{"internal/sync/mutex.go", "func (m *Mutex) Unlock() {\n", "//go:linkname runtime_jitter\nfunc runtime_jitter()\n\nfunc (m *Mutex) Unlock() {\n\tdefer runtime_jitter()\n"},
}

// overlay writes the changed files to dir, and the file for -overlay, whose name it returns.
func overlay(goroot, dir string) (string, error) {
	replace, changed := map[string]string{}, map[string]string{}
	for _, p := range patches {
		original := filepath.Join(goroot, "src", filepath.FromSlash(p.file))
		if replace[original] == "" {
			b, err := os.ReadFile(original)
			if err != nil {
				return "", err
			}
			replace[original] = filepath.Join(dir, strings.ReplaceAll(p.file, "/", "_"))
			changed[original] = string(b)
		}
		if n := strings.Count(changed[original], p.from); n != 1 {
			return "", fmt.Errorf("%s has %q %d times, not once: this version of Go needs another patch", original, p.from, n)
		}
		changed[original] = strings.Replace(changed[original], p.from, p.to, 1)
	}
	for original, text := range changed {
		if err := os.WriteFile(replace[original], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o600)
}

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "jitter:", err)
		code = 2
	}
	os.Exit(code)
}

// run returns the exit code of go test.
func run(args []string) (int, error) {
	if len(args) == 0 {
		return 0, fmt.Errorf("say what to test, as to go test: jitter -run TestX -count 500 ./invokers/h2")
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return 0, fmt.Errorf("go env GOROOT: %w", err)
	}
	dir, err := os.MkdirTemp("", "jitter")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	file, err := overlay(strings.TrimSpace(string(goroot)), dir)
	if err != nil {
		return 0, err
	}
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT) // go test ends by it, and then this; to ignore it would be inherited
	cmd := exec.Command("go", append([]string{"test", "-race", "-overlay", file}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}
