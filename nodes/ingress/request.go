package ingress

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"perdure/control/cluster"
	"perdure/control/schema"
	"perdure/invokers/tracing"
	"perdure/nodes/record/recordpb"
)

// request is one HTTP request on its way through the ingress. Owned by the goroutine that serves it.
type request struct {
	i           *Ingress
	w           http.ResponseWriter
	r           *http.Request
	s           *schema.Schema
	rt          route
	path, query string
	start       time.Time
	known       bool             // an invocation of a handler that is registered
	read        bool             // the body is here
	taken       int64            // bytes of memory for the body
	span        *tracing.Ingress // nil: not traced, or not an invocation
}

func (q *request) serve() error {
	q.start = q.i.now()
	if q.rt.scoped {
		return errScopes
	}
	switch q.rt.kind {
	case routeCall, routeSend:
		return q.invoke()
	case routeAttach, routeOutput, routeLookup:
		return q.wait()
	case routeAwakeable:
		return q.awakeable()
	}
	return q.health()
}

func (q *request) health() error {
	b := marshal(struct {
		Services []string `json:"services"`
	}{append([]string{}, q.s.ServiceNames()...)})
	q.w.Header()["Content-Type"] = contentJSON
	q.ok(http.StatusOK, b)
	return nil
}

// ok answers with success.
func (q *request) ok(status int, body []byte) {
	took := q.i.now().Sub(q.start)
	q.i.metrics.succeeded(q.rt.kind, took)
	if q.known {
		q.i.metrics.invoked(q.rt.service, q.rt.kind, status)
		q.i.metrics.took(q.rt.service, took)
	}
	if len(body) == 0 {
		q.w.Header()["Content-Length"] = zeroLength
	}
	q.w.WriteHeader(status)
	q.send(body)
}

const (
	// smallBody fits into the buffers of the connection: writing it does not wait for the client.
	smallBody = 4 << 10
	// sendAtOnce is how much a client has to take within the time limit.
	sendAtOnce = 256 << 10
)

// send writes the body of an answer. A slow client may take long, but one that takes nothing must not hold the result, and
// its place among the concurrent requests, for ever.
func (q *request) send(body []byte) {
	if len(body) <= smallBody {
		if len(body) > 0 {
			_, _ = q.w.Write(body) // the client is gone: nobody to tell
		}
		return
	}
	rc := http.NewResponseController(q.w)
	for len(body) > 0 {
		n := min(len(body), sendAtOnce)
		_ = rc.SetWriteDeadline(time.Now().Add(q.i.cfg.BodyTimeout)) // not supported by recorders in tests
		if _, err := q.w.Write(body[:n]); err != nil {
			return // the deadline stays: nothing more can be written
		}
		body = body[n:]
	}
	if rc.Flush() == nil {
		_ = rc.SetWriteDeadline(time.Time{}) // the next request on the connection may wait for long
	}
}

var zeroLength = []string{"0"}

// smallRequest is the size up to which a body is read into memory that is taken at once, and within the time limit as a whole.
const smallRequest = 64 << 10

// body reads the request's body: at most the limit. Memory for a large one is taken as it arrives, so that announcing one costs
// the client as much as the server.
func (q *request) body() ([]byte, error) {
	n := q.r.ContentLength
	if n == 0 || q.r.Body == nil || q.r.Body == http.NoBody {
		return nil, nil
	}
	if 0 < n && n <= smallRequest {
		if err := q.take(n); err != nil {
			return nil, err
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(q.r.Body, b); err != nil {
			return nil, bodyError(err)
		}
		q.read = true
		return b, nil
	}
	want := n // serve has compared it with the limit
	if n < 0 {
		want = q.i.cfg.RequestSizeLimit
	}
	src := &progressReader{r: q.r.Body, rc: http.NewResponseController(q.w), timeout: q.i.cfg.BodyTimeout, renewed: time.Now()}
	b, err := readGrowing(src, want, q.take)
	if err == nil && n < 0 && int64(len(b)) == want {
		err = atEnd(src)
	}
	switch {
	case errors.Is(err, errOverloaded), errors.Is(err, errBodyTooLarge):
		return nil, err
	case err != nil:
		return nil, bodyError(err)
	}
	q.read = true
	return b, nil
}

// take reserves memory for the body.
func (q *request) take(n int64) error {
	q.taken += n
	if all := q.i.bodies.Add(n); q.i.cfg.RequestMemory > 0 && all > q.i.cfg.RequestMemory {
		return errOverloaded
	}
	return nil
}

// release gives back what the body took.
func (q *request) release() {
	if q.taken > 0 {
		q.i.bodies.Add(-q.taken)
	}
}

// readGrowing reads n bytes, or fewer up to the end. take is asked before memory is used.
func readGrowing(r io.Reader, n int64, take func(int64) error) ([]byte, error) {
	var b []byte
	for int64(len(b)) < n {
		if len(b) == cap(b) {
			grown := min(n, max(4<<10, 2*int64(cap(b))))
			if err := take(grown - int64(cap(b))); err != nil {
				return nil, err
			}
			b = append(make([]byte, 0, grown), b...)
		}
		m, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+m]
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// atEnd refuses a body that goes on.
func atEnd(r io.Reader) error {
	_, err := io.ReadFull(r, make([]byte, 1))
	switch err {
	case nil:
		return errBodyTooLarge
	case io.EOF:
		return nil
	}
	return err
}

func bodyError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errBodyTimeout
	}
	return badBody(err)
}

// progressReader gives the client more time with each part of the body: a slow client may take long, a silent one not.
type progressReader struct {
	r       io.Reader
	rc      *http.ResponseController
	timeout time.Duration
	renewed time.Time
}

func (p *progressReader) Read(b []byte) (int, error) {
	// Not each time: over HTTP/2 it is a message to another goroutine.
	if now := time.Now(); now.Sub(p.renewed) > p.timeout/8 {
		p.renewed = now
		_ = p.rc.SetReadDeadline(now.Add(p.timeout)) // not supported by recorders in tests
	}
	return p.r.Read(b)
}

// heard lifts the time limit for the request's body, which is there: what comes now may take long. Over HTTP/2 the limit is
// that of the body alone; over HTTP/1 it would end the background reading by which a client that goes away is noticed, and
// the request with it. A body that nobody has read keeps it: the server reads what is left before it answers.
func (q *request) heard() {
	if q.r.ProtoMajor == 1 && (q.read || q.r.ContentLength == 0) {
		_ = http.NewResponseController(q.w).SetReadDeadline(time.Time{}) // not supported by recorders in tests
	}
}

// do sends a request to the partition of key, again and again while that is safe. idempotent says that a try with an unknown
// outcome may be repeated. Gives up when the client does.
func (q *request) do(key cluster.PartitionKey, req *recordpb.Request, idempotent bool) (*recordpb.Reply, error) {
	q.heard()
	ctx := q.r.Context()
	wait := q.i.cfg.RetryMin
	for {
		reply, err := q.i.partitions.Do(ctx, key, req)
		if err == nil {
			q.i.metrics.completed.Inc()
			return reply, nil
		}
		q.i.metrics.failed.Inc()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !idempotent && !safe(err) {
			return nil, err
		}
		q.i.metrics.retries.Inc()
		if err := sleep(ctx, wait/2+rand.N(wait/2+1)); err != nil {
			return nil, err
		}
		wait = min(2*wait, q.i.cfg.RetryMax)
	}
}

// safe reports whether err says that the request had no effect.
func safe(err error) bool {
	var s interface{ Safe() bool }
	return errors.As(err, &s) && s.Safe()
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
