package node

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// serving runs a server as a node does, with its log in the buffer; it is stopped at the end of the test, before which the
// buffer must not be read.
func serving(t *testing.T, srv *http.Server) (addr string, log *bytes.Buffer, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log = new(bytes.Buffer)
	n := &Node{cfg: small(t.TempDir()), log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelInfo})), done: make(chan error, 1)}
	n.serve("ingress", 100, ln, srv, nil)
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := n.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return ln.Addr().String(), log, stop
}

// A panic of a handler must not hide among what net/http says about clients.
func TestPanicsOfHandlersAreErrors(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	addr, log, stop := serving(t, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("the handler's mistake") })})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if _, err := client.Get("http://" + addr); err == nil {
		t.Error("there is an answer")
	}
	stop()
	for _, want := range []string{"level=ERROR", "server=ingress", "the handler's mistake", "serve_test.go"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log)
		}
	}
}

// A client that makes no sense is not worth a line.
func TestMistakesOfClientsAreNotLogged(t *testing.T) {
	l := new(bytes.Buffer)
	w := serverLog{slog.New(slog.NewTextHandler(l, nil))}
	if _, err := w.Write([]byte("http: TLS handshake error from 127.0.0.1:1: EOF\n")); err != nil || l.Len() > 0 {
		t.Errorf("%v: %s", err, l)
	}
	if _, err := w.Write([]byte("http: Accept error: accept tcp: too many open files; retrying in 5ms\n")); err != nil || !strings.Contains(l.String(), "level=WARN") {
		t.Errorf("%v: %s", err, l)
	}
}

// Whoever announces a body to the node port and does not send it is answered and cut off.
func TestNodePortDoesNotWaitForBodies(t *testing.T) {
	n := &Node{}
	addr, _, _ := serving(t, n.nodeServer())
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(conn, "POST /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || r.StatusCode != http.StatusNotFound {
		t.Errorf("%v %v", r, err)
	}
}
