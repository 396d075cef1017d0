package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"perdure/integration/harness"
)

// TestMain lets this test binary stand in for the programs that the demo starts.
func TestMain(m *testing.M) {
	switch os.Getenv("DEMO_TEST_ROLE") {
	case "":
		os.Exit(m.Run())
	case "failing":
		os.Exit(3)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	if len(os.Args) > 2 && os.Args[1] == "-addr" {
		ln, err := net.Listen("tcp", os.Args[2])
		if err != nil {
			os.Exit(4)
		}
		defer ln.Close()
	} else if err := standInServer(os.Args); err != nil {
		os.Exit(5)
	}
	<-stop
}

// standInServer answers on the addresses of the flags as a server would.
func standInServer(args []string) error {
	for i, a := range args {
		if a != "--ingress-bind-address" && a != "--admin-bind-address" {
			continue
		}
		ln, err := net.Listen("tcp", args[i+1])
		if err != nil {
			return err
		}
		go func() { _ = http.Serve(ln, standIn(new(atomic.Int32))) }()
	}
	return nil
}

// standIn registers and greets; its first greeting asks to try again.
func standIn(greetings *atomic.Int32) http.Handler {
	mux := http.NewServeMux()
	ok := func(w http.ResponseWriter, _ *http.Request) {}
	mux.HandleFunc("GET /health", ok)
	mux.HandleFunc("GET /restate/health", ok)
	mux.HandleFunc("POST /deployments", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if !bytes.HasPrefix(body, []byte(`{"uri":"http://127.0.0.1:`)) || r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "bad registration", http.StatusBadRequest)
		}
	})
	mux.HandleFunc("POST /Greeter/Greet", func(w http.ResponseWriter, r *http.Request) {
		if greetings.Add(1) == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, `{"message":"Hello"}`)
	})
	return mux
}

func testDemo(t *testing.T, role string) (*demo, *bytes.Buffer) {
	t.Helper()
	t.Setenv("DEMO_TEST_ROLE", role)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	d := &demo{server: self, example: self, data: t.TempDir(), out: &out, patience: time.Minute}
	ports, err := harness.FreePorts(4)
	if err != nil {
		t.Fatal(err)
	}
	for i, addr := range []*string{&d.ingress, &d.admin, &d.node, &d.services} {
		*addr = fmt.Sprintf("127.0.0.1:%d", ports[i])
	}
	return d, &out
}

// cancelOn cancels when the demo has said that it runs.
type cancelOn struct {
	*bytes.Buffer
	cancel context.CancelFunc
}

func (c cancelOn) Write(p []byte) (int, error) {
	defer c.cancel()
	return c.Buffer.Write(p)
}

func TestDemoRunsUntilInterrupted(t *testing.T) {
	d, out := testDemo(t, "normal")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d.out = cancelOn{out, cancel}
	if err := d.run(ctx); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`it answered  {"message":"Hello"}`, "curl http://" + d.ingress + "/Greeter/Greet"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q was not said in %s", want, out)
		}
	}
	if err := d.portsFree(); err != nil {
		t.Errorf("the programs are still there: %v", err)
	}
}

func TestDemoSaysThatAProgramEnded(t *testing.T) {
	d, _ := testDemo(t, "failing")
	if err := d.run(context.Background()); err == nil || !strings.Contains(err.Error(), "ended: exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestDemoSaysThatAPortIsTaken(t *testing.T) {
	d, _ := testDemo(t, "normal")
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	d.admin = s.Listener.Addr().String()
	if err := d.run(context.Background()); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "RUNFLAGS='-admin") {
		t.Errorf("got %v", err)
	}
}

func TestDemoSaysWhichProgramIsMissing(t *testing.T) {
	d, _ := testDemo(t, "normal")
	d.example = "/none/example"
	if err := d.run(context.Background()); err == nil || !strings.Contains(err.Error(), "start /none/example (make build builds it)") {
		t.Errorf("got %v", err)
	}
}
