package node

import (
	"log/slog"
	"math"
	"net"
	"sync"
	"syscall"
	"time"
)

// A process that has no file left to open cannot accept, call a service, or begin the next file of its log, which ends the
// node. So what clients can make it open is bounded by shares of those files that the stores leave of the limit, and the rest is
// for connections to services. The shares are no settings: who needs more raises the limit of the process.
const (
	filesOfNode      = 50 // log store, metadata, standard streams
	filesOfPartition = 10 // its store without tables; 8 were counted

	ingressShare = 2  // the ingress may have a half of what is left
	privateShare = 16 // the admin API and the node port a sixteenth each
	tablesShare  = 8  // and open tables of the partition stores an eighth
	maxTables    = 1000
)

// spareFiles is how many files this process may have open besides those that stores of so many partitions need. The runtime
// has raised the soft limit to the hard one.
func spareFiles(partitions int) int {
	limit := 1024
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err == nil {
		limit = int(min(uint64(l.Cur), math.MaxInt32))
	}
	return max(limit-filesOfNode-filesOfPartition*partitions, limit/8)
}

// boundedListener lets a number of connections be open; further ones wait in the queue of the system. Accept is called by one
// goroutine.
type boundedListener struct {
	net.Listener
	log   *slog.Logger
	open  chan struct{} // holds one element for each connection
	done  chan struct{} // closed by Close
	close func()
	told  time.Time // when the log last said that it is full
}

func bound(ln net.Listener, n int, log *slog.Logger) *boundedListener {
	done := make(chan struct{})
	return &boundedListener{Listener: ln, log: log, open: make(chan struct{}, n), done: done, close: sync.OnceFunc(func() { close(done) })}
}

// tellAgain is the time after which it is said again that connections wait.
const tellAgain = time.Minute

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	select {
	case l.open <- struct{}{}:
	default:
		if now := time.Now(); now.Sub(l.told) >= tellAgain {
			l.told = now
			l.log.Warn("as many connections are open as the limit of open files allows, new ones wait; raise it (ulimit -n, LimitNOFILE)", "connections", cap(l.open))
		}
		select {
		case l.open <- struct{}{}:
		case <-l.done:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.open
		return nil, err
	}
	return &boundedConn{Conn: c, left: sync.OnceFunc(func() { <-l.open })}, nil
}

// Close implements net.Listener: an Accept that waits returns. Connections stay open.
func (l *boundedListener) Close() error {
	l.close()
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	left func()
}

// CloseWrite is what net/http looks for, to let a client read the answer to a request that it has not sent whole.
func (c *boundedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.left()
	return c.Conn.Close()
}
