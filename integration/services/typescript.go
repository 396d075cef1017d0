package services

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// TypeScriptMissing says what is missing on this machine to run the TypeScript services, "" if nothing is.
func TypeScriptMissing() string {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return err.Error()
		}
	}
	return ""
}

// TypeScript is the TypeScript endpoint, a node process of its own.
type TypeScript struct {
	// URL is what to register.
	URL string

	cmd   *exec.Cmd
	stdin io.Closer
	done  chan struct{} // closed when the process has been waited for
	once  sync.Once
}

// tsDir is the directory of the TypeScript sources, beside this file.
func tsDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("find the TypeScript services: no caller information")
	}
	dir := filepath.Join(filepath.Dir(file), "ts")
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("find the TypeScript services: %w", err)
	}
	return dir, nil
}

// install installs the SDK with npm unless it is there. Processes that do so at the same time wait for each other.
func install(ctx context.Context, dir string) error {
	lock, err := os.OpenFile(filepath.Join(dir, ".install.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("lock the npm install: %w", err)
	}
	defer lock.Close() // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the npm install: %w", err)
	}
	there := true
	for _, p := range []string{"restate-sdk", "restate-sdk-clients"} {
		_, err := os.Stat(filepath.Join(dir, "node_modules", "@restatedev", p, "package.json"))
		there = there && err == nil
	}
	if there {
		return nil
	}
	cmd := exec.CommandContext(ctx, "npm", "install", "--no-package-lock")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm install in %s: %w: %s", dir, err, out)
	}
	return nil
}

// StartTypeScript starts the TypeScript services with the given prefix, installing the SDK first if need be. Close it.
func StartTypeScript(ctx context.Context, prefix string, requestResponse bool) (*TypeScript, error) {
	dir, err := tsDir()
	if err != nil {
		return nil, err
	}
	if err := install(ctx, dir); err != nil {
		return nil, err
	}
	mode := "bidi"
	if requestResponse {
		mode = "rr"
	}
	t := &TypeScript{cmd: exec.Command("node", "services.mjs", "--port", "0", "--prefix", prefix, "--mode", mode), done: make(chan struct{})}
	t.cmd.Dir, t.cmd.Stderr = dir, os.Stderr
	stdout, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	stdin, err := t.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	t.stdin = stdin
	if err := t.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	lines := bufio.NewReader(stdout)
	line, err := lines.ReadString('\n')
	go func() {
		io.Copy(io.Discard, lines)
		t.cmd.Wait() // how it ended does not matter: Close kills it
		close(t.done)
	}()
	port, ok := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if err != nil || !ok {
		t.Close()
		return nil, fmt.Errorf("start the TypeScript services: got %q instead of the port (%v)", line, err)
	}
	t.URL = "http://127.0.0.1:" + port
	return t, nil
}

// RunTypeScriptClient runs the program that uses the SDK's client of the ingress, on the services with the given prefix. Names
// that it makes up begin with token. It returns the JSON that the program prints.
func RunTypeScriptClient(ctx context.Context, ingress, prefix, token string) ([]byte, error) {
	dir, err := tsDir()
	if err != nil {
		return nil, err
	}
	if err := install(ctx, dir); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "node", "client.mjs", ingress, prefix, token)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run the TypeScript client: %w: %s", err, stderr.Bytes())
	}
	return out, nil
}

// Close ends the process and waits for it. It may be called more than once.
func (t *TypeScript) Close() {
	t.once.Do(func() {
		t.stdin.Close()
		t.cmd.Process.Kill()
	})
	<-t.done
}
