package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain is also the server under test: started with FAKE_ADDRS it answers health checks there, notes in its directory
// how it began and ended, and ends on SIGTERM.
func TestMain(m *testing.M) {
	if addrs := os.Getenv("FAKE_ADDRS"); addrs != "" {
		fake(strings.Split(addrs, ","))
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

func note(line string) {
	f, err := os.OpenFile("notes", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

func fake(addrs []string) {
	note("begin " + os.Getenv("FAKE_WORD"))
	if os.Getenv("FAKE_WORD") == "broken" {
		fmt.Println("this is why")
		os.Exit(3)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for _, a := range addrs {
		ln, err := net.Listen("tcp", a)
		if err != nil {
			panic(err)
		}
		go http.Serve(ln, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	<-ctx.Done()
	note("end")
}

func definition(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fake.json")
	def := fmt.Sprintf(`{"name":"fake","binary":%q,"args":["-test.run=^$"],"config_prefix":"FAKE_","env":{"FAKE_ADDRS":"127.0.0.1:${ingress},127.0.0.1:${admin}","FAKE_WORD":"default"}}`, os.Args[0])
	if err := os.WriteFile(file, []byte(def), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

func notes(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "n1", "notes"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(b)), "\n", ", ")
}

func TestStartKillRestartStop(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(definition(t), dir, map[string]string{"WORD": "option"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	resp, err := http.Get(s.Admin() + "/health")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	ingress := s.Ingress()
	s.Kill()
	if s.Pid() != 0 {
		t.Error("still running after Kill")
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if s.Ingress() != ingress {
		t.Errorf("moved from %s to %s", ingress, s.Ingress())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s.Stop(ctx)
	if s.Pid() != 0 {
		t.Error("still running after Stop")
	}
	s.Close()
	s.Close()
	if crash := s.Crash(); crash != "" {
		t.Errorf("crash %q", crash)
	}
	f, err := os.OpenFile(s.node.Log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "so\npanic: because\n")
	f.Close()
	if crash := s.Crash(); !strings.Contains(crash, "panic: because") {
		t.Errorf("crash %q", crash)
	}
	if got, want := notes(t, dir), "begin option, begin option, end"; got != want {
		t.Errorf("notes %q, want %q", got, want)
	}
}

func TestFailedStartShowsTheLog(t *testing.T) {
	_, err := Open(definition(t), t.TempDir(), map[string]string{"WORD": "broken"})
	if err == nil || !strings.Contains(err.Error(), "this is why") || !strings.Contains(err.Error(), "ended") {
		t.Errorf("got %v, want an error with the end of the log", err)
	}
}

func TestDefinitions(t *testing.T) {
	for _, name := range []string{"perdure", "restate"} {
		d, err := Load(name)
		if err != nil || d.Name != name || d.ConfigPrefix == "" {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	d, err := Load(write("more.json", `{"extends":"restate","name":"more","env":{"X":"1"}}`))
	if err != nil || d.Name != "more" || d.Env["X"] != "1" || d.Env["DO_NOT_TRACK"] != "1" {
		t.Errorf("extended: %+v, %v", d, err)
	}
	for says, text := range map[string]string{"unknown field": `{"name":"x","binary":"y","nope":1}`, "are needed": `{"name":"x"}`, "too deep": `{"extends":"loop.json"}`} {
		if _, err := Load(write("loop.json", text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
	c := New(&Def{Name: "x", Binary: "${NOT_SET_ANYWHERE}"}, 1, dir, 1, nil)
	if err := c.StartNode(c.Nodes[0]); err == nil || !strings.Contains(err.Error(), "NOT_SET_ANYWHERE") {
		t.Errorf("missing variable: %v", err)
	}
}

// TestFreePortsAreNotGivenAwayTwice: a port stays with who got it, also while nothing listens there.
func TestFreePortsAreNotGivenAwayTwice(t *testing.T) {
	seen := map[int]bool{}
	for range 2 {
		ports, err := FreePorts(20)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ports {
			if seen[p] {
				t.Errorf("port %d twice", p)
			}
			seen[p] = true
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if err != nil {
				t.Errorf("port %d cannot be used: %v", p, err)
				continue
			}
			ln.Close()
			if socket, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", p)); err == nil {
				socket.Close()
				t.Errorf("port %d is not held against other processes", p)
			}
		}
	}
}

// What the tests themselves are told by their environment must not become settings of the servers that they start.
func TestEnvironLeavesSettingsOut(t *testing.T) {
	t.Setenv("SOME_SERVER_SETTING", "x")
	t.Setenv("SOMETHING_ELSE", "y")
	env := Environ("SOME_SERVER_")
	if slices.Contains(env, "SOME_SERVER_SETTING=x") || !slices.Contains(env, "SOMETHING_ELSE=y") {
		t.Errorf("the environment is %q", env)
	}
}

// What does not answer, or not with 200, ends a warm-up.
func TestWarmUp(t *testing.T) {
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/fails":
			http.Error(w, "out of order", http.StatusInternalServerError)
		case "/hangs":
			<-r.Context().Done()
		}
	}))
	defer ts.Close()
	s := &Server{node: &Node{Ingress: ts.Listener.Addr().(*net.TCPAddr).Port}}
	s.WarmUp(t, http.MethodGet, "/works")
	if err := s.warmUp(t.Context(), http.MethodGet, "/fails", time.Minute); err == nil || !strings.Contains(err.Error(), "500 Internal Server Error: not 200: out of order") {
		t.Errorf("a failing handler: %v", err)
	}
	if err := s.warmUp(t.Context(), http.MethodGet, "/hangs", time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a hanging handler: %v", err)
	}
}
