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

// body reads the request's body: at most the limit, in one allocation where its length is known.
func (q *request) body() ([]byte, error) {
	n := q.r.ContentLength
	if n == 0 || q.r.Body == nil || q.r.Body == http.NoBody {
		return nil, nil
	}
	src := &progressReader{r: q.r.Body, rc: http.NewResponseController(q.w), timeout: q.i.cfg.BodyTimeout}
	defer src.done()
	if n > 0 {
		b := make([]byte, n) // serve has compared n with the limit
		if _, err := io.ReadFull(src, b); err != nil {
			return nil, bodyError(err)
		}
		return b, nil
	}
	b, err := io.ReadAll(io.LimitReader(src, q.i.cfg.RequestSizeLimit+1))
	if err != nil {
		return nil, bodyError(err)
	}
	if int64(len(b)) > q.i.cfg.RequestSizeLimit {
		return nil, errBodyTooLarge
	}
	return b, nil
}

func bodyError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errBodyTimeout
	}
	return badBody(err)
}

// progressReader gives the client a fresh deadline for each part of the body: a slow client may take long, a silent one not.
type progressReader struct {
	r       io.Reader
	rc      *http.ResponseController
	timeout time.Duration
}

func (p *progressReader) Read(b []byte) (int, error) {
	_ = p.rc.SetReadDeadline(time.Now().Add(p.timeout)) // not supported by recorders in tests
	return p.r.Read(b)
}

// done takes the deadline back: the connection is read on in the background to notice when the client goes away.
func (p *progressReader) done() { _ = p.rc.SetReadDeadline(time.Time{}) }

// do sends a request to the partition of key, again and again while that is safe. idempotent says that a try with an unknown
// outcome may be repeated. Gives up when the client does.
func (q *request) do(key cluster.PartitionKey, req *recordpb.Request, idempotent bool) (*recordpb.Reply, error) {
	ctx := q.r.Context()
	wait := q.i.cfg.RetryMin
	for {
		reply, err := q.i.partitions.Do(ctx, key, req)
		if err == nil {
			return reply, nil
		}
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
