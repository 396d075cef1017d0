package transport

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestParseURL(t *testing.T) {
	tests := []struct {
		raw, authority, address, target, text string
	}{
		{"http://localhost:9080", "localhost:9080", "localhost:9080", "/discover", "http://localhost:9080"},
		{"http://LOCALHOST:9080/", "localhost:9080", "localhost:9080", "/discover", "http://localhost:9080"},
		{"http://h/p?q=1", "h", "h:80", "/p/discover?q=1", "http://h/p"},
		{"https://h:443/p/", "h", "h:443", "/p/discover", "https://h/p"},
		{"https://h:80/", "h:80", "h:80", "/discover", "https://h:80"},
		{"http://[::1]:9080/a%20b/", "[::1]:9080", "[::1]:9080", "/a%20b/discover", "http://[::1]:9080/a%20b"},
		{"https://[::1]", "[::1]", "[::1]:443", "/discover", "https://[::1]"},
		{"http://h?", "h", "h:80", "/discover", "http://h"},
	}
	for _, tt := range tests {
		ep, err := ParseURL(tt.raw, false)
		if err != nil {
			t.Errorf("%s: %v", tt.raw, err)
			continue
		}
		if ep.Authority != tt.authority || ep.Address() != tt.address || ep.Target("/discover") != tt.target || ep.String() != tt.text {
			t.Errorf("%s: authority %q address %q target %q text %q", tt.raw, ep.Authority, ep.Address(), ep.Target("/discover"), ep)
		}
	}
	for _, raw := range []string{"ftp://h", "http://", "http:///x", "http://u:p@h", "http://h/#f", "h:80", "http://h:x"} {
		if ep, err := ParseURL(raw, false); err == nil {
			t.Errorf("%s: accepted as %+v", raw, ep)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	cause := errors.New("boom")
	var err error = &Error{Kind: Reset, Endpoint: "http://h", Err: cause}
	if KindOf(err) != Reset || !errors.Is(err, cause) || err.Error() != "http://h: connection reset: boom" {
		t.Errorf("got %v", err)
	}
	if KindOf(cause) != 0 {
		t.Error("a foreign error has a kind")
	}
	for k := Connect; k <= FunctionFailed; k++ {
		if k.String() == Kind(200).String() {
			t.Errorf("kind %d has no name", k)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if e := ContextError(ctx, ""); e.Kind != Timeout {
		t.Errorf("deadline gives %v", e)
	}
	ctx, cancel2 := context.WithCancelCause(t.Context())
	cancel2(cause)
	if e := ContextError(ctx, ""); e.Kind != Canceled || !errors.Is(e, cause) {
		t.Errorf("cancel gives %v", e)
	}
}

func TestRouter(t *testing.T) {
	_, err := Router{}.Open(t.Context(), LambdaFunction("arn:aws:lambda:eu-west-1:1:function:f:1", "", false), Request{})
	if KindOf(err) != Connect {
		t.Errorf("got %v", err)
	}
}
