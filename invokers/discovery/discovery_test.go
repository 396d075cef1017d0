package discovery

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"perdure/control/schema"
	"perdure/invokers/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// answer is what the service of a test does with one request.
type answer struct {
	openErr, headErr, bodyErr error
	status                    int
	header                    []transport.Field
	version                   string
	body                      string
	silent                    bool // never answers
}

// scripted is a transport that gives its answers in order and keeps the requests.
type scripted struct {
	answers  []answer
	requests []transport.Request
	at       []time.Time
	open     int
}

func (s *scripted) Open(ctx context.Context, _ transport.Endpoint, req transport.Request) (transport.Stream, error) {
	s.requests = append(s.requests, req)
	s.at = append(s.at, time.Now())
	a := s.answers[min(len(s.requests), len(s.answers))-1]
	if a.openErr != nil {
		return nil, a.openErr
	}
	s.open++
	return &stream{ctx: ctx, s: s, a: a, body: strings.NewReader(a.body)}, nil
}

type stream struct {
	transport.Stream
	ctx      context.Context
	s        *scripted
	a        answer
	body     *strings.Reader
	canceled bool
}

func (s *stream) CloseWrite() error { return nil }

func (s *stream) Response() (transport.Response, error) {
	if s.a.silent {
		<-s.ctx.Done()
		return transport.Response{}, transport.ContextError(s.ctx, "")
	}
	return transport.Response{Status: s.a.status, Header: s.a.header, Version: s.a.version}, s.a.headErr
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if err == io.EOF && s.a.bodyErr != nil {
		err = s.a.bodyErr
	}
	return n, err
}

func (s *stream) Cancel() {
	if !s.canceled {
		s.canceled = true
		s.s.open--
	}
}

const v4 = "application/vnd.restate.endpointmanifest.v4+json"

func field(name, value string) []transport.Field {
	return []transport.Field{{Name: name, Value: value}}
}

func good(body string) answer {
	return answer{status: 200, header: field("Content-Type", v4), version: transport.HTTP2, body: body}
}

const manifest = `{"protocolMode":"BIDI_STREAM","minProtocolVersion":5,"maxProtocolVersion":7,"services":[]}`

var (
	httpAddress   = schema.Address{HTTP: &schema.HTTPAddress{URI: "http://h:9080/p"}}
	lambdaAddress = schema.Address{Lambda: &schema.LambdaAddress{ARN: "arn:aws:lambda:eu-west-1:1:function:f:1"}}
)

func discover(t *testing.T, a schema.Address, answers ...answer) (*scripted, *schema.Discovered, error) {
	t.Helper()
	s := &scripted{answers: answers}
	c, err := New(Config{Transport: s, Jitter: func() float64 { return 0 }, AdditionalHeaders: field("x-restate-cluster-name", "localcluster")})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.Discover(t.Context(), a, nil)
	if s.open != 0 {
		t.Errorf("%d exchanges were left open", s.open)
	}
	return s, d, err
}

// TestCapturedManifests: the manifests that SDKs sent are read, and the request has the captured headers.
func TestCapturedManifests(t *testing.T) {
	files, _ := filepath.Glob("testdata/discover-*.json")
	if len(files) < 3 {
		t.Fatalf("only %d captured manifests", len(files))
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			Path            string
			Status          int
			RequestHeaders  map[string]string `json:"request_headers"`
			ResponseHeaders map[string]string `json:"response_headers"`
			Body            json.RawMessage
		}
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(err)
		}
		a := answer{status: v.Status, version: transport.HTTP2, body: string(v.Body)}
		for n, val := range v.ResponseHeaders {
			a.header = append(a.header, transport.Field{Name: n, Value: val})
		}
		s, d, err := discover(t, httpAddress, a)
		if err != nil {
			t.Errorf("%s: %v", f, err)
			continue
		}
		if d.SDKVersion != v.ResponseHeaders["x-restate-server"] || d.HTTPVersion != schema.HTTP2 || len(d.Manifest.Services) == 0 {
			t.Errorf("%s: %+v", f, d)
		}
		got := map[string]string{}
		for _, h := range s.requests[0].Header {
			got[h.Name] = h.Value
		}
		for n, want := range v.RequestHeaders {
			if got[n] != want {
				t.Errorf("%s: header %s is %q, want %q", f, n, got[n], want)
			}
		}
		if len(got) != len(v.RequestHeaders) || s.requests[0].Method != "GET" || s.requests[0].Path != "/discover" {
			t.Errorf("%s: request %+v", f, s.requests[0])
		}
	}
}

// TestErrors: each way to fail has its code, and is tried again exactly if it may pass.
func TestErrors(t *testing.T) {
	terr := func(k transport.Kind) error { return &transport.Error{Kind: k, Err: errors.New("x")} }
	cause := func(err error) error {
		return &transport.Error{Kind: transport.Connect, Err: fmt.Errorf("dial: %w", err)}
	}
	for _, c := range []struct {
		name    string
		address schema.Address
		answer  answer
		code    string
		text    string
		tries   int
	}{
		{"connection refused", httpAddress, answer{openErr: terr(transport.Connect)}, CodeUnreachable, "connect failed", 5},
		{"reset", httpAddress, answer{headErr: terr(transport.Reset)}, CodeUnreachable, "reset", 5},
		{"body cut off", httpAddress, answer{status: 200, header: field("content-type", v4), bodyErr: terr(transport.Reset)}, CodeUnreachable, "reset", 5},
		{"HTTP/1.1 only", httpAddress, answer{headErr: terr(transport.HTTP1Only)}, CodeHTTP1Only, "use_http_11", 1},
		{"says once who", httpAddress, answer{openErr: &transport.Error{Kind: transport.Connect, Endpoint: "http://h:9080/p", Err: errors.New("x")}}, CodeUnreachable, "cannot call http://h:9080/p: connect failed: x", 5},
		{"access denied", lambdaAddress, answer{openErr: terr(transport.AccessDenied)}, CodeUnreachable, "access denied", 1},
		{"404", httpAddress, answer{status: 404, body: "nope"}, CodeUnreachable, "404 Not Found; check that the URL has the path", 1},
		{"401", httpAddress, answer{status: 401}, CodeUnreachable, "401 Unauthorized; if it wants credentials, give them as additional_headers", 1},
		{"301", httpAddress, answer{status: 301, header: field("location", "http://there/x")}, CodeUnreachable, "301 Moved Permanently; redirects are not followed, register the URL that it redirects to (http://there/x)", 1},
		{"301 to nowhere", httpAddress, answer{status: 301}, CodeUnreachable, "301 Moved Permanently; redirects are not followed. Body", 1},
		{"nobody listens", httpAddress, answer{openErr: cause(syscall.ECONNREFUSED)}, CodeUnreachable, "; nothing listens there: is the service running", 5},
		{"unknown name", httpAddress, answer{openErr: cause(&net.DNSError{Err: "no such host", Name: "h"})}, CodeUnreachable, "; is the name right", 5},
		{"no TLS", httpAddress, answer{openErr: cause(tls.RecordHeaderError{Msg: "x"})}, CodeUnreachable, "register it with http instead", 5},
		{"TLS", httpAddress, answer{headErr: cause(syscall.ECONNRESET)}, CodeUnreachable, "register it with https", 5},
		{"certificate", httpAddress, answer{openErr: cause(&tls.CertificateVerificationError{Err: errors.New("x")})}, CodeUnreachable, "an authority that this server's machine trusts", 5},
		{"500", httpAddress, answer{status: 500}, CodeUnreachable, "500", 5},
		{"408", httpAddress, answer{status: 408}, CodeUnreachable, "408", 5},
		{"429", httpAddress, answer{status: 429}, CodeUnreachable, "429", 5},
		{"502", httpAddress, answer{status: 502}, CodeUnreachable, "502", 5},
		{"503", httpAddress, answer{status: 503}, CodeUnreachable, "503", 5},
		{"504", httpAddress, answer{status: 504}, CodeUnreachable, "504", 5},
		{"no content type", httpAddress, answer{status: 200, body: manifest}, CodeBadResponse, `content type is ""`, 1},
		{"other content type", httpAddress, answer{status: 200, header: field("content-type", "application/json"), body: manifest}, CodeBadResponse, "application/json", 1},
		{"charset", httpAddress, answer{status: 200, header: field("content-type", v4+"; charset=utf-8"), body: manifest}, CodeBadResponse, "charset", 1},
		{"no JSON", httpAddress, good(`{"x`), "", "cannot be decoded", 1},
		{"no protocol mode", httpAddress, good(`{"minProtocolVersion":5,"maxProtocolVersion":7,"services":[]}`), CodeBadResponse, "missing protocol mode", 1},
		{"range upside down", httpAddress, good(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":6,"maxProtocolVersion":5,"services":[]}`), CodeBadResponse, "lowest protocol version is 6", 1},
		{"too old", httpAddress, good(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":1,"maxProtocolVersion":4,"services":[]}`), CodeVersion, "[1, 4]", 1},
		{"too new", httpAddress, good(`{"protocolMode":"BIDI_STREAM","minProtocolVersion":8,"maxProtocolVersion":9,"services":[]}`), CodeVersion, "[8, 9]", 1},
		{"streams on Lambda", lambdaAddress, good(manifest), CodeBidiTransport, "BIDI_STREAM", 1},
		{"no address", schema.Address{}, answer{}, CodeUnreachable, "empty", 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, d, err := discover(t, c.address, c.answer)
			var e *Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Error(), c.text) || d != nil {
				t.Errorf("%s: got %v, %v, want %s with %q", c.name, d, err, c.code, c.text)
			}
			if len(s.requests) != c.tries {
				t.Errorf("%s: %d tries, want %d", c.name, len(s.requests), c.tries)
			}
		})
	}
}

// TestRetryDelays: the pauses double from 100 ms, and a later success counts.
func TestRetryDelays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := answer{status: 503}
		start := time.Now()
		s, d, err := discover(t, httpAddress, bad, bad, bad, bad, good(manifest))
		if err != nil || d == nil {
			t.Fatal(err)
		}
		for i, want := range []time.Duration{0, 100, 300, 700, 1500} {
			if got := s.at[i].Sub(start); got != want*time.Millisecond {
				t.Errorf("try %d after %s, want %d ms", i+1, got, want)
			}
		}
	})
}

// TestLenient: what newer SDKs add does not keep them from being registered.
func TestLenient(t *testing.T) {
	_, d, err := discover(t, lambdaAddress, good(
		`{"protocolMode":"REQUEST_RESPONSE","minProtocolVersion":5,"maxProtocolVersion":9,"lambdaCompression":"zstd","new":{"a":[1]},"services":[]}`))
	if err != nil || d.Manifest.LambdaCompression != "zstd" {
		t.Errorf("got %+v, %v", d, err)
	}
}

// Whoever registers an address from which nothing comes back hears so after the first try: five would take minutes.
func TestSilentEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, err := discover(t, httpAddress, answer{silent: true})
		var e *Error
		if !errors.As(err, &e) || e.Code != CodeUnreachable || len(s.requests) != 1 {
			t.Errorf("got %v after %d tries", err, len(s.requests))
		}
	})
}

func TestCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{answers: []answer{{silent: true}}}
		c, err := New(Config{Transport: s})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Discover(ctx, httpAddress, nil); !errors.Is(err, context.DeadlineExceeded) || len(s.requests) != 1 {
			t.Errorf("got %v after %d tries", err, len(s.requests))
		}
	})
}

func TestBigManifest(t *testing.T) {
	s := &scripted{answers: []answer{good(strings.Repeat(" ", 100) + manifest)}}
	c, err := New(Config{Transport: s, MaxManifest: 100})
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if _, err := c.Discover(t.Context(), httpAddress, nil); !errors.As(err, &e) || e.Code != CodeBadResponse {
		t.Errorf("got %v", err)
	}
}

type signer struct{}

func (signer) Headers(dst []transport.Field, _ time.Time, path string, subject *string) []transport.Field {
	if subject != nil {
		path += " with subject"
	}
	return append(dst, transport.Field{Name: "x-signed", Value: path})
}

// TestHeaders: the deployment's headers replace the server's, whatever their case, and discoveries are signed.
func TestHeaders(t *testing.T) {
	s := &scripted{answers: []answer{good(manifest)}}
	c, err := New(Config{Transport: s, Signer: signer{}, AdditionalHeaders: []transport.Field{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Discover(t.Context(), httpAddress, map[string]string{"Z": "9", "B": "mine"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range s.requests[0].Header[1:] {
		got = append(got, f.Name+"="+f.Value)
	}
	if want := []string{"x-signed=/discover", "a=1", "b=mine", "z=9"}; !slices.Equal(got, want) {
		t.Errorf("headers %v, want %v", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(manifest)
	f.Fuzz(func(t *testing.T, body string) {
		d, err := decode(&transport.Response{Status: 200, Header: field("content-type", v4)}, []byte(body))
		if err == nil && d.Manifest.MinProtocolVersion < 1 {
			t.Errorf("%q gives %+v", body, d.Manifest)
		}
	})
}
