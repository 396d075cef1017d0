package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"
)

// Config are the settings of a Client. Start from DefaultConfig.
type Config struct {
	// ConnectTimeout bounds name resolution, TCP, TLS and the wait for the peer's SETTINGS. Default 10 s.
	ConnectTimeout time.Duration
	// IdleTimeout closes a connection without exchanges. Default 5 min; it is checked every
	// KeepAliveInterval, so a connection may live that much longer. Too low costs a new handshake per burst.
	IdleTimeout time.Duration
	// KeepAliveInterval is how long a connection may be silent before a PING is sent; up to a fifth is added at
	// random. Default 40 s. Lower finds dead peers sooner and costs a frame per connection and interval.
	KeepAliveInterval time.Duration
	// KeepAliveTimeout is how long the answer to a PING, or one write to the socket, may take until the
	// connection counts as dead. Default 20 s.
	KeepAliveTimeout time.Duration

	// MaxStreamsPerConn caps the exchanges on one connection when the peer allows more. Default 128.
	MaxStreamsPerConn int
	// StreamTimeout is how long an exchange waits when the service allows no more of them at once; then it fails as
	// throttled. Default 1 min. A connect attempt may take ConnectTimeout of it.
	StreamTimeout time.Duration
	// MaxConnsPerEndpoint caps the connections to one authority; above MaxStreamsPerConn times this many
	// exchanges Open waits. Default 256.
	MaxConnsPerEndpoint int

	// StreamWindow is how many bytes of a response the service may send before they are read. Default
	// 2 MiB. It also bounds what an unread exchange holds in memory.
	StreamWindow int
	// ConnWindow is the same for a whole connection, but is given back on receipt, so that a slow reader
	// does not hold up the other exchanges. Default 5 MiB.
	ConnWindow int
	// ConnBuffer is how many unread bytes of all exchanges of a connection may pile up before ConnWindow
	// is no longer given back. Default 64 MiB.
	ConnBuffer int
	// SendBuffer is how many bytes may wait for the socket of a connection; above it Write blocks.
	// Default 256 KiB.
	SendBuffer int
	// MaxHeaderBytes limits a response header, counted as HTTP/2 does (name + value + 32). Default 64 KiB.
	MaxHeaderBytes int

	// TLS is the configuration for https endpoints, cloned; NextProtos and ServerName are set by the
	// client. nil means system roots.
	TLS *tls.Config
	// DialControl is asked for every outgoing connection with its resolved address, just before the
	// socket connects, which makes it safe against names that change their address. Default DenyMetadata.
	DialControl func(network, address string) error
	// Proxy names the HTTP proxy for an endpoint's scheme and host:port, nil for none. Connections are tunnelled
	// through it with CONNECT, whatever the protocol inside. DialControl then sees the proxy's address
	// only: the proxy decides what may be reached. Default nil: no proxy.
	Proxy func(scheme, address string) (*url.URL, error)
	// Dial replaces the dialer (and with it DialControl); for tests and unusual networks.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// DefaultConfig returns the defaults above.
func DefaultConfig() Config {
	return Config{
		ConnectTimeout:      10 * time.Second,
		IdleTimeout:         5 * time.Minute,
		KeepAliveInterval:   40 * time.Second,
		KeepAliveTimeout:    20 * time.Second,
		MaxStreamsPerConn:   128,
		StreamTimeout:       time.Minute,
		MaxConnsPerEndpoint: 256,
		StreamWindow:        2 << 20,
		ConnWindow:          5 << 20,
		ConnBuffer:          64 << 20,
		SendBuffer:          256 << 10,
		MaxHeaderBytes:      64 << 10,
		DialControl:         DenyMetadata,
	}
}

// Validate says which setting makes no sense.
func (c Config) Validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"connect timeout", c.ConnectTimeout}, {"idle timeout", c.IdleTimeout},
		{"keep-alive interval", c.KeepAliveInterval}, {"keep-alive timeout", c.KeepAliveTimeout}, {"stream timeout", c.StreamTimeout},
	} {
		if d.value <= 0 {
			return fmt.Errorf("h2: %s must be positive, not %v", d.name, d.value)
		}
	}
	for _, n := range []struct {
		name       string
		value, min int
	}{
		{"streams per connection", c.MaxStreamsPerConn, 1}, {"connections per endpoint", c.MaxConnsPerEndpoint, 1},
		{"stream window", c.StreamWindow, initialWindow}, {"connection window", c.ConnWindow, initialWindow},
		{"connection buffer", c.ConnBuffer, c.StreamWindow}, {"send buffer", c.SendBuffer, minMaxFrame},
		{"header limit", c.MaxHeaderBytes, 1 << 10},
	} {
		if n.value < n.min || n.value > maxWindow {
			return fmt.Errorf("h2: %s must be between %d and %d, not %d", n.name, n.min, maxWindow, n.value)
		}
	}
	if c.Dial == nil && c.DialControl == nil {
		return errors.New("h2: DialControl is missing: use DenyMetadata or a rule of your own")
	}
	return nil
}
