package h2

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"

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
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
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

func TestConformance(t *testing.T) {
	t.Run("h2c", func(t *testing.T) {
		transporttest.Run(t, http2Abilities, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
			return newClient(t, nil), parse(t, serveClear(t, h), false)
		})
	})
	t.Run("h2 over TLS", func(t *testing.T) {
		transporttest.Run(t, http2Abilities, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
			url, cfg := serveTLS(t, h, true)
			return newClient(t, func(c *Config) { c.TLS = cfg }), parse(t, url, false)
		})
	})
	t.Run("HTTP 1.1", func(t *testing.T) {
		transporttest.Run(t, http1Abilities, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
			return newClient(t, nil), parse(t, serveClear(t, h), true)
		})
	})
	t.Run("HTTP 1.1 by ALPN", func(t *testing.T) {
		transporttest.Run(t, http1Abilities, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
			url, cfg := serveTLS(t, h, false)
			return newClient(t, func(c *Config) { c.TLS = cfg }), parse(t, url, false)
		})
	})
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
