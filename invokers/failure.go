package invokers

import (
	"errors"
	"fmt"
	"net/http"
	"net/mail"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"perdure/invokers/invocationpb"
	"perdure/invokers/protocol"
	"perdure/invokers/protocol/protocolpb"
	"perdure/invokers/transport"
)

// Codes of failures as operators and the documentation know them.
const (
	codeAbortTimeout     = "RT0001"
	codeTooLarge         = "RT0003"
	codeInternal         = "RT0006"
	codeHandler          = "RT0007"
	codeNetwork          = "RT0010"
	codeNoDeployment     = "RT0011"
	codeProtocol         = "RT0012"
	codeNoCommonVersion  = "RT0013"
	codeVersionGone      = "RT0014"
	codeUnsupportedMedia = "RT0015"
	codeJournalMismatch  = "RT0016"
	codePrecondition     = "RT0017"
	codeCalleeNotFound   = "RT0018"
	codeEntityTooLarge   = "RT0019"
	codeCalleeDeprecated = "RT0020"
	codeOverloaded       = "RT0023"
	codeFlowControl      = "RT0024"
	codeFutureTooDeep    = "RT0025"
)

// failure is why an attempt ended without its invocation ending. It is never an outcome by itself: decide
// says what follows from it.
type failure struct {
	docCode    string
	code       uint32 // HTTP-like
	message    string
	stacktrace string
	related    *relatedCommand

	// delay, when not nil, is waited before the next attempt instead of what the retry policy says; such a
	// retry is not counted by the policy.
	delay *time.Duration
	// behavior is what the service asked for.
	behavior protocolpb.ErrorBehavior
	// mustPause: another attempt would fail the same way.
	mustPause bool
	// unseen: the failure came before the service's code could run; the count that SDKs see does not grow.
	unseen bool
	// refused: the service certainly did not see the request and trying again at once is safe.
	refused bool
	// yielded: nothing failed, the attempt only found no memory. It is no event and no retry.
	yielded bool
}

// relatedCommand is the command that a failure is about. The index may be one past the journal.
type relatedCommand struct {
	index uint32
	typ   uint16
	name  string
}

func (f *failure) Error() string { return f.docCode + ": " + f.message }

func newFailure(docCode, format string, args ...any) *failure {
	return &failure{docCode: docCode, code: 500, message: shorten(fmt.Sprintf(format, args...))}
}

// maxText bounds each text of a failure. They are kept for every invocation that waits for a retry, logged, and shown.
const maxText = 64 << 10

// shorten makes a text valid, which not all that services send is, and cuts it if it is too long, and says so in it.
func shorten(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if len(s) <= maxText {
		return s
	}
	end := maxText
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return fmt.Sprintf("%s (the first %d of %d bytes)", s[:end], end, len(s))
}

// event is the failure as the journal's events and introspection show it.
func (f *failure) event() *invocationpb.Effect_AttemptFailed {
	e := &invocationpb.Effect_AttemptFailed{Code: f.code, Message: f.message, Stacktrace: f.stacktrace, DocCode: f.docCode}
	if r := f.related; r != nil {
		typ := uint32(r.typ)
		e.RelatedCommandIndex = &r.index
		if r.name != "" {
			e.RelatedCommandName = &r.name
		}
		if r.typ != 0 {
			e.RelatedCommandType = &typ
		}
	}
	return e
}

// sameEvent reports whether two failures would be the same event.
func sameEvent(a, b *failure) bool {
	if a == nil || b == nil {
		return false
	}
	if (a.related == nil) != (b.related == nil) || a.related != nil && *a.related != *b.related {
		return false
	}
	return a.docCode == b.docCode && a.code == b.code && a.message == b.message && a.stacktrace == b.stacktrace
}

// terminal is the result of an invocation that ends with the failure.
func (f *failure) terminal() *invocationpb.Failure {
	code := f.code
	if code == 0 || code > 0xFFFF {
		code = 500
	}
	return &invocationpb.Failure{Code: code, Message: f.message}
}

// handlerFailure is the failure that an Error message says. The payload was checked.
func handlerFailure(raw []byte) *failure {
	var m protocolpb.Error
	if err := m.UnmarshalVT(raw); err != nil {
		return newFailure(codeProtocol, "malformed ErrorMessage: %v", err)
	}
	f := &failure{docCode: codeHandler, code: m.Code, message: shorten(m.Message), stacktrace: shorten(m.Stacktrace), behavior: m.Behavior}
	switch m.Code {
	case protocol.CodeJournalMismatch:
		f.docCode = codeJournalMismatch
	case protocol.CodeProtocolViolation:
		f.docCode = codeProtocol
	}
	if m.NextRetryDelay != nil {
		d := time.Duration(min(*m.NextRetryDelay, uint64(maxDelay/time.Millisecond))) * time.Millisecond
		f.delay = &d
	}
	if m.RelatedCommandIndex != nil || m.RelatedCommandName != nil || m.RelatedCommandType != nil {
		f.related = &relatedCommand{index: m.GetRelatedCommandIndex(), typ: uint16(m.GetRelatedCommandType()), name: shorten(m.GetRelatedCommandName())}
	}
	return f
}

// maxDelay bounds delays that a service asks for.
const maxDelay = 365 * 24 * time.Hour

// networkFailure classifies an error of the transport.
func networkFailure(err error) *failure {
	f := newFailure(codeNetwork, "%v", err)
	var te *transport.Error
	if !errors.As(err, &te) {
		return f
	}
	f.unseen = te.NotSeen()
	switch te.Kind {
	case transport.TooLarge:
		f.docCode, f.mustPause = codeTooLarge, true
	case transport.NotProcessed:
		f.refused = true
	}
	if te.RetryAfter > 0 {
		d := min(te.RetryAfter, maxDelay)
		f.delay = &d
	}
	return f
}

// A request that the service certainly did not see, for instance because its connection was just closing, is
// tried again after a short delay that the policy does not count, but only so many times in a row: a service
// that refuses everything is not to be hammered.
const (
	refusedDelay = 50 * time.Millisecond
	maxRefused   = 5
)

// checkResponse is the failure that the head of a response means, nil if frames may follow.
func checkResponse(r *transport.Response, contentType string, now time.Time) *failure {
	if r.Status >= 200 && r.Status < 300 {
		if ct := r.Get("content-type"); ct != contentType {
			return newFailure(codeProtocol, "unexpected content type '%s' of the response, expected '%s'", ct, contentType)
		}
		return nil
	}
	status := strconv.Itoa(r.Status)
	if t := http.StatusText(r.Status); t != "" {
		status += " " + t
	}
	switch r.Status {
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return newFailure(codeNetwork, "the service is temporarily unavailable: %s", status)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		f := newFailure(codeOverloaded, "the service is overloaded or unavailable: %s", status)
		f.delay = retryAfter(r.Get("retry-after"), now)
		return f
	case http.StatusUnsupportedMediaType:
		f := newFailure(codeUnsupportedMedia, "the service does not support the protocol version of '%s'; update its SDK", contentType)
		f.code, f.unseen = http.StatusUnsupportedMediaType, true
		return f
	case http.StatusRequestEntityTooLarge:
		return newFailure(codeEntityTooLarge, "the service refuses the size of the request: %s", status)
	}
	return newFailure(codeProtocol, "unexpected http status code: %s", status)
}

// retryAfter reads a Retry-After header: seconds, or a date in the future. nil when there is none, or nothing to wait for: then
// the policy decides, and counts.
func retryAfter(v string, now time.Time) *time.Duration {
	v = strings.TrimSpace(v)
	if v == "" {
		return nil
	}
	if s, err := strconv.ParseUint(v, 10, 32); err == nil {
		if s == 0 {
			return nil
		}
		d := min(time.Duration(s)*time.Second, maxDelay)
		return &d
	}
	at, err := http.ParseTime(v)
	if err != nil {
		if at, err = mail.ParseDate(v); err != nil {
			return nil
		}
	}
	if d := at.Sub(now); d > 0 {
		d = min(d, maxDelay)
		return &d
	}
	return nil
}
