package lambda

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"perdure/invokers/transport"
)

// vector is a call that the protocol's original server made, with its answer.
type vector struct {
	Name    string
	Request struct {
		Method, URL string
		Headers     map[string]string
		Body        string
	}
	Response struct {
		Status  int
		Headers map[string]string
		Body    string
	}
}

func loadVector(t *testing.T, name string) vector {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vectors", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v vector) answer(w http.ResponseWriter, _ *http.Request) {
	for name, value := range v.Response.Headers {
		w.Header().Set(name, value)
	}
	w.WriteHeader(v.Response.Status)
	_, _ = io.WriteString(w, v.Response.Body) // the client's error tells
}

// orderedHeaders reads the headers of an event in their order.
func orderedHeaders(t *testing.T, payload string) (fields []transport.Field) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(payload))
	var key string
	for depth, inHeaders := 0, false; ; {
		tok, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch tok := tok.(type) {
		case json.Delim:
			if tok == '{' {
				depth++
			} else if depth--; inHeaders {
				return fields
			}
		case string:
			switch {
			case inHeaders && key == "":
				key = tok
			case inHeaders:
				fields = append(fields, transport.Field{Name: key, Value: tok})
				key = ""
			case tok == "headers" && depth == 1:
				inHeaders = true
			}
		}
	}
}

// request turns the recorded event back into what the invoker asked for.
func (v vector) request(t *testing.T) (ep transport.Endpoint, req transport.Request, raw []byte) {
	t.Helper()
	var e event
	if err := json.Unmarshal([]byte(v.Request.Body), &e); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	req = transport.Request{Method: e.Method, Path: e.Path}
	zstdKnown := false
	for _, f := range orderedHeaders(t, v.Request.Body) {
		switch f.Name {
		case "accept-encoding":
			zstdKnown = true
		case "content-encoding":
			raw = unzip(t, raw)
		default:
			req.Header = append(req.Header, f)
		}
	}
	arn, err := url.PathUnescape(strings.TrimSuffix(strings.TrimPrefix(v.Request.URL, "/2015-03-31/functions/"), "/invocations"))
	if err != nil {
		t.Fatal(err)
	}
	role := ""
	if v.Request.Headers["x-amz-security-token"] != "" {
		role = testRole
	}
	return transport.LambdaFunction(arn, role, zstdKnown), req, raw
}

func unzip(t *testing.T, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	out, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// replay makes the recorded call against a fake that answers as recorded, and returns the stream and what the fake got.
func (v vector) replay(t *testing.T) (transport.Stream, *fakeAPI) {
	t.Helper()
	f := newFakeAPI(t, v.answer)
	f.sts = loadVector(t, "lambda-01-sts-assume-role").answer
	cfg := f.config()
	cfg.ExternalID = "extid-1"
	ep, req, raw := v.request(t)
	st, err := newClient(t, cfg).Open(t.Context(), ep, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Cancel)
	if len(raw) > 0 {
		if err := st.Write(raw); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	return st, f
}

// TestVectors replays the recorded calls: the path, the signed headers and the payload must be the same bytes, and the
// answers must be understood.
func TestVectors(t *testing.T) {
	for _, tt := range []struct {
		name  string
		check func(t *testing.T, st transport.Stream)
	}{
		{"lambda-02-invoke", wantFrames("application/vnd.restate.invocation.v6")},
		{"lambda-03-invoke-object", wantFrames("application/vnd.restate.invocation.v6")},
		{"lambda-04-discover", func(t *testing.T, st transport.Stream) {
			resp, err := st.Response()
			if err != nil || resp.Status != 200 || resp.Get("Content-Type") != "application/vnd.restate.endpointmanifest.v4+json" {
				t.Fatalf("got %+v, %v", resp, err)
			}
			body, err := io.ReadAll(st)
			if err != nil || !json.Valid(body) || !bytes.Contains(body, []byte(`"lambdaCompression":"zstd"`)) {
				t.Errorf("got %s, %v", body, err)
			}
		}},
		{"lambda-05-invoke-zstd-response", wantFrames("application/vnd.restate.invocation.v6")},
		{"lambda-06-invoke-zstd-request", wantFailure(transport.FunctionFailed, "doesn't support compression")},
		{"lambda-07-function-error", wantFailure(transport.FunctionFailed, `function returned an error during execution: {"errorMessage":"boom"`)},
		{"lambda-08-throttle", wantFailure(transport.Throttled, "Rate Exceeded")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := loadVector(t, tt.name)
			st, f := v.replay(t)
			tt.check(t, st)
			calls := f.received()
			v.sameCall(t, calls[len(calls)-1])
			if _, ok := v.Request.Headers["x-amz-security-token"]; ok {
				sameAssume(t, calls[0])
			} else if len(calls) != 1 {
				t.Errorf("%d calls", len(calls))
			}
		})
	}
}

func (v vector) sameCall(t *testing.T, c call) {
	t.Helper()
	if c.method != v.Request.Method || c.uri != v.Request.URL {
		t.Errorf("called %s %s, want %s %s", c.method, c.uri, v.Request.Method, v.Request.URL)
	}
	for _, name := range []string{"content-type", "x-amz-security-token", "x-amz-invocation-type", "x-amz-log-type", "x-amz-client-context"} {
		if got, want := c.header.Get(name), v.Request.Headers[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got, want := scope(c.header.Get("authorization")), scope(v.Request.Headers["authorization"]); got != want {
		t.Errorf("signed for %q, want %q", got, want)
	}
	got, want := string(c.body), v.Request.Body
	if strings.Contains(want, `"content-encoding":"zstd"`) { // compressors differ
		got, want = unzipBody(t, got), unzipBody(t, want)
	}
	if got != want {
		t.Errorf("payload is\n%s, want\n%s", got, want)
	}
}

// scope is the key and the service of a signature, without its date: "AKIABASE eu-west-1/lambda/aws4_request".
func scope(authorization string) string {
	_, credential, _ := strings.Cut(authorization, "Credential=")
	credential, _, _ = strings.Cut(credential, ",")
	key, rest, _ := strings.Cut(credential, "/")
	_, rest, _ = strings.Cut(rest, "/")
	return key + " " + rest
}

// unzipBody replaces the compressed body of a payload by what it holds.
func unzipBody(t *testing.T, payload string) string {
	t.Helper()
	var e event
	if err := json.Unmarshal([]byte(payload), &e); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(e.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Replace(payload, e.Body, string(unzip(t, raw)), 1)
}

func sameAssume(t *testing.T, c call) {
	t.Helper()
	got, err := url.ParseQuery(string(c.body))
	if err != nil {
		t.Fatal(err)
	}
	want, err := url.ParseQuery(loadVector(t, "lambda-01-sts-assume-role").Request.Body)
	if err != nil {
		t.Fatal(err)
	}
	name := got.Get("RoleSessionName")
	if !strings.HasPrefix(name, "restate-") || len(name) != len(want.Get("RoleSessionName")) {
		t.Errorf("session name is %q", name)
	}
	got.Set("RoleSessionName", want.Get("RoleSessionName"))
	if got.Encode() != want.Encode() {
		t.Errorf("assume role with %s, want %s", got.Encode(), want.Encode())
	}
	if s := scope(c.header.Get("authorization")); s != "AKIABASE us-east-1/sts/aws4_request" {
		t.Errorf("signed for %q", s)
	}
}

func wantFrames(contentType string) func(*testing.T, transport.Stream) {
	return func(t *testing.T, st transport.Stream) {
		t.Helper()
		resp, err := st.Response()
		if err != nil || resp.Status != 200 || resp.Version != "" || resp.Get("content-type") != contentType || resp.Get("x-restate-server") == "" {
			t.Fatalf("got %+v, %v", resp, err)
		}
		body, err := io.ReadAll(st)
		if err != nil || len(body) < 8 || body[0] != 0x04 || !bytes.HasSuffix(body, []byte{0, 3, 0, 0, 0, 0, 0, 0}[1:]) {
			t.Errorf("got %x, %v", body, err) // an output command first, End last
		}
	}
}

func wantFailure(kind transport.Kind, text string) func(*testing.T, transport.Stream) {
	return func(t *testing.T, st transport.Stream) {
		t.Helper()
		_, err := st.Response()
		wantKind(t, err, kind, text)
		var failure *transport.Error
		if errors.As(err, &failure); kind == transport.Throttled && (failure.RetryAfter < 500*time.Millisecond || failure.RetryAfter > time.Minute) {
			t.Errorf("retry after %v", failure.RetryAfter)
		}
	}
}

func wantKind(t *testing.T, err error, kind transport.Kind, text string) {
	t.Helper()
	if transport.KindOf(err) != kind || !strings.Contains(err.Error(), text) {
		t.Fatalf("error %v is of kind %v, want %v with %q", err, transport.KindOf(err), kind, text)
	}
}
