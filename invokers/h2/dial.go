package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"perdure/invokers/transport"
)

var deniedPrefixes = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),        // link-local: instance and task metadata
	netip.MustParsePrefix("fe80::/10"),             // link-local
	netip.MustParsePrefix("fd00:ec2::254/128"),     // instance metadata over IPv6
	netip.MustParsePrefix("fd00:ec2::23/128"),      // pod identity credentials over IPv6
	netip.MustParsePrefix("100.100.100.200/32"),    // instance metadata of another cloud
	netip.MustParsePrefix("224.0.0.0/4"),           // multicast
	netip.MustParsePrefix("ff00::/8"),              // multicast
	netip.MustParsePrefix("255.255.255.255/32"),    // broadcast
	netip.MustParsePrefix("64:ff9b::a9fe:0/112"),   // link-local IPv4 through NAT64
	netip.MustParsePrefix("::169.254.0.0/112"),     // IPv4-compatible form
	netip.MustParsePrefix("2002:a9fe::/32"),        // link-local IPv4 through 6to4
	netip.MustParsePrefix("64:ff9b:1::a9fe:0/112"), // link-local IPv4 through local-use NAT64
}

// DenyMetadata is the default DialControl: it allows every address but those under which a cloud hands out
// credentials, the link-local networks, and multicast. A deployment's address comes from whoever may
// register one; it must not be a way to read what only this machine may read.
func DenyMetadata(_, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("check address %q: %w", address, err)
	}
	// A zoned address is in no prefix, and an IPv4 address may be written in IPv6.
	addr := ap.Addr().Unmap().WithZone("")
	for _, p := range deniedPrefixes {
		if p.Contains(addr) {
			return fmt.Errorf("address %s is not allowed for endpoints (in %s)", addr, p)
		}
	}
	return nil
}

// dialer is how all connections of a client come about.
type dialer struct {
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
	proxy func(scheme, address string) (*url.URL, error) // may be nil
	tls   *tls.Config
}

func newDialer(cfg Config) dialer {
	d := dialer{dial: cfg.Dial, proxy: cfg.Proxy, tls: &tls.Config{}}
	if cfg.TLS != nil {
		d.tls = cfg.TLS.Clone()
	}
	if d.tls.ClientSessionCache == nil {
		d.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0) // reconnecting costs less
	}
	if d.dial == nil {
		control := cfg.DialControl
		nd := &net.Dialer{
			KeepAlive: 30 * time.Second,
			ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
				return control(network, address)
			},
		}
		d.dial = nd.DialContext
	}
	return d
}

// tlsConfig is the configuration for one host that offers the given protocols.
func (d dialer) tlsConfig(host string, protos ...string) *tls.Config {
	cfg := d.tls.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName = host
	}
	cfg.NextProtos = protos
	return cfg
}

// connect opens a connection, with TLS for https. proto is what ALPN chose, "" in clear text.
func (d dialer) connect(ctx context.Context, scheme, address string) (nc net.Conn, proto string, err error) {
	nc, err = d.tcp(ctx, scheme, address)
	if err != nil || scheme != "https" {
		return nc, "", err
	}
	tc, err := d.secure(ctx, nc, address, "h2", "http/1.1")
	if err != nil {
		return nil, "", err
	}
	return tc, tc.ConnectionState().NegotiatedProtocol, nil
}

// secure does the TLS handshake with the host of address; it closes nc when that fails.
func (d dialer) secure(ctx context.Context, nc net.Conn, address string, protos ...string) (*tls.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, closeWith(nc, err)
	}
	tc := tls.Client(nc, d.tlsConfig(host, protos...))
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, closeWith(nc, fmt.Errorf("TLS handshake: %w", err))
	}
	return tc, nil
}

// tcp opens a byte stream to address, directly or through the proxy.
func (d dialer) tcp(ctx context.Context, scheme, address string) (net.Conn, error) {
	if d.proxy == nil {
		return d.dial(ctx, "tcp", address)
	}
	proxy, err := d.proxy(scheme, address)
	if err != nil {
		return nil, fmt.Errorf("find the proxy for %s: %w", address, err)
	}
	if proxy == nil {
		return d.dial(ctx, "tcp", address)
	}
	nc, err := d.dialProxy(ctx, proxy)
	if err != nil {
		return nil, fmt.Errorf("connect to proxy %s: %w", proxy.Host, err)
	}
	if err := tunnel(ctx, nc, proxy, address); err != nil {
		return nil, closeWith(nc, fmt.Errorf("reach %s through proxy %s: %w", address, proxy.Host, err))
	}
	return nc, nil
}

func (d dialer) dialProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	address := transport.Endpoint{Scheme: proxy.Scheme, Authority: proxy.Host}.Address()
	nc, err := d.dial(ctx, "tcp", address)
	if err != nil || proxy.Scheme != "https" {
		return nc, err
	}
	return d.secure(ctx, nc, address, "http/1.1")
}

// maxProxyHeader bounds a proxy's answer.
const maxProxyHeader = 16 << 10

// tunnel asks the proxy to connect nc to address.
func tunnel(ctx context.Context, nc net.Conn, proxy *url.URL, address string) error {
	interrupted := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // the calls below tell
	defer interrupted()
	req := "CONNECT " + address + " HTTP/1.1\r\nHost: " + address + "\r\n"
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(nc, req+"\r\n"); err != nil {
		return err
	}
	// What follows the header belongs to the peer, which may speak first; so not a byte more is read.
	var header []byte
	for b := make([]byte, 1); !bytes.HasSuffix(header, []byte("\r\n\r\n")); header = append(header, b[0]) {
		if len(header) == maxProxyHeader {
			return fmt.Errorf("its answer is longer than %d bytes", maxProxyHeader)
		}
		if _, err := io.ReadFull(nc, b); err != nil {
			return err
		}
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(header)), &http.Request{Method: "CONNECT"})
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %q", resp.Status)
	}
	return nil
}

func closeWith(nc net.Conn, err error) error {
	_ = nc.Close() // the connection was never used; err is the reason that matters
	return err
}
