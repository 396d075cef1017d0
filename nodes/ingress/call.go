package ingress

import (
	"cmp"
	"encoding/binary"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"perdure/control/duration"
	"perdure/control/ident"
	"perdure/control/schema"
	"perdure/invokers/invocationpb"
	"perdure/invokers/tracing"
	"perdure/nodes/record/recordpb"
)

// minRetention is how long the row of an invocation must outlive its completion for a repeated try to find it and not run
// the handler again.
const minRetention = time.Minute

// invocation is everything that a call sends to a partition, in one allocation.
type invocation struct {
	req    recordpb.Request
	kind   recordpb.Request_Invoke_
	invoke recordpb.Request_Invoke
	inv    invocationpb.Invocation
	target invocationpb.Target
	source invocationpb.Source
	key    string // the idempotency key, if there is one
	id     ident.InvocationID
	rnd    [16 + 10 + 8]byte // request id, random part of a ULID, bucket
	// idempotent says that a second try with this id does not run the handler again.
	idempotent bool
}

// invoke answers a call or a send.
func (q *request) invoke() error {
	h, err := q.s.Handler(q.rt.service, q.rt.handler)
	if err != nil {
		return err
	}
	q.known = true
	if !h.Options.Public {
		return errNotPublic
	}
	c := new(invocation)
	if err := q.options(h, c); err != nil {
		return err
	}
	body, err := q.body()
	if err != nil {
		return err
	}
	contentType, present := first(q.r.Header, "Content-Type")
	if err := h.CheckInput(contentType, present, len(body) == 0); err != nil {
		return err
	}
	if err := q.fill(h, c, body); err != nil {
		return err
	}
	defer q.span.End()
	reply, err := q.do(c.id.PartitionKey(), &c.req, c.idempotent)
	if err != nil {
		return err
	}
	if q.rt.kind == routeSend {
		return q.sent(c, reply)
	}
	return q.called(h, c.id, reply)
}

// options reads what headers and query say about the call, before the body.
func (q *request) options(h *schema.Handler, c *invocation) error {
	if key, ok := first(q.r.Header, "Idempotency-Key"); ok {
		if h.Type == schema.WorkflowRun {
			return errIdempotentWorkflow
		}
		if !utf8.ValidString(key) {
			return errHeaderUTF8
		}
		if len(key) > ident.MaxName {
			return errIdempotencyLong
		}
		c.key = key
		c.inv.IdempotencyKey = &c.key
	}
	limitKey, _ := first(q.r.Header, "X-Restate-Limit-Key")
	if q.query != "" {
		if v, ok := queryValue(q.query, "limit-key"); ok && limitKey == "" {
			limitKey = v
		}
		if v, ok := queryValue(q.query, "delay"); ok {
			if q.rt.kind == routeCall {
				return errDelayOnCall
			}
			d, err := duration.Parse(v)
			if err != nil {
				return badDelay(err)
			}
			c.inv.ExecutionTimeMs = uint64(q.start.UnixMilli()) + uint64(d.Milliseconds())
		}
	}
	if limitKey != "" {
		return checkLimitKey(limitKey)
	}
	return nil
}

// fill makes the request: ids, target, headers, retentions. The error says which header cannot be forwarded.
func (q *request) fill(h *schema.Handler, c *invocation, body []byte) error {
	headers, err := q.headers()
	if err != nil {
		return err
	}
	q.i.rand(c.rnd[:])
	var u ulid.ULID
	_ = u.SetTime(uint64(q.start.UnixMilli())) // fails in the year 10889
	copy(u[6:], c.rnd[16:26])
	if c.inv.IdempotencyKey == nil && !q.i.cfg.NoAutoIdempotency && h.ServiceType != schema.Workflow {
		c.key = u.String()
		c.inv.IdempotencyKey = &c.key
	}
	c.id = ident.Invocation(ident.Target{
		Service: h.Service, Handler: h.Name, Key: q.rt.key, Keyed: q.rt.keyed,
		WorkflowRun: h.Type == schema.WorkflowRun, IdempotencyKey: c.inv.IdempotencyKey,
	}, ident.Random{ULID: u, Bucket: binary.LittleEndian.Uint64(c.rnd[26:])})

	retention := h.Retention(c.inv.IdempotencyKey != nil)
	c.idempotent = retention.Completion >= minRetention

	c.target = invocationpb.Target{
		Service: h.Service, Handler: h.Name, Key: q.rt.key,
		ServiceType: uint32(h.ServiceType), HandlerType: uint32(h.Type),
	}
	c.source.Kind = invocationpb.Source_INGRESS
	inv := &c.inv
	inv.Id, inv.Target, inv.Source = c.id[:], &c.target, &c.source
	inv.Argument, inv.Headers = body, headers
	inv.RequestId = c.rnd[:16:16]
	inv.CompletionRetentionMs = uint64(retention.Completion.Milliseconds())
	inv.JournalRetentionMs = uint64(retention.Journal.Milliseconds())
	q.trace(c)

	c.invoke.Invocation, c.invoke.WaitOutput = inv, q.rt.kind == routeCall
	c.kind.Invoke = &c.invoke
	c.req.Id, c.req.Kind = inv.RequestId, &c.kind
	return nil
}

// trace begins the request's span, which the invocation gets as its parent. Without tracing it gets what the client sent.
func (q *request) trace(c *invocation) {
	var client tracing.Context
	client.Parent, _ = first(q.r.Header, "Traceparent")
	client.State, _ = first(q.r.Header, "Tracestate")
	if t := q.i.tracer; t != nil {
		q.span = t.Ingress(tracing.Invocation{ID: c.id, Service: c.target.Service, Handler: c.target.Handler, Key: c.target.Key, Keyed: q.rt.keyed, Parent: client}, q.r.RemoteAddr)
		client = q.span.Context()
	}
	c.inv.TraceParent, c.inv.TraceState = client.Parent, client.State
}

// headers are those that the handler sees: the path first, then what the client sent, sorted, the first value of each. Headers
// of the connection and the idempotency key stay behind. What is not UTF-8 is refused, because headers are strings to the SDKs.
func (q *request) headers() ([]*invocationpb.Header, error) {
	n := len(q.r.Header) + 1
	values := make([]invocationpb.Header, n)
	list := make([]*invocationpb.Header, 1, n)
	values[0].Key = "x-restate-ingress-path"
	values[0].Value = q.path
	if q.query != "" {
		values[0].Value = q.path + "?" + q.query
	}
	list[0] = &values[0]
	for name, v := range q.r.Header {
		key, forward := headerName(name)
		if !forward || len(v) == 0 || len(list) == n {
			continue
		}
		if !utf8.ValidString(v[0]) {
			return nil, badHeader(key)
		}
		h := &values[len(list)]
		h.Key, h.Value = key, v[0]
		list = append(list, h)
	}
	slices.SortFunc(list[1:], func(a, b *invocationpb.Header) int { return cmp.Compare(a.Key, b.Key) })
	return list, nil
}

// headerNames are the lower-case forms of frequent headers, so that they need not be made for each request; "" means that the
// header is not forwarded.
var headerNames = map[string]string{
	"Accept": "accept", "Accept-Encoding": "accept-encoding", "Accept-Language": "accept-language", "Authorization": "authorization",
	"Cache-Control": "cache-control", "Content-Encoding": "content-encoding", "Content-Length": "content-length",
	"Content-Type": "content-type", "Cookie": "cookie", "Origin": "origin", "Referer": "referer", "Traceparent": "traceparent",
	"Tracestate": "tracestate", "User-Agent": "user-agent", "X-Forwarded-For": "x-forwarded-for", "X-Forwarded-Host": "x-forwarded-host",
	"X-Forwarded-Proto": "x-forwarded-proto", "X-Request-Id": "x-request-id", "X-Amzn-Trace-Id": "x-amzn-trace-id",

	"Connection": "", "Host": "", "Idempotency-Key": "", "Idempotency-Expires": "", // as documented
	"Keep-Alive": "", "Proxy-Connection": "", "Te": "", "Trailer": "", "Transfer-Encoding": "", "Upgrade": "", "Http2-Settings": "", // of the connection
	"X-Restate-Ingress-Path": "", // ours
}

func headerName(canonical string) (lower string, forward bool) {
	if name, ok := headerNames[canonical]; ok {
		return name, name != ""
	}
	return strings.ToLower(canonical), true
}

// first is the first value of a header, by its canonical name.
func first(h http.Header, canonical string) (value string, present bool) {
	if v := h[canonical]; len(v) > 0 {
		return v[0], true
	}
	return "", false
}

// queryValue is the first value of a parameter, decoded. Text that cannot be decoded is taken as it is.
func queryValue(query, name string) (string, bool) {
	for part := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(part, "=")
		if k != name {
			continue
		}
		if d, err := url.QueryUnescape(v); err == nil {
			return d, true
		}
		return v, true
	}
	return "", false
}

// sent answers a send.
func (q *request) sent(c *invocation, reply *recordpb.Reply) error {
	status := `","status":"Accepted"}`
	switch reply.Status {
	case recordpb.Reply_OK, recordpb.Reply_ACCEPTED:
	case recordpb.Reply_PREVIOUSLY_ACCEPTED:
		status = `","status":"PreviouslyAccepted"}`
	default:
		return unexpected(reply)
	}
	id := c.id.String()
	b := make([]byte, 0, 128)
	b = append(append(b, `{"invocationId":"`...), id...)
	at := reply.ExecutionTimeMs
	if at == 0 && reply.Status != recordpb.Reply_PREVIOUSLY_ACCEPTED {
		at = c.inv.ExecutionTimeMs
	}
	if at != 0 {
		b = append(b, `","executionTime":"`...)
		b = time.UnixMilli(int64(at)).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z")
	}
	b = append(b, status...)
	h := q.w.Header()
	h["Content-Type"] = contentJSON
	h["X-Restate-Id"] = []string{id}
	q.ok(http.StatusAccepted, b)
	return nil
}

// called answers a call, or an attach; h is nil when the handler is not known.
func (q *request) called(h *schema.Handler, id ident.InvocationID, reply *recordpb.Reply) error {
	head := q.w.Header()
	head["X-Restate-Id"] = []string{id.String()}
	switch reply.Status {
	case recordpb.Reply_OK, recordpb.Reply_ALREADY_COMPLETED:
	case recordpb.Reply_PREVIOUSLY_ACCEPTED:
		q.fail(workflowInvoked)
		return nil
	case recordpb.Reply_NOT_FOUND:
		q.fail(attachNotFound)
		return nil
	default:
		delete(head, "X-Restate-Id")
		return unexpected(reply)
	}
	if reply.ExpiresAtMs != 0 {
		head["Idempotency-Expires"] = []string{time.UnixMilli(int64(reply.ExpiresAtMs)).UTC().Format("2006-01-02T15:04:05.000-07:00")}
	}
	if f := reply.Result.GetFailure(); f != nil {
		q.fail(f)
		return nil
	}
	out := reply.Result.GetSuccess()
	contentType := "application/json"
	if h != nil {
		contentType = h.Output.ContentTypeFor(len(out) == 0)
	} else if len(out) == 0 {
		contentType = ""
	}
	// Go would guess a content type where there is none.
	head["Content-Type"] = nil
	if contentType == "application/json" {
		head["Content-Type"] = contentJSON
	} else if contentType != "" {
		head["Content-Type"] = []string{contentType}
	}
	if len(out) > autoLength {
		head["Content-Length"] = []string{strconv.Itoa(len(out))}
	}
	q.ok(http.StatusOK, out)
	return nil
}

// autoLength is the size up to which net/http sets the content length itself.
const autoLength = 2048

// fail answers with the terminal error of an invocation.
func (q *request) fail(f *invocationpb.Failure) {
	status := failureStatus(f)
	q.i.metrics.count(q.rt.kind, status)
	if q.known {
		q.i.metrics.invoked(q.rt.service, q.rt.kind, status)
	}
	writeFailure(q.w, f)
}

// unexpected is the error of a reply that makes no sense for the request: a bug, or a newer leader.
func unexpected(reply *recordpb.Reply) error {
	return &refusal{http.StatusInternalServerError, "internal error: the partition answered " + reply.Status.String()}
}

// newRequest is a request that is not a call. The kind is set by the caller.
func (q *request) newRequest() *recordpb.Request {
	id := make([]byte, 16)
	q.i.rand(id)
	return &recordpb.Request{Id: id}
}
