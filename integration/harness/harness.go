// Package harness runs a server under test as a process of its own: it builds Perdure once, starts it on free loopback
// ports with an empty directory, waits until it is healthy, kills it, starts it again on the same directory, and shows
// the end of its log when a test fails.
//
// Which server that is comes from a definition (Def), so the same tests and benchmarks run against any server that
// speaks the same HTTP interfaces. Only tests and benchmarks use this package.
package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// StartTimeout is how long a server may take to become healthy.
const StartTimeout = 60 * time.Second

// Server is one node of a server under test, owned by one test or by a TestMain.
type Server struct {
	c    *Cluster
	node *Node
}

// reserved keeps what FreePorts gave away: a UDP socket on each port, which no server under test wants. The kernel frees them when
// the process ends, however it ends.
var reserved struct {
	sync.Mutex
	sockets []net.PacketConn
}

// FreePorts returns n loopback ports on which nothing listens, and which no process gets from FreePorts again before this one has
// ended: packages are tested at the same time, and a port must not change hands between two lives of a server. They are not among
// those that the kernel hands out by itself (on Linux from 32768, elsewhere from 49152), for connections and other listeners.
func FreePorts(n int) ([]int, error) {
	const first, count = 10_000, 22_000
	reserved.Lock()
	defer reserved.Unlock()
	var ports []int
	for tries := 0; len(ports) < n; tries++ {
		address := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(count))
		socket, err := net.ListenPacket("udp4", address)
		if err == nil {
			var ln net.Listener
			if ln, err = net.Listen("tcp4", address); err != nil {
				socket.Close()
			} else {
				ln.Close()
			}
		}
		if err != nil {
			if tries > 100*n {
				return nil, fmt.Errorf("find a free port: %w", err)
			}
			continue
		}
		reserved.sockets = append(reserved.sockets, socket)
		ports = append(ports, socket.LocalAddr().(*net.UDPAddr).Port)
	}
	return ports, nil
}

// ModuleRoot is the directory that holds go.mod, found from the working directory upwards.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("find the module: no go.mod in the working directory or above it")
		}
		dir = up
	}
}

var build struct {
	once sync.Once
	path string
	err  error
}

// Binary is the Perdure executable under test: PERDURE_BINARY if that is set, else one built from this module, once per
// process. The build lands in a temporary directory that the operating system may keep; the Go build cache makes a
// second build cheap.
func Binary() (string, error) {
	if p := os.Getenv("PERDURE_BINARY"); p != "" {
		return filepath.Abs(p)
	}
	build.once.Do(func() {
		root, err := ModuleRoot()
		if err != nil {
			build.err = err
			return
		}
		dir, err := os.MkdirTemp("", "perdure-build-")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "perdure")
		cmd := exec.Command("go", "build", "-trimpath", "-o", build.path, "./cmd/perdure")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released: where Pebble's memory comes from depends on it
		if out, err := cmd.CombinedOutput(); err != nil {
			os.RemoveAll(dir)
			build.err = fmt.Errorf("build cmd/perdure: %w: %s", err, out)
		}
	})
	return build.path, build.err
}

// Environ is the environment of this process without the variables that begin with prefix: a server under test has the
// settings that its definition gives it, whatever the tests themselves were told.
func Environ(prefix string) []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return prefix != "" && strings.HasPrefix(v, prefix) })
}

// Cleanup removes what Binary built. For TestMain and commands, at the very end.
func Cleanup() {
	if build.path != "" {
		os.RemoveAll(filepath.Dir(build.path))
	}
}

// Open starts a server by the definition (a name or a file, see Load) in dir with the given options (names without
// prefix, such as WORKER__CLEANUP_INTERVAL) and waits until it is healthy. The caller closes it.
func Open(definition, dir string, config map[string]string) (*Server, error) {
	d, err := Load(definition)
	if err != nil {
		return nil, err
	}
	vars := map[string]string{}
	if d.Binary == "${PERDURE_BINARY}" {
		if vars["PERDURE_BINARY"], err = Binary(); err != nil {
			return nil, err
		}
	}
	ports, err := FreePorts(4)
	if err != nil {
		return nil, err
	}
	c := New(d, 1, dir, 0, vars)
	n := c.Nodes[0]
	n.Ingress, n.Admin, n.Fabric, n.Spare = ports[0], ports[1], ports[2], ports[3]
	c.Config = config
	s := &Server{c: c, node: n}
	if err := c.Start(StartTimeout); err != nil {
		err = fmt.Errorf("%w\n%s", err, s.LogTail(4<<10))
		s.Close()
		return nil, err
	}
	return s, nil
}

// Start is Open for a test: it fails the test on errors, closes the server when the test ends, and shows the end of the
// server's log when the test failed.
func Start(t testing.TB, definition string, config map[string]string) *Server {
	t.Helper()
	s, err := Open(definition, t.TempDir(), config)
	if err != nil {
		t.Fatalf("start server: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", s.LogTail(16<<10))
		}
		s.Close()
		if crash := s.Crash(); crash != "" {
			t.Errorf("the server found fault with itself:\n%s", crash)
		}
	})
	return s
}

// Ingress is the base URL of the ingress, without trailing slash.
func (s *Server) Ingress() string { return fmt.Sprintf("http://127.0.0.1:%d", s.node.Ingress) }

// Admin is the base URL of the admin API, without trailing slash.
func (s *Server) Admin() string { return fmt.Sprintf("http://127.0.0.1:%d", s.node.Admin) }

// NodePort is the base URL of the port between nodes, which also has metrics, without trailing slash.
func (s *Server) NodePort() string { return fmt.Sprintf("http://127.0.0.1:%d", s.node.Fabric) }

// Pid is the server's process, 0 when it does not run.
func (s *Server) Pid() int { return s.node.Pid() }

// Kill kills the server at once (SIGKILL) and waits until it is gone.
func (s *Server) Kill() { s.node.Kill() }

// Stop ends the server politely (SIGTERM), hard once ctx is done, and waits until it is gone.
func (s *Server) Stop(ctx context.Context) { s.c.StopContext(ctx) }

// Restart starts the server on the same directory and ports and waits until it is healthy.
func (s *Server) Restart() error {
	if err := s.c.StartNode(s.node); err != nil {
		return fmt.Errorf("restart server: %w", err)
	}
	if err := s.c.Ready(StartTimeout); err != nil {
		return fmt.Errorf("restart server: %w\n%s", err, s.LogTail(4<<10))
	}
	return nil
}

// warmUpTimeout is how long the first call of an SDK may take. It compiles its state machine then, for seconds with the race
// detector, and for minutes where many share the processors.
const warmUpTimeout = 5 * time.Minute

// WarmUp calls a handler, by its path at the ingress and without a body, so that the SDK is ready for what has less patience. It
// fails the test, with the end of the server's log, unless the answer is 200 within 5 minutes.
func (s *Server) WarmUp(t testing.TB, method, path string) {
	t.Helper()
	if err := s.warmUp(t.Context(), method, path, warmUpTimeout); err != nil {
		t.Fatalf("warm up: %v\n%s", err, s.LogTail(4<<10))
	}
}

func (s *Server) warmUp(ctx context.Context, method, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Ingress()+path, nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New("not 200")
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %.300s", resp.Status, err, body)
	}
	return nil
}

// LogTail is the last n bytes of the server's log.
func (s *Server) LogTail(n int64) string {
	f, err := os.Open(s.node.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	b := make([]byte, min(n, fi.Size()))
	if _, err := f.ReadAt(b, fi.Size()-int64(len(b))); err != nil {
		return err.Error()
	}
	return string(b)
}

// crashMarks begin what a Go program prints when it found a data race or died of a panic.
var crashMarks = [][]byte{[]byte("WARNING: DATA RACE"), []byte("\npanic: "), []byte("\nfatal error: ")}

// Crash is what the server printed about a data race or a panic (its first 8 KiB), "" if it did not. A race is found only
// by an executable built with -race, which goes on afterwards, so whoever runs one must ask.
func (s *Server) Crash() string {
	b, err := os.ReadFile(s.node.Log)
	if err != nil {
		return err.Error()
	}
	for _, mark := range crashMarks {
		if i := bytes.Index(b, mark); i >= 0 {
			return string(b[i:min(len(b), i+8<<10)])
		}
	}
	return ""
}

// Close kills the server if it still runs. It may be called more than once; the directory stays.
func (s *Server) Close() { s.node.Kill() }
