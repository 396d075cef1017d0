package sdks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"perdure/integration/harness"
)

// patience bounds every wait of the suite but the preparation of a language.
const patience = 60 * time.Second

// preparation is how long fetching and compiling a program may take.
const preparation = 15 * time.Minute

func TestMain(m *testing.M) {
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

// language is one of the programs.
type language struct {
	name  string
	tools []string
	// prepare are the commands that fetch and compile in a copy of the program's directory.
	prepare [][]string
	run     []string
	// requestResponse, signals: the SDK offers it. v7: it speaks version 7 of the service protocol.
	requestResponse, signals, v7 bool

	once sync.Once
	dir  string // where the commands run: a copy of the program's directory; what they make goes to ../build
	err  error
}

var languages = []*language{
	{name: "python", tools: []string{"python3"}, requestResponse: true, signals: true, v7: true,
		prepare: [][]string{{"python3", "-m", "venv", "../build"}, {"../build/bin/pip", "install", "--quiet", "-r", "requirements.txt"}},
		run:     []string{"../build/bin/python", "endpoint.py"}},
	{name: "rust", tools: []string{"cargo", "cc"}, signals: true, v7: true,
		prepare: [][]string{{"cargo", "build", "--quiet", "--target-dir", "../build"}},
		run:     []string{"../build/debug/endpoint"}},
	{name: "java", tools: []string{"mvn", "java"}, requestResponse: true,
		prepare: [][]string{{"mvn", "--quiet", "--batch-mode", "-Dout=../build", "compile", "dependency:copy-dependencies", "-DoutputDirectory=../build/lib"}},
		run:     []string{"java", "-cp", "../build/classes:../build/lib/*", "endpoint.Main"}},
}

// chosen are the languages that PERDURE_SDKS names.
func chosen(t *testing.T) []*language {
	t.Helper()
	names := os.Getenv("PERDURE_SDKS")
	if names == "" {
		t.Skip("PERDURE_SDKS names no language to test")
	}
	if names == "all" {
		return languages
	}
	var all []*language
	for _, name := range strings.Split(names, ",") {
		i := slices.IndexFunc(languages, func(l *language) bool { return l.name == name })
		if i < 0 {
			t.Fatalf("PERDURE_SDKS: there is no program in %q", name)
		}
		all = append(all, languages[i])
	}
	return all
}

// ready prepares the language's program, once.
func (l *language) ready(t *testing.T) {
	t.Helper()
	for _, tool := range l.tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("PERDURE_SDKS") == "all" {
				t.Skip(err)
			}
			t.Fatal(err)
		}
	}
	l.once.Do(func() { l.err = l.make() })
	if l.err != nil {
		t.Fatalf("prepare: %v", l.err)
	}
}

// make copies the program to the cache directory, so that nothing is generated beside the sources, and compiles it there.
// What was fetched and compiled before stays, so that the second time is quick.
func (l *language) make() error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	l.dir = filepath.Join(cache, "perdure-sdks", l.name, "program")
	if err := os.RemoveAll(l.dir); err != nil {
		return err
	}
	if err := os.CopyFS(l.dir, os.DirFS(l.name)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), preparation)
	defer cancel()
	for _, argv := range l.prepare {
		cmd := exec.CommandContext(ctx, l.program(argv[0]), argv[1:]...)
		cmd.Dir = l.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return nil
}

// program is the path of an executable: one in the language's directory, or one of the machine.
func (l *language) program(name string) string {
	if strings.Contains(name, "/") {
		return filepath.Join(l.dir, name)
	}
	return name
}

// endpoint is a running program.
type endpoint struct {
	l    *language
	port int
	env  []string
	log  *os.File
	cmd  *exec.Cmd
}

// serve starts the program with the given environment on a free port, until the test ends.
func (l *language) serve(t *testing.T, env ...string) *endpoint {
	t.Helper()
	ports, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "endpoint.log"))
	if err != nil {
		t.Fatal(err)
	}
	e := &endpoint{l: l, port: ports[0], env: append(env, "PORT="+strconv.Itoa(ports[0])), log: log}
	t.Cleanup(func() {
		e.kill()
		log.Close()
		if b, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("end of the endpoint's log:\n%s", b[max(0, len(b)-8<<10):])
		}
	})
	e.start(t)
	return e
}

func (e *endpoint) url() string { return "http://127.0.0.1:" + strconv.Itoa(e.port) }

// start starts the process and waits until it listens.
func (e *endpoint) start(t *testing.T) {
	t.Helper()
	e.cmd = exec.Command(e.l.program(e.l.run[0]), e.l.run[1:]...)
	e.cmd.Dir, e.cmd.Env = e.l.dir, append(os.Environ(), e.env...)
	e.cmd.Stdout, e.cmd.Stderr = e.log, e.log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		t.Fatalf("start the endpoint: %v", err)
	}
	poll(t, "the endpoint listens", func() error {
		conn, err := net.DialTimeout("tcp", "127.0.0.1:"+strconv.Itoa(e.port), time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// kill ends the process at once and waits for it.
func (e *endpoint) kill() {
	if e.cmd == nil || e.cmd.Process == nil {
		return
	}
	if err := e.cmd.Process.Signal(syscall.SIGKILL); errors.Is(err, os.ErrProcessDone) {
		return
	}
	e.cmd.Wait() // how it ended is known
}

// poll repeats f until it succeeds, or fails the test.
func poll(t *testing.T, what string, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		}
	}
}
