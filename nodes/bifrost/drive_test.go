package bifrost

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/control/chain"
	"perdure/control/cluster"
	"perdure/nodes/loglet"
	"perdure/nodes/logserver"
	"perdure/nodes/transport"
)

// hastyClock is a thousand times as fast as the system's.
type hastyClock struct{ loglet.SystemClock }

func (c hastyClock) AfterFunc(d time.Duration, f func()) loglet.Timer {
	return c.SystemClock.AfterFunc(d/1000, f)
}

// lines collects log lines.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	select {
	case l.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

// wait waits for n lines with text.
func (l *lines) wait(t *testing.T, text string, n int) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		l.mu.Lock()
		all := l.text.String()
		l.mu.Unlock()
		if strings.Count(all, text) >= n {
			return
		}
		select {
		case <-l.more:
		case <-limit:
			t.Fatalf("no %d lines with %q in:\n%s", n, text, all)
		}
	}
}

// awayNet has log servers that do not answer until they are back.
type awayNet struct{ back chan struct{} }

func (n awayNet) Call(_ cluster.NodeID, m transport.Message, done transport.ReplyFunc) {
	select {
	case <-n.back:
		done(&logserver.StateReply{LocalTail: 3, KnownGlobalTail: 3, Sealed: true}, nil)
	default:
	}
}

// TestOperatorIsToldOfAStuckLog: a log whose log servers are away can not be sealed, and that must be seen.
func TestOperatorIsToldOfAStuckLog(t *testing.T) {
	net := awayNet{back: make(chan struct{})}
	chains := NewMemoryChains()
	c, err := chain.New(1, chain.Params{Sequencer: cluster.GenNodeID{ID: 1, Generation: 1}, Replication: cluster.ReplicateTo(1), NodeSet: []cluster.NodeID{7}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := chains.CompareAndSwap(t.Context(), 1, c, 0); err != nil {
		t.Fatal(err)
	}
	said := &lines{more: make(chan struct{}, 1)}
	b, err := New(Config{Self: cluster.GenNodeID{ID: 1, Generation: 2}, Net: net, Chains: chains, Clock: hastyClock{}, Logger: slog.New(slog.NewTextHandler(said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	extended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	go func() { extended <- b.SealAndExtend(ctx, 1) }()
	said.wait(t, "node_set=[N7] waited=10s", 1)
	said.wait(t, "doing=seal node_set=[N7] waited=20s", 1)
	close(net.back)
	if err := <-extended; err != nil {
		t.Fatal(err)
	}
	said.wait(t, "log servers have answered", 1)
}
