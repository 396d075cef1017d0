package h2

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"perdure/invokers/transport"
)

// connectProxy is a proxy that allows CONNECT with the given credentials, and counts tunnels.
type connectProxy struct {
	t       *testing.T
	auth    string
	tunnels chan string
}

func startProxy(t *testing.T, auth string) (*connectProxy, *url.URL) {
	p := &connectProxy{t: t, auth: auth, tunnels: make(chan string, 10)}
	srv := httptest.NewServer(p)
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return p, u
}

func (p *connectProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodConnect || r.Header.Get("Proxy-Authorization") != p.auth {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	out, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer out.Close()
	in, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.t.Error(err)
		return
	}
	defer in.Close()
	p.tunnels <- r.Host
	_, err = io.WriteString(in, "HTTP/1.1 200 OK\r\nVia: test\r\n\r\n")
	if err != nil {
		p.t.Error(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(out, in) // ends with either side
		_ = out.Close()
	})
	_, _ = io.Copy(in, out)
	_ = in.Close()
	wg.Wait()
}

func TestProxy(t *testing.T) {
	served := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	p, u := startProxy(t, "Basic dXNlcjpwYXNz")
	u.User = url.UserPassword("user", "pass")
	clear := serveClear(t, served)
	secure, trust := serveTLS(t, served, true)
	for _, tt := range []struct {
		url    string
		http11 bool
	}{{clear, false}, {clear, true}, {secure, false}, {secure, true}} {
		c := newClient(t, func(c *Config) {
			c.TLS = trust
			c.Proxy = func(scheme, address string) (*url.URL, error) {
				if scheme+"://"+address != tt.url {
					t.Errorf("asked for the proxy of %s, %s", scheme, address)
				}
				return u, nil
			}
		})
		if err := discover(c, parse(t, tt.url, tt.http11)); err != nil {
			t.Fatal(err)
		}
		if host := <-p.tunnels; !strings.HasSuffix(tt.url, host) {
			t.Errorf("tunnel to %s, want %s", host, tt.url)
		}
	}
}

func TestProxyOnlyWhereAsked(t *testing.T) {
	c := newClient(t, func(c *Config) { c.Proxy = func(string, string) (*url.URL, error) { return nil, nil } })
	if err := discover(c, parse(t, serveClear(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), false)); err != nil {
		t.Fatal(err)
	}
}

func TestProxyThatRefuses(t *testing.T) {
	_, u := startProxy(t, "Basic something")
	for _, http11 := range []bool{false, true} {
		c := newClient(t, func(c *Config) { c.Proxy = func(string, string) (*url.URL, error) { return u, nil } })
		wantKind(t, discover(c, parse(t, "http://service:1", http11)), transport.Connect, "407 Proxy Authentication Required")
	}
}

func TestProxyThatMisbehaves(t *testing.T) {
	for name, tt := range map[string]struct{ answer, text string }{
		"garbage":  {"garbage\r\n\r\n", "malformed"},
		"endless":  {strings.Repeat("x", maxProxyHeader+1), "longer than"},
		"hangs up": {"HTTP/1.1 200", "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				go func() {
					_, _ = http.ReadRequest(bufio.NewReader(theirs)) // it is what the client sends
					_, _ = io.WriteString(theirs, tt.answer)         // the client may have heard enough
					_ = theirs.Close()
				}()
				err := tunnel(t.Context(), ours, &url.URL{Host: "proxy"}, "service:1")
				_ = ours.Close()
				if err == nil || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v, want %q", err, tt.text)
				}
			})
		})
	}
}

func TestProxyThatIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := tunnel(ctx, ours, &url.URL{Host: "proxy"}, "service:1"); err == nil {
			t.Error("no error")
		}
		_ = ours.Close()
	})
}
