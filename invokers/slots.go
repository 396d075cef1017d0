package invokers

import (
	"container/list"
	"sync"
	"sync/atomic"

	"perdure/control/ident"
)

// slots bounds the attempts that are open at a time on a node, and divides them between deployments, so that one whose
// attempts hang does not take the slots of the others.
//
// A deployment may take another slot as long as it holds fewer than openness times as many as are free. So one that is
// alone gets all but an eighth, and that eighth is for those who come. Those who hold too many for what is free then take
// none until they hold fewer: deployments that all want more than there is end up with equal parts. No deployment has
// to be set up for that, and none has a part that it does not use.
//
// Who may not take one waits, in the order of arrival within its deployment. What becomes free goes to the deployments
// that wait in turn.
type slots struct {
	limit int

	mu     sync.Mutex
	used   int
	shares map[ident.DeploymentID]*share
	turn   list.List    // of *share: those for which invocations wait; the first is next
	queued atomic.Int32 // invocations that wait; changed under mu
}

// openness is how many times as many slots as are free a deployment may hold.
const openness = 7

// share is what a deployment has of the slots. It is guarded by slots.mu.
type share struct {
	held    int
	waiting list.List     // of *invocation
	inTurn  *list.Element // of slots.turn, while invocations wait
}

// maxShares is the number of deployments from which on those are forgotten that neither hold slots nor wait.
const maxShares = 1024

// acquire takes a slot for an invocation that goes to a deployment; zero when there is none. nil means that it waits, and
// that granted will be called for it. The caller may hold the lock of inv's partition.
func (s *slots) acquire(inv *invocation, deployment ident.DeploymentID) *share {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shareLocked(deployment)
	if sh.inTurn == nil && s.admitsLocked(sh) {
		s.takeLocked(sh)
		return sh
	}
	if sh.inTurn == nil {
		sh.inTurn = s.turn.PushBack(sh)
	}
	inv.waitsFor, inv.inQueue = sh, sh.waiting.PushBack(inv)
	s.queued.Add(1)
	return nil
}

func (s *slots) shareLocked(d ident.DeploymentID) *share {
	if sh := s.shares[d]; sh != nil {
		return sh
	}
	if len(s.shares) >= maxShares {
		for id, sh := range s.shares {
			if sh.held == 0 && sh.inTurn == nil {
				delete(s.shares, id)
			}
		}
	}
	sh := &share{}
	s.shares[d] = sh
	return sh
}

func (s *slots) admitsLocked(sh *share) bool { return sh.held < openness*(s.limit-s.used) }

func (s *slots) takeLocked(sh *share) { s.used++; sh.held++ }

// release gives a slot back, and hands what is free then to those who wait and still want one. The caller must not hold
// the lock of any partition.
func (s *slots) release(sh *share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveLocked(sh)
	for {
		inv, sh := s.nextLocked()
		if inv == nil {
			return
		}
		s.mu.Unlock()
		wanted := inv.p.granted(inv, sh)
		s.mu.Lock()
		if !wanted {
			s.giveLocked(sh)
		}
	}
}

func (s *slots) giveLocked(sh *share) { s.used--; sh.held-- }

// nextLocked takes a slot for the next who waits and may have one.
func (s *slots) nextLocked() (*invocation, *share) {
	for e := s.turn.Front(); e != nil && s.used < s.limit; e = e.Next() {
		sh := e.Value.(*share)
		if !s.admitsLocked(sh) {
			continue
		}
		inv := sh.waiting.Front().Value.(*invocation)
		s.turn.MoveToBack(e)
		s.leaveLocked(inv)
		s.takeLocked(sh)
		return inv, sh
	}
	return nil, nil
}

// leave takes an invocation out of the queue, if it waits. The caller may hold the lock of its partition.
func (s *slots) leave(inv *invocation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaveLocked(inv)
}

func (s *slots) leaveLocked(inv *invocation) {
	sh := inv.waitsFor
	if sh == nil {
		return
	}
	sh.waiting.Remove(inv.inQueue)
	inv.waitsFor, inv.inQueue = nil, nil
	s.queued.Add(-1)
	if sh.waiting.Len() == 0 {
		s.turn.Remove(sh.inTurn)
		sh.inTurn = nil
	}
}

// waitingDeployments is the number of deployments whose invocations wait for a slot.
func (s *slots) waitingDeployments() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turn.Len()
}
