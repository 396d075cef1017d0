package invokers

import (
	"testing"
	"time"

	"perdure/control/schema"
	"perdure/invokers/protocol/protocolpb"
	"perdure/invokers/transport"
)

func TestDecide(t *testing.T) {
	policy := func(max uint64, end schema.ExhaustedRetry) *schema.RetryPolicy {
		return &schema.RetryPolicy{InitialInterval: time.Second, Factor: 2, MaxInterval: 10 * time.Second, MaxAttempts: max, OnMaxAttempts: end}
	}
	delay := 5 * time.Second
	for _, c := range []struct {
		name      string
		policy    *schema.RetryPolicy
		used      uint64
		failure   failure
		requested bool
		want      decision
	}{
		{"first retry", policy(3, schema.Pause), 0, failure{}, false, decision{retry, time.Second, true}},
		{"second retry", policy(3, schema.Pause), 1, failure{}, false, decision{retry, 2 * time.Second, true}},
		{"attempts used up", policy(3, schema.Pause), 2, failure{}, false, decision{verdict: pause}},
		{"attempts used up, kill", policy(3, schema.Kill), 2, failure{}, false, decision{verdict: kill}},
		{"one attempt", policy(1, schema.Kill), 0, failure{}, false, decision{verdict: kill}},
		{"no bound", policy(0, schema.Kill), 1000, failure{}, false, decision{retry, 10 * time.Second, true}},
		{"delay instead of the policy", policy(3, schema.Kill), 2, failure{delay: &delay}, false, decision{retry, delay, false}},
		{"no delay instead of the policy", policy(3, schema.Kill), 2, failure{delay: new(time.Duration)}, false, decision{retry, minDelay, false}},
		{"the service asks for a pause", policy(3, schema.Kill), 0, failure{delay: &delay, behavior: protocolpb.ErrorBehavior_PAUSE}, false, decision{verdict: pause}},
		{"the service asks for the end", policy(3, schema.Pause), 0, failure{delay: &delay, behavior: protocolpb.ErrorBehavior_FAIL}, false, decision{verdict: kill}},
		{"an operator asks for a pause", policy(3, schema.Pause), 0, failure{behavior: protocolpb.ErrorBehavior_FAIL}, true, decision{verdict: pause}},
		{"hopeless", policy(3, schema.Kill), 0, failure{mustPause: true}, false, decision{verdict: pause}},
	} {
		if got := decide(c.policy, c.used, &c.failure, c.requested, 0); got != c.want {
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	p := &schema.RetryPolicy{InitialInterval: time.Second, Factor: 2, MaxInterval: 10 * time.Second}
	for _, c := range []struct {
		n      uint64
		jitter float64
		want   time.Duration
	}{
		{0, 0, time.Second}, {3, 0, 8 * time.Second}, {4, 0, 10 * time.Second}, {1 << 60, 0, 10 * time.Second},
		{0, 0.5, 1150 * time.Millisecond}, {4, 1, 13 * time.Second},
	} {
		if got := backoff(p, c.n, c.jitter); got != c.want {
			t.Errorf("retry %d with jitter %g: %s, want %s", c.n, c.jitter, got, c.want)
		}
	}
	if got := backoff(&schema.RetryPolicy{Factor: 2}, 1<<60, 1); got != 0 {
		t.Errorf("no interval: %s", got)
	}
	if got := backoff(&schema.RetryPolicy{InitialInterval: time.Second, Factor: 2}, 1<<60, 0); got != maxDelay {
		t.Errorf("no maximum: %s", got)
	}
	if got := backoff(&schema.RetryPolicy{InitialInterval: time.Second, Factor: 1, MaxInterval: time.Minute}, 1<<60, 0); got != time.Second {
		t.Errorf("constant: %s", got)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": -1, "0": -1, "000": -1, " 7 ": 7 * time.Second, "-1": -1, "1.5": -1, "soon": -1,
		"Mon, 23 Nov 2026 10:00:30 GMT":   30 * time.Second,
		"Mon, 23 Nov 2026 12:00:30 +0200": 30 * time.Second,
		"Mon, 23 Nov 2026 09:00:00 GMT":   -1,
		"4294967295":                      maxDelay,
	} {
		got := retryAfter(in, now)
		switch {
		case want < 0 && got != nil:
			t.Errorf("%q: %s, want none", in, *got)
		case want >= 0 && (got == nil || *got != want):
			t.Errorf("%q: %v, want %s", in, got, want)
		}
	}
}

func TestCheckResponse(t *testing.T) {
	const ct = "application/vnd.restate.invocation.v6"
	for _, c := range []struct {
		status      int
		contentType string
		code        string
		unseen      bool
	}{
		{200, ct, "", false},
		{204, ct, "", false},
		{200, "", codeProtocol, false},
		{200, ct + "; charset=utf-8", codeProtocol, false},
		{200, "application/vnd.restate.invocation.v5", codeProtocol, false},
		{301, ct, codeProtocol, false},
		{401, "", codeProtocol, false},
		{404, "", codeProtocol, false},
		{413, "", codeEntityTooLarge, false},
		{415, "", codeUnsupportedMedia, true},
		{429, "", codeOverloaded, false},
		{500, "", codeProtocol, false},
		{502, "", codeNetwork, false},
		{503, "", codeOverloaded, false},
		{504, "", codeNetwork, false},
		{599, "", codeProtocol, false},
	} {
		r := &transport.Response{Status: c.status, Header: []transport.Field{{Name: "Content-Type", Value: c.contentType}}}
		f := checkResponse(r, ct, time.Now())
		if c.code == "" {
			if f != nil {
				t.Errorf("%d: %v", c.status, f)
			}
			continue
		}
		if f == nil || f.docCode != c.code || f.unseen != c.unseen || f.delay != nil {
			t.Errorf("%d: got %+v, want %s", c.status, f, c.code)
		}
	}
	r := &transport.Response{Status: 503, Header: []transport.Field{{Name: "retry-after", Value: "3"}}}
	if f := checkResponse(r, ct, time.Now()); f.delay == nil || *f.delay != 3*time.Second {
		t.Errorf("retry-after: %+v", f)
	}
	if f := checkResponse(&transport.Response{Status: 404}, ct, time.Now()); f.message != "unexpected http status code: 404 Not Found" {
		t.Errorf("text: %s", f.message)
	}
}

// TestTracker: the next attempt has to wait exactly while something is on its way.
func TestTracker(t *testing.T) {
	var k tracker
	if !k.settled() {
		t.Error("nothing was proposed")
	}
	a, b := k.next(), k.next()
	k.observe(a)
	if k.settled() {
		t.Error("the second proposal is on its way")
	}
	k.observe(b)
	if !k.settled() {
		t.Error("everything was applied")
	}
	k.next()
	k.undo()
	if !k.settled() || k.next() != b+1 {
		t.Error("an undone proposal has no sequence number")
	}
}
