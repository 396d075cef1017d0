package node

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// serve runs an HTTP server with so many connections until the node stops. drain, if any, is called when no more requests
// are accepted and before those under way are waited for.
func (n *Node) serve(what string, connections int, ln net.Listener, srv *http.Server, drain func()) {
	l := n.log.With("server", what)
	srv.ErrorLog = log.New(serverLog{l}, "", 0)
	ln = bound(ln, max(1, connections), l)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			n.fail(fmt.Errorf("serve the %s: %w", what, err))
		}
	})
	n.onStop(what, func(ctx context.Context) error {
		defer wg.Wait()
		if drain != nil {
			// Who waits for a result may wait for days. The invocations go on; their callers are told to ask again.
			stop := time.AfterFunc(min(drainGrace, n.cfg.ShutdownTimeout/2), drain)
			defer stop.Stop()
		}
		if err := srv.Shutdown(ctx); err != nil {
			return errors.Join(err, srv.Close())
		}
		return nil
	})
}

// drainGrace is how long calls under way may still finish on their own during a shutdown: those that wait for nothing but
// our own steps do, and a person who stops a node should not have to wait long.
const drainGrace = 2 * time.Second

// serverLog takes what net/http reports about requests and connections. Most of it is the doing of clients, and of
// interest only to who looks for it; a handler that panicked, or connections that cannot be accepted, are our own trouble.
type serverLog struct{ log *slog.Logger }

// Write implements io.Writer for one report of package net/http.
func (l serverLog) Write(b []byte) (int, error) {
	text, stack, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	level := slog.LevelDebug
	switch {
	case strings.Contains(text, "panic serving"):
		level = slog.LevelError
	case strings.Contains(text, "Accept error"):
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{slog.String("err", text)}
	if stack != "" {
		attrs = append(attrs, slog.String("stack", stack))
	}
	l.log.LogAttrs(context.Background(), level, "HTTP server", attrs...)
	return len(b), nil
}
