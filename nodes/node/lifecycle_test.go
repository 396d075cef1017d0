package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"perdure/control/ident"
	"perdure/invokers/identity"
)

// small is a node with two partitions on free ports.
func small(dir string) Config {
	c := DefaultConfig()
	c.NodeName, c.BaseDir, c.DefaultNumPartitions, c.Fabric.UseRandomPorts = "n1", dir, 2, true
	return c
}

func startNode(t *testing.T, c Config) *Node {
	t.Helper()
	n, err := Start(context.Background(), c, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func stopNode(t *testing.T, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Shutdown(ctx); err != nil {
		t.Errorf("shut down: %v", err)
	}
	if err := n.Shutdown(ctx); err != nil {
		t.Errorf("shut down again: %v", err)
	}
	select {
	case err := <-n.Done():
		t.Errorf("the node ended on its own: %v", err)
	default:
	}
}

// Services have to be given the public half of the key, and only the server says it in the form that they take.
func TestIdentityIsLogged(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	signer, err := identity.New(file, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c := small(t.TempDir())
	c.Worker.Invoker.IdentityKey = Secret(file)
	var log bytes.Buffer
	n, err := Start(t.Context(), c, "test", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	stopNode(t, n) // nobody writes to log any more
	if want := "public_key=" + signer.KeyID(); !strings.Contains(log.String(), want) {
		t.Errorf("%s is not in the log:\n%s", want, &log)
	}
}

// A node that was started can be asked on all its ports, and leaves no goroutine, lock or port behind: the second start
// finds what the first one made.
func TestNodeStartsStopsAndStartsAgain(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	dir := t.TempDir()
	generation := 0
	for range 2 {
		n := startNode(t, small(dir))
		at := n.Addresses()
		for _, url := range []string{at.Admin + "health", at.Ingress + "restate/health", at.Fabric + "health", at.Fabric + "metrics"} {
			resp, err := client.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: status %d", url, resp.StatusCode)
			}
		}
		if g := int(n.self.Generation); n.self.ID == 0 || g <= generation {
			t.Errorf("the node is %v after generation %d", n.self, generation)
		}
		generation = int(n.self.Generation)
		stopNode(t, n)
		for _, l := range []net.Listener{n.listeners.admin, n.listeners.ingress, n.listeners.fabric} {
			// Others may have taken the port already, so asking there tells nothing.
			if err := l.(*net.TCPListener).SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s is still listened on", l.Addr())
			}
		}
	}
}

// What keeps a node from starting is said, and nothing of it runs on.
func TestNodeThatCannotStartLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	dir := t.TempDir()
	n := startNode(t, small(dir))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		change func(*Config)
		is     error
		text   string
	}{
		{"directory in use", context.Background(), func(*Config) {}, nil, "in use"},
		{"invalid", context.Background(), func(c *Config) { c.DefaultNumPartitions = 0 }, nil, "default-num-partitions"},
		{"port in use", context.Background(), func(c *Config) { c.BaseDir, c.Ingress.BindAddress = t.TempDir(), ln.Addr().String() }, syscall.EADDRINUSE, ""},
		{"interrupted", cancelled, func(c *Config) { c.BaseDir = t.TempDir() }, context.Canceled, ""},
	} {
		cfg := small(dir)
		c.change(&cfg)
		n, err := Start(c.ctx, cfg, "test", slog.New(slog.DiscardHandler))
		if n != nil || err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v, %v", c.name, n, err)
		}
	}
	stopNode(t, n)
}

func TestNodeRefusesDataOfAnotherCluster(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c := small(t.TempDir())
	stopNode(t, startNode(t, c))
	c.ClusterName = "another"
	if n, err := Start(context.Background(), c, "test", slog.New(slog.DiscardHandler)); n != nil || err == nil || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("got %v, %v", n, err)
	}
}

// A deployment may be removed once nothing is pinned to it. While a partition is not open that is not known: the answer
// must not be that there is nothing.
func TestPinnedNeedsAllPartitions(t *testing.T) {
	n := startNode(t, small(t.TempDir()))
	defer stopNode(t, n)
	w := n.worker.Load()
	i := invocations{w}
	if pinned, err := i.Pinned(t.Context(), ident.DeploymentID{1}); pinned != 0 || err != nil {
		t.Errorf("%d, %v", pinned, err)
	}
	w.Close()
	if pinned, err := i.Pinned(t.Context(), ident.DeploymentID{1}); err == nil {
		t.Errorf("with no partition open %d invocations are pinned", pinned)
	}
}
