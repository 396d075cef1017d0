package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/smithy-go/logging"

	"perdure/cmd/settings"
	"perdure/nodes/node"
)

// fakeNode is a node whose end and shutdown the test decides.
type fakeNode struct {
	done     chan error
	shutdown func(context.Context) error
	ready    func() // called when the start is over
}

func (n *fakeNode) Addresses() node.Addresses {
	if n.ready != nil {
		n.ready()
	}
	return node.Addresses{Ingress: "http://127.0.0.1:1/", Admin: "http://127.0.0.1:2/", Fabric: "http://127.0.0.1:3/"}
}
func (n *fakeNode) Done() <-chan error { return n.done }
func (n *fakeNode) Shutdown(ctx context.Context) error {
	if n.shutdown == nil {
		return nil
	}
	return n.shutdown(ctx)
}

// testServer is a server command past its settings.
func testServer(t *testing.T, start func(context.Context, node.Config, *slog.Logger) (runningNode, error)) (*server, chan os.Signal, *buffer) {
	t.Helper()
	var errs buffer
	l, err := settings.Load(settings.Sources{Env: []string{"PERDURE_NODE_NAME=n1"}})
	if err != nil {
		t.Fatal(err)
	}
	signals := make(chan os.Signal, 4)
	a := &app{out: &errs, err: &errs, start: start}
	return &server{app: a, loaded: l, log: slog.New(slog.NewTextHandler(&errs, nil)), signals: signals}, signals, &errs
}

func started(n runningNode) func(context.Context, node.Config, *slog.Logger) (runningNode, error) {
	return func(context.Context, node.Config, *slog.Logger) (runningNode, error) { return n, nil }
}

func TestSignalShutsDownGracefully(t *testing.T) {
	stopped := false
	var signals chan os.Signal
	ready := func() {
		signals <- syscall.SIGUSR1
		signals <- syscall.SIGTERM
	}
	s, signals, errs := testServer(t, started(&fakeNode{ready: ready, shutdown: func(ctx context.Context) error {
		if _, bounded := ctx.Deadline(); !bounded {
			t.Error("the shutdown has no end")
		}
		stopped = true
		return nil
	}}))
	if err := s.run(context.Background()); err != nil || !stopped {
		t.Errorf("got %v, stopped %v", err, stopped)
	}
	for _, want := range []string{"is ready", "perdure deployments register http://localhost:9080 --admin-url http://127.0.0.1:2/", "curl http://127.0.0.1:1/SERVICE/HANDLER",
		`node-name = "n1"`, "msg=stopped"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q was not said in:\n%s", want, errs)
		}
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	release := make(chan struct{})
	var signals chan os.Signal
	s, signals, _ := testServer(t, started(&fakeNode{ready: func() { signals <- syscall.SIGINT }, shutdown: func(context.Context) error {
		signals <- syscall.SIGINT
		<-release
		return nil
	}}))
	var code exitCode
	if err := s.run(context.Background()); !errors.As(err, &code) || code != 1 {
		t.Errorf("got %v", err)
	}
	close(release)
}

func TestSignalDuringStart(t *testing.T) {
	var signals chan os.Signal
	s, signals, errs := testServer(t, func(ctx context.Context, _ node.Config, _ *slog.Logger) (runningNode, error) {
		signals <- syscall.SIGTERM
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if err := s.run(context.Background()); err != nil || strings.Contains(errs.String(), "is ready") {
		t.Errorf("got %v, said %s", err, errs)
	}
}

// A start that wins the race against the signal must still be undone.
func TestSignalDuringStartThatSucceeds(t *testing.T) {
	stopped := false
	var signals chan os.Signal
	s, signals, _ := testServer(t, func(ctx context.Context, _ node.Config, _ *slog.Logger) (runningNode, error) {
		signals <- syscall.SIGTERM
		<-ctx.Done()
		return &fakeNode{shutdown: func(context.Context) error { stopped = true; return nil }}, nil
	})
	if err := s.run(context.Background()); err != nil || !stopped {
		t.Errorf("got %v, stopped %v", err, stopped)
	}
}

func TestNodeThatEndsIsAnError(t *testing.T) {
	done := make(chan error, 1)
	done <- errors.New("disk on fire")
	stopped := false
	s, _, _ := testServer(t, started(&fakeNode{done: done, shutdown: func(context.Context) error { stopped = true; return nil }}))
	if err := s.run(context.Background()); err == nil || !strings.Contains(err.Error(), "the node ended: disk on fire") || !stopped {
		t.Errorf("got %v, stopped %v", err, stopped)
	}
}

func TestBusyPortSaysWhichFlag(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s, _, _ := testServer(t, func(context.Context, node.Config, *slog.Logger) (runningNode, error) {
		_, err := net.Listen("tcp", ln.Addr().String())
		return nil, err
	})
	s.loaded.Node.Admin.BindAddress = ln.Addr().String()
	err = s.run(context.Background())
	if err == nil || !strings.Contains(err.Error(), "choose another with --admin-bind-address") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

func TestServerPassesItsSettings(t *testing.T) {
	var got node.Config
	var errs buffer
	a := &app{out: &errs, err: &errs, env: []string{"PERDURE_WORKER__CLEANUP_INTERVAL=3s", "PERDURE_EXPERIMENTAL_ENABLE_VQUEUES=true"},
		start: func(_ context.Context, c node.Config, _ *slog.Logger) (runningNode, error) {
			got = c
			return nil, errors.New("enough")
		}}
	code := a.run(context.Background(), []string{"server", "--node-name", "n7", "--base-dir", t.TempDir(), "--insecure", "--bind-ip", "0.0.0.0",
		"--auto-provision=false", "--set", "worker.invoker.abort-timeout=1h", "--default-num-partitions", "3"})
	if code != 1 || got.NodeName != "n7" || !got.Insecure || got.AdminAddress() != "0.0.0.0:9070" || got.AutoProvision ||
		got.Worker.Invoker.AbortTimeout.Hours() != 1 || got.Worker.CleanupInterval.Seconds() != 3 || got.DefaultNumPartitions != 3 {
		t.Errorf("exit %d, %+v", code, got)
	}
	for _, want := range []string{"perdure: enough\n", "this version does not have that feature  key=experimental-enable-vqueues"} {
		if !strings.Contains(errs.String(), want) {
			t.Errorf("%q was not said in %s", want, &errs)
		}
	}
}

func TestServerRefusesBadSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "perdure.toml")
	if err := os.WriteFile(file, []byte("defautl-num-partitions = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", file}, `perdure.toml: there is no setting "defautl-num-partitions"; the nearest is "default-num-partitions"`},
		{[]string{"--config", "/none.toml"}, "/none.toml: no such file"},
		{[]string{"--bind-ip", "0.0.0.0"}, "start with --insecure"},
		{[]string{"--log-filter", "loud"}, `--log-filter: log-filter has level "loud"`},
		{[]string{"--set", "worker.invoker.request-identity-private-key-pem-file=/none.pem"}, "/none.pem: no such file"},
	} {
		code, _, errs := exec(t, nil, "", append([]string{"server", "--node-name", "n1"}, c.args...)...)
		if code != 1 || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit %d, said %q, want %q", c.args, code, errs, c.want)
		}
	}
}

func TestDumpConfigIsInForce(t *testing.T) {
	code, out, errs := exec(t, []string{"PERDURE_ADMIN__TOKEN=hunter2"}, "", "server", "--dump-config", "--node-name", "n1", "--bind-ip", "127.0.0.2")
	if code != 0 || strings.Contains(out, "hunter2") || !strings.Contains(out, `token = "<REDACTED>"`) || !strings.Contains(out, `bind-address = "127.0.0.2:9070"`) {
		t.Errorf("exit %d, %s%s", code, out, errs)
	}
}

func TestDefaultNameDoesNotLeaveDataBehind(t *testing.T) {
	dir := t.TempDir()
	if name, err := defaultName(filepath.Join(dir, "none"), "host"); err != nil || name != "host" {
		t.Errorf("no directory: %q, %v", name, err)
	}
	for _, sub := range []string{"lost+found", ".snapshot", "old"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := defaultName(dir, "host"); (err != nil) != (sub == "old") {
			t.Errorf("with %s: %v", sub, err)
		}
	}
	if _, err := defaultName(dir, "host"); err == nil || !strings.Contains(err.Error(), "--node-name old") {
		t.Errorf("got %v", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "host"), 0o700); err != nil {
		t.Fatal(err)
	}
	if name, err := defaultName(dir, "host"); err != nil || name != "host" {
		t.Errorf("own data: %q, %v", name, err)
	}
}

func TestIdentityKey(t *testing.T) {
	_, good, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		key  any
		want string
	}{{good, ""}, {bad, "it must be Ed25519"}, {nil, "is not a PEM file"}} {
		data := []byte("nonsense")
		if c.key != nil {
			der, err := x509.MarshalPKCS8PrivateKey(c.key)
			if err != nil {
				t.Fatal(err)
			}
			data = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		}
		file := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		i := node.Invoker{IdentityKeyFile: file}
		err := readIdentityKey(&i)
		if c.want == "" && (err != nil || i.IdentityKey.Reveal() != string(data)) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("want %q, got %v", c.want, err)
		}
	}
}

func logTo(t *testing.T, s settings.Log, terminal bool) (*slog.Logger, *bytes.Buffer) {
	t.Helper()
	filter, err := settings.ParseFilter(s.Filter)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	return slog.New(newLogHandler(&b, s, filter, terminal)), &b
}

func TestLogFilterByComponent(t *testing.T) {
	for _, format := range []string{"pretty", "compact", "json"} {
		log, b := logTo(t, settings.Log{Filter: "warn,invoker=debug,raft=off", Format: format}, false)
		log.Info("hidden1")
		log.Warn("shown1")
		log.With("component", "invoker").Debug("shown2")
		log.With("component", "raft").Error("hidden2")
		log.With("component", "other").Info("hidden3")
		log.WithGroup("g").With("component", "invoker").Info("hidden4")
		if out := b.String(); strings.Contains(out, "hidden") || !strings.Contains(out, "shown1") || !strings.Contains(out, "shown2") {
			t.Errorf("%s: %s", format, out)
		}
	}
}

func TestLogFormats(t *testing.T) {
	say := func(l *slog.Logger) {
		l.With("component", "x y").WithGroup("g").Info("hello", "n", 1, slog.Group("h", "s", `a"b`), "e", errors.New("bad"), "empty", "")
	}
	log, b := logTo(t, settings.Log{Format: "pretty"}, false)
	say(log)
	if want := `INFO  hello  component="x y"  g.n=1  g.h.s="a\"b"  g.e=bad  g.empty=""` + "\n"; !strings.HasSuffix(b.String(), want) {
		t.Errorf("pretty: %q, want %q", b, want)
	}
	log, b = logTo(t, settings.Log{Format: "json"}, false)
	say(log)
	var record map[string]any
	if err := json.Unmarshal(b.Bytes(), &record); err != nil || record["msg"] != "hello" {
		t.Errorf("json: %s: %v", b, err)
	}
	log, b = logTo(t, settings.Log{Format: "pretty"}, true)
	say(log)
	if !strings.Contains(b.String(), "\x1b[32mINFO") {
		t.Errorf("no colour on a terminal: %q", b)
	}
	log, b = logTo(t, settings.Log{Format: "pretty", DisableColours: true}, true)
	say(log)
	if strings.Contains(b.String(), "\x1b") {
		t.Errorf("colours although disabled: %q", b)
	}
}

func TestNewlinesCannotForgeLogLines(t *testing.T) {
	log, b := logTo(t, settings.Log{Format: "pretty"}, false)
	log.Info("hello", "s", "a\n2026 ERROR forged")
	if strings.Count(b.String(), "\n") != 1 {
		t.Errorf("%q", b)
	}
}

func TestAWS(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte("[profile invoker]\nregion = eu-central-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CONFIG_FILE", file)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(dir, "none"))
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_EXTERNAL_ID", "cluster-1")
	for _, c := range []struct {
		in                          node.Invoker
		region, externalID, failure string
	}{
		{node.Invoker{AWSProfile: "invoker"}, "eu-central-1", "cluster-1", ""},
		{node.Invoker{AWSExternalID: "configured"}, "", "configured", ""},
		{node.Invoker{AWSProfile: "missing"}, "", "", "worker.invoker.aws-profile"},
	} {
		var said buffer
		err := loadAWS(t.Context(), &c.in, slog.New(slog.NewTextHandler(&said, nil)))
		if err == nil {
			c.in.AWS.Logger.Logf(logging.Warn, "falling back to %s", "x")
			if out := said.String(); !strings.Contains(out, `level=WARN msg="AWS SDK" component=aws text="falling back to x"`) {
				t.Errorf("the SDK's warning became %q", out)
			}
		}
		switch {
		case c.failure != "":
			if err == nil || !strings.Contains(err.Error(), c.failure) || c.in.AWS != nil {
				t.Errorf("got %v, want %s", err, c.failure)
			}
		case err != nil:
			t.Error(err)
		case c.in.AWS == nil || c.in.AWS.Region != c.region || c.in.AWSExternalID != c.externalID:
			t.Errorf("got %+v", c.in)
		}
	}
}
