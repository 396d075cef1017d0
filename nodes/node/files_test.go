package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// fewFiles is set in the process that runs as the node of TestOutOfFiles: its data directory.
const fewFiles = "PERDURE_TEST_FEW_FILES"

// TestOutOfFiles: clients that open more connections than the process may open files leave it enough of them for its own work
// and for operators, and are served once others have gone.
func TestOutOfFiles(t *testing.T) {
	if dir := os.Getenv(fewFiles); dir != "" {
		runWithFewFiles(t, dir)
		return
	}
	cmd := exec.Command("/bin/sh", "-c", `ulimit -n 256 && exec "$0" -test.run='^TestOutOfFiles$'`, os.Args[0])
	cmd.Env = append(os.Environ(), fewFiles+"="+t.TempDir())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	lines := bufio.NewScanner(stdout)
	// line waits for the process to print what begins with prefix.
	line := func(prefix string) string {
		t.Helper()
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return rest
			}
		}
		t.Fatalf("the process ended before it printed %q", prefix)
		return ""
	}
	ingress, admin, _ := strings.Cut(line("addresses "), " ")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(url string) {
		t.Helper()
		r, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		if r.Body.Close(); r.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", url, r.Status)
		}
	}
	flooding, over := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	for range 300 {
		flood.Go(func() {
			var d net.Dialer
			c, err := d.DialContext(flooding, "tcp", strings.Trim(strings.TrimPrefix(ingress, "http:"), "/"))
			if err != nil {
				return // over before it had its turn: the queue of the system was full as well
			}
			<-flooding.Done()
			_ = c.Close() // nothing was sent
		})
	}
	stop := func() { over(); flood.Wait() }
	defer stop()
	line("full ")
	get(admin + "health")
	fmt.Fprintln(stdin, "open files")
	if got := line("opened "); got != "<nil>" {
		t.Errorf("the node itself cannot open files: %s", got)
	}
	stop()
	get(ingress + "restate/health")
	stdin.Close()
	for lines.Scan() { // to the end
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
}

// runWithFewFiles is a node that says where it listens and when its ingress is full, opens files when it is told to, and ends
// with its input.
func runWithFewFiles(t *testing.T, dir string) {
	n, err := Start(context.Background(), small(dir), "test", slog.New(fullHandler{slog.DiscardHandler}))
	if err != nil {
		t.Fatal(err)
	}
	a := n.Addresses()
	fmt.Printf("addresses %s %s\n", a.Ingress, a.Admin)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var err error
		for range 40 {
			var f *os.File
			if f, err = os.Open(os.DevNull); err != nil {
				break
			}
			defer f.Close()
		}
		fmt.Println("opened", err)
	}
	select {
	case err := <-n.Done():
		t.Errorf("the node ended: %v", err)
	default:
	}
	stopNode(t, n)
}

// fullHandler prints that connections wait.
type fullHandler struct{ slog.Handler }

func (h fullHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h fullHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h fullHandler) WithGroup(string) slog.Handler { return h }

func (h fullHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "limit of open files") {
		fmt.Println("full", r.Message)
	} else {
		fmt.Fprintln(os.Stderr, r.Message)
	}
	return nil
}

// TestBoundedListener: a connection beyond the bound waits for another to be closed, however often that is, and Close ends an
// Accept that waits.
func TestBoundedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := bound(inner, 1, slog.New(slog.DiscardHandler))
	accepted, ended := make(chan net.Conn), make(chan error)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	for range 2 {
		if len(l.open) != 1 {
			t.Errorf("%d connections are counted, want 1", len(l.open))
		}
		first.Close()
		first.Close() // as net/http may
		first = <-accepted
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != net.ErrClosed {
		t.Errorf("accept ended with %v, want net.ErrClosed", err)
	}
	if _, err := first.Write([]byte("x")); err != nil {
		t.Errorf("a connection ended with the listener: %v", err)
	}
	first.Close()
	if len(l.open) != 0 {
		t.Errorf("%d connections are counted at the end", len(l.open))
	}
}

// TestRefusalEndsInOrder: a client whose header is too large reads the answer to its end, as from a server without bound.
func TestRefusalEndsInOrder(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{MaxHeaderBytes: 1 << 10, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(bound(ln, 4, slog.New(slog.DiscardHandler))) }()
	defer func() {
		_ = srv.Close()
		<-served
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The server reads 4 KiB more than the limit and leaves the rest, so closing at once would reset the connection.
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nA: %s", strings.Repeat("a", 16<<10)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 431 ") {
		t.Errorf("answer %q ended with %v", answer, err)
	}
}
