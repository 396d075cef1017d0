package h2

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/goleak"

	"perdure/invokers/transport"
	"perdure/invokers/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newClient returns a client that is closed at the end of the test.
func newClient(tb testing.TB, change func(*Config)) *Client {
	tb.Helper()
	cfg := DefaultConfig()
	if change != nil {
		change(&cfg)
	}
	c, err := New(cfg, nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
		checkBalance(tb, c)
	})
	return c
}

// checkBalance checks after Close that everything that was opened has ended.
func checkBalance(tb testing.TB, c *Client) {
	tb.Helper()
	if n := value(tb, c.metrics.streamsOpen); n != 0 {
		tb.Errorf("%v streams are open after Close", n)
	}
	if n := value(tb, c.metrics.waiting); n != 0 {
		tb.Errorf("%v exchanges wait after Close", n)
	}
	closed := 0.0
	metrics := make(chan prometheus.Metric, 100)
	c.metrics.connsClosed.Collect(metrics)
	for len(metrics) > 0 {
		closed += value(tb, <-metrics)
	}
	if opened := value(tb, c.metrics.connsOpened); opened != closed {
		tb.Errorf("%v connections were opened, %v closed", opened, closed)
	}
}

func value(tb testing.TB, m prometheus.Metric) float64 {
	tb.Helper()
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		tb.Fatal(err)
	}
	return out.GetGauge().GetValue() + out.GetCounter().GetValue()
}

func parse(tb testing.TB, url string, http11 bool) transport.Endpoint {
	tb.Helper()
	ep, err := transport.ParseURL(url, http11)
	if err != nil {
		tb.Fatal(err)
	}
	return ep
}

// serveClear starts a server in clear text that speaks HTTP/1.1 and HTTP/2.
func serveClear(tb testing.TB, h http.Handler) string {
	srv := httptest.NewUnstartedServer(h)
	clearText(srv)
	tb.Cleanup(srv.Close)
	return srv.URL
}

// serveTLS starts a server with TLS and returns its URL and a configuration that trusts it.
func serveTLS(tb testing.TB, h http.Handler, http2 bool) (string, *tls.Config) {
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	srv.StartTLS()
	tb.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return srv.URL, &tls.Config{RootCAs: roots}
}

var (
	http2Abilities = transporttest.Abilities{Streaming: true, Duplex: true, Version: transport.HTTP2, MaxBody: 5 << 20, Parallel: 300}
	http1Abilities = transporttest.Abilities{Streaming: true, Duplex: true, Version: transport.HTTP11, MaxBody: 5 << 20, Parallel: 30}
)

// inMemory starts a server on pipes, and a client that reaches it.
func inMemory(t *testing.T, h http.Handler, start func(*httptest.Server), change func(*Config)) *Client {
	srv := httptest.NewUnstartedServer(h)
	_ = srv.Listener.Close() // nothing was done with it
	pipes := transporttest.NewPipes()
	srv.Listener = pipes
	start(srv)
	t.Cleanup(srv.Close)
	return newClient(t, func(c *Config) {
		c.Dial = pipes.Dial
		if cert := srv.Certificate(); cert != nil {
			c.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
			c.TLS.RootCAs.AddCert(cert)
		}
		if change != nil {
			change(c)
		}
	})
}

func clearText(srv *httptest.Server) {
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
}

func TestConformance(t *testing.T) {
	for _, tt := range []struct {
		name   string
		can    transporttest.Abilities
		start  func(*httptest.Server)
		url    string
		http11 bool
	}{
		{"h2c", http2Abilities, clearText, "http://example.com", false},
		{"h2 over TLS", http2Abilities, func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() }, "https://example.com", false},
		{"HTTP 1.1", http1Abilities, clearText, "http://example.com", true},
		{"HTTP 1.1 by ALPN", http1Abilities, (*httptest.Server).StartTLS, "https://example.com", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			transporttest.Run(t, tt.can, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
				return inMemory(t, h, tt.start, nil), parse(t, tt.url, tt.http11)
			})
		})
	}
}

// Sockets hold bytes in buffers, split writes and reset connections, which pipes do not.
func TestConformanceOverTCP(t *testing.T) {
	for _, tt := range []struct {
		name   string
		can    transporttest.Abilities
		http11 bool
	}{{"h2c", http2Abilities, false}, {"HTTP 1.1", http1Abilities, true}} {
		t.Run(tt.name, func(t *testing.T) {
			transporttest.RunOutside(t, tt.can, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
				return newClient(t, func(c *Config) {
					c.ConnectTimeout, c.KeepAliveInterval, c.KeepAliveTimeout, c.StreamTimeout = time.Hour, time.Hour, time.Hour, time.Hour
				}), parse(t, serveClear(t, h), tt.http11)
			})
		})
	}
}

// HTTP/1.1 can be asked for where HTTP/2 would be had.
func TestForcedHTTP1OverTLS(t *testing.T) {
	url, cfg := serveTLS(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("got %s", r.Proto)
		}
	}), true)
	if err := discover(newClient(t, func(c *Config) { c.TLS = cfg }), parse(t, url, true)); err != nil {
		t.Fatal(err)
	}
}

// With the smallest windows and buffers every byte has to wait for another one; nothing may get lost or stuck.
func TestTightWindows(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	synctest.Test(t, func(t *testing.T) {
		c := inMemory(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body) // fails when the exchange is cancelled; the client checks what it gets
		}), clearText, func(c *Config) {
			c.StreamWindow, c.ConnWindow, c.ConnBuffer, c.SendBuffer = initialWindow, initialWindow, initialWindow, minMaxFrame
			c.MaxStreamsPerConn, c.MaxConnsPerEndpoint = 5, 2
		})
		ep := parse(t, "http://example.com", false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of the bubble: only what is stuck takes time
		defer cancel()
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				body := make([]byte, r.IntN(300_000))
				for j := range body {
					body[j] = byte(r.Uint32())
				}
				if err := echo(ctx, c, ep, body, r); err != nil {
					t.Errorf("exchange %d: %v", i, err)
				}
			})
		}
		wg.Wait()
	})
}

// echo sends body in random pieces and expects it back; one in five exchanges is cancelled midway.
func echo(ctx context.Context, c *Client, ep transport.Endpoint, body []byte, r *rand.Rand) error {
	st, err := c.Open(ctx, ep, transport.Request{Method: "POST", Path: "/", Header: benchHeader})
	if err != nil {
		return err
	}
	defer st.Cancel()
	stopAt := len(body) + 1
	if r.IntN(5) == 0 {
		stopAt = r.IntN(len(body) + 1)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for rest := body; len(rest) > 0; {
			n := 1 + r.IntN(len(rest))
			if st.Write(rest[:n]) != nil {
				return // the reader has the error
			}
			rest = rest[n:]
		}
		_ = st.CloseWrite()
	})
	got := make([]byte, 0, len(body))
	p := make([]byte, 10_000)
	for {
		n, err := st.Read(p)
		got = append(got, p[:n]...)
		switch {
		case len(got) >= stopAt:
			st.Cancel()
			return nil
		case err == io.EOF && bytes.Equal(got, body):
			return nil
		case err == io.EOF:
			return fmt.Errorf("got %d bytes that differ from the %d sent", len(got), len(body))
		case err != nil:
			return err
		}
	}
}

// TestHostOfAnother: a header host goes out in place of the address's own and not beside it, where HTTP/1.1 and HTTP/2 forbid it.
func TestHostOfAnother(t *testing.T) {
	type seen struct {
		host string
		also []string
	}
	requests := make(chan seen, 1)
	url := serveClear(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { requests <- seen{r.Host, r.Header["Host"]} }))
	for _, http11 := range []bool{true, false} {
		c := newClient(t, nil)
		for _, host := range []string{"", "other.example:1"} {
			ep, req := parse(t, url, http11), transport.Request{Method: "GET", Path: "/discover", Header: []transport.Field{{Name: "a", Value: "b"}}}
			want := ep.Authority
			if host != "" {
				want, req.Header = host, append(req.Header, transport.Field{Name: "host", Value: host})
			}
			s, err := c.Open(t.Context(), ep, req)
			if err == nil {
				err = s.CloseWrite()
			}
			var resp transport.Response
			if err == nil {
				resp, err = s.Response()
			}
			if err != nil {
				t.Fatalf("HTTP/1.1 %v, host %q: %v", http11, host, err)
			}
			s.Cancel()
			if resp.Status != http.StatusOK {
				t.Errorf("HTTP/1.1 %v, host %q: status %d", http11, host, resp.Status)
				continue
			}
			if got := <-requests; got.host != want || len(got.also) != 0 {
				t.Errorf("HTTP/1.1 %v: arrived for %q and %q, want %q", http11, got.host, got.also, want)
			}
		}
	}
}
