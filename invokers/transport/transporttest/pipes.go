package transporttest

import (
	"context"
	"errors"
	"net"
	"sync"
)

// Pipes is a net.Listener whose connections are pipes. With it a real server and a client run in a bubble of synctest: only
// waiting takes time there, so that the limits of either are not used up by others that are busy.
type Pipes struct {
	conns chan net.Conn
	gone  chan struct{}
	once  sync.Once
}

// NewPipes returns a listener without connections, for the bubble that it is called in.
func NewPipes() *Pipes { return &Pipes{conns: make(chan net.Conn), gone: make(chan struct{})} }

// Accept implements net.Listener.
func (p *Pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.gone:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It leaves the connections open.
func (p *Pipes) Close() error {
	p.once.Do(func() { close(p.gone) })
	return nil
}

// Addr implements net.Listener.
func (p *Pipes) Addr() net.Addr { return &net.UnixAddr{Name: "memory"} }

// Dial connects to the listener, whatever the network and the address.
func (p *Pipes) Dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.gone:
	case <-ctx.Done():
	}
	return nil, errors.Join(net.ErrClosed, ours.Close(), theirs.Close())
}
