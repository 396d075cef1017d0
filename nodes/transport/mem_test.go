package transport

import (
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"perdure/control/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type ping struct{ n int }

func (*ping) Service() Service { return LogServer }

// pair is two nodes of which the second answers pings.
func pair(t *testing.T) (*Mem, *Endpoint, *Endpoint) {
	t.Helper()
	net := NewMem(rand.New(rand.NewPCG(1, 2)))
	a := net.Join(cluster.GenNodeID{ID: 1, Generation: 1})
	b := net.Join(cluster.GenNodeID{ID: 2, Generation: 1})
	b.Handle(LogServer, func(_ cluster.GenNodeID, m Message, reply ReplyFunc) { reply(&ping{m.(*ping).n + 1}, nil) })
	return net, a, b
}

type answer struct {
	n   int
	err error
}

func call(e *Endpoint, to cluster.NodeID, n int) chan answer {
	done := make(chan answer, 10)
	e.Call(to, &ping{n}, func(m Message, err error) {
		a := answer{err: err}
		if p, ok := m.(*ping); ok {
			a.n = p.n
		}
		done <- a
	})
	return done
}

func TestCallAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, a, b := pair(t)
		defer net.Close()
		if got := <-call(a, 2, 5); got.n != 6 || got.err != nil {
			t.Errorf("answer %+v", got)
		}
		if got := <-call(b, 2, 5); got.n != 6 { // to itself
			t.Errorf("answer %+v from itself", got)
		}
		if got := <-call(b, 1, 5); !errors.Is(got.err, ErrNoService) {
			t.Errorf("call of a missing service: %+v", got)
		}
		if got := <-call(a, 9, 5); !errors.Is(got.err, ErrUnreachable) {
			t.Errorf("call of a missing node: %+v", got)
		}
		if got := <-call(alone(a), 9, 5); !errors.Is(got.err, ErrUnreachable) {
			t.Errorf("call without peers: %+v", got)
		}
	})
}

// alone is a node without peers, in the clothes of an endpoint.
func alone(like *Endpoint) *Endpoint {
	return &Endpoint{Node: NewNode(like.Self(), nil), net: like.net}
}

func TestPartitionAndHeal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, a, _ := pair(t)
		defer net.Close()
		net.Partition([]cluster.NodeID{1}, []cluster.NodeID{2})
		lost := call(a, 2, 1)
		synctest.Wait()
		select {
		case got := <-lost:
			t.Errorf("call through a partition was answered: %+v", got)
		default:
		}
		net.Heal()
		if got := <-call(a, 2, 1); got.n != 2 {
			t.Errorf("answer %+v after heal", got)
		}
	})
}

func TestCrashEndsCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, a, b := pair(t)
		defer net.Close()
		var late ReplyFunc
		b.Handle(LogServer, func(_ cluster.GenNodeID, _ Message, reply ReplyFunc) { late = reply })
		pending := call(a, 2, 1)
		synctest.Wait()
		net.Leave(2)
		if got := <-pending; !errors.Is(got.err, ErrConnectionLost) {
			t.Errorf("call ended with %+v, want connection lost", got)
		}
		late(&ping{7}, nil) // a dead process says nothing
		synctest.Wait()
		select {
		case got := <-pending:
			t.Errorf("second end of the call: %+v", got)
		default:
		}
	})
}

func TestDuplicatesAnswerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, a, b := pair(t)
		defer net.Close()
		handled := make(chan struct{}, 10)
		b.Handle(LogServer, func(_ cluster.GenNodeID, m Message, reply ReplyFunc) {
			handled <- struct{}{}
			reply(m, nil)
		})
		net.SetDefault(Faults{Duplicate: 1, MinDelay: time.Millisecond, MaxDelay: time.Second})
		done := call(a, 2, 1)
		<-done
		<-time.After(5 * time.Second) // of the fake clock: all copies have arrived
		if len(handled) != 2 || len(done) != 0 {
			t.Errorf("request was handled %d times and answered %d times, want 2 and 1", len(handled), 1+len(done))
		}
	})
}

func TestDelayBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, a, _ := pair(t)
		defer net.Close()
		net.SetDefault(Faults{MinDelay: 10 * time.Millisecond, MaxDelay: 20 * time.Millisecond})
		for range 50 {
			began := time.Now()
			<-call(a, 2, 1)
			if d := time.Since(began); d < 20*time.Millisecond || d > 40*time.Millisecond {
				t.Fatalf("two ways took %v, want 20 to 40 ms", d)
			}
		}
	})
}
