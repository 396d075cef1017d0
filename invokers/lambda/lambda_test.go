package lambda

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/klauspost/compress/zstd"

	"perdure/invokers/transport"
)

func TestParseARN(t *testing.T) {
	for _, s := range []string{
		"arn:aws:lambda:eu-west-1:123456789012:function:f:7", "arn:aws-cn:lambda:cn-north-1:1:function:my_fn-2:live",
		"arn:aws:lambda:eu-west-1:123456789012:function:f:$LATEST",
	} {
		if a, err := ParseARN(s); err != nil || a.String() != s {
			t.Errorf("%s: got %+v, %v", s, a, err)
		}
	}
	for s, text := range map[string]string{
		"":     "no Lambda function ARN",
		"myfn": "no Lambda function ARN",
		"arn:aws:lambda:eu-west-1:123456789012:function:f":     "$LATEST",
		"arn:aws:lambda:eu-west-1:123456789012:function:f:":    "$LATEST",
		"arn:aws:lambda:eu-west-1:123456789012:function:f:1:2": "more parts",
		"arn:aws:lambda::123456789012:function:f:1":            "empty part",
		"arn::lambda:r:1:function:f:1":                         "empty part",
		"arn:aws:lambda:r::function:f:1":                       "empty part",
		"arn:aws:lambda:r:1:function::1":                       "empty part",
		"arn:aws:lambda:r:1:layer:f:1":                         "no Lambda function ARN",
		"arn:aws:s3:r:1:function:f:1":                          "no Lambda function ARN",
	} {
		if a, err := ParseARN(s); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %+v, %v, want an error with %q", s, a, err, text)
		}
	}
}

func TestLatestNeedsPermission(t *testing.T) {
	const latest = "arn:aws:lambda:eu-west-1:123456789012:function:myfn:$LATEST"
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	_, err := newClient(t, f.config()).Open(t.Context(), transport.LambdaFunction(latest, "", false), discovery)
	wantKind(t, err, transport.NotFound, "$LATEST is not allowed")
	cfg := f.config()
	cfg.AllowLatest = true
	st := call1(t, newClient(t, cfg), transport.LambdaFunction(latest, "", false), nil)
	if resp, err := st.Response(); err != nil || resp.Status != 200 {
		t.Errorf("got %+v, %v", resp, err)
	}
	_, err = newClient(t, cfg).Open(t.Context(), transport.LambdaFunction("arn:aws:lambda:r:1:function:f", "", false), discovery)
	wantKind(t, err, transport.NotFound, "no version")
}

var (
	discovery  = transport.Request{Method: "GET", Path: "/discover"}
	invocation = transport.Request{Method: "POST", Path: "/invoke/L/greet", Header: []transport.Field{{Name: "content-type", Value: "application/vnd.restate.invocation.v6"}}}
)

func answerWith(payload string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, payload) }
}

// call1 sends raw as one request.
func call1(t *testing.T, c *Client, ep transport.Endpoint, raw []byte) transport.Stream {
	t.Helper()
	st, err := c.Open(t.Context(), ep, invocation)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Cancel)
	if err := errors.Join(st.Write(raw), st.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	return st
}

// Each answer of the API must come out as the kind that tells the invoker what to do, with the words that tell a person.
func TestErrorKinds(t *testing.T) {
	tests := []struct {
		status     int
		code, text string
		kind       transport.Kind
		want       string
	}{
		{429, "TooManyRequestsException", "Rate Exceeded.", transport.Throttled, "Rate Exceeded."},
		{502, "EC2ThrottledException", "x", transport.Throttled, "EC2Throttled"},
		{502, "ENILimitReachedException", "x", transport.Throttled, "ENILimit"},
		{403, "AccessDeniedException", "User is not authorized", transport.AccessDenied, "needs lambda:InvokeFunction on " + testARN},
		{403, "ExpiredTokenException", "expired", transport.AccessDenied, "expired"},
		{403, "UnrecognizedClientException", "bad token", transport.AccessDenied, "bad token"},
		{403, "SomethingNew", "x", transport.AccessDenied, "SomethingNew"},
		{404, "ResourceNotFoundException", "Function not found", transport.NotFound, "Function not found"},
		{413, "RequestTooLargeException", "too large", transport.TooLarge, "too large"},
		{409, "ResourceConflictException", "being updated", transport.FunctionFailed, "being updated"},
		{502, "ResourceNotReadyException", "pending", transport.FunctionFailed, "pending"},
		{502, "InvalidRuntimeException", "x", transport.FunctionFailed, "InvalidRuntime"},
		{400, "SnapStartNotReadyException", "x", transport.FunctionFailed, "SnapStart"},
		{400, "InvalidParameterValueException", "bad", transport.Protocol, "bad"},
		{415, "UnsupportedMediaTypeException", "x", transport.Protocol, "UnsupportedMediaType"},
		{500, "ServiceException", "oops", transport.Reset, "oops"},
		{503, "ServiceUnavailable", "oops", transport.Reset, "oops"},
	}
	for _, tt := range tests {
		t.Run(tt.code, func(t *testing.T) {
			f := newFakeAPI(t, func(w http.ResponseWriter, _ *http.Request) { apiError(w, tt.status, tt.code, tt.text) })
			st := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), []byte("x"))
			_, err := st.Response()
			wantKind(t, err, tt.kind, tt.want)
			if n := len(f.received()); n != 1 {
				t.Errorf("%d calls: the SDK retries", n)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	f := newFakeAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "17")
		apiError(w, 429, "TooManyRequestsException", "Rate Exceeded.")
	})
	_, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), []byte("x")).Response()
	var failure *transport.Error
	if !errors.As(err, &failure) || failure.RetryAfter != 17*time.Second {
		t.Errorf("got %+v", failure)
	}
}

// TestFastAnswers: an answer that begins as soon as the request is there arrives whole. The SDK's request bodies make
// net/http close the connection once in some sixty such calls. (Answers that are errors need no decoding and are fast.)
func TestFastAnswers(t *testing.T) {
	f := newFakeAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Amz-Function-Error", "Unhandled")
		_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
	})
	c := newClient(t, f.config())
	for i := range 300 {
		_, err := call1(t, c, transport.LambdaFunction(testARN, "", false), nil).Response()
		if transport.KindOf(err) != transport.FunctionFailed {
			t.Fatalf("call %d: %v", i, err)
		}
	}
}

func TestFunctionErrors(t *testing.T) {
	for payload, want := range map[string]string{
		`{"errorType":"Sandbox.Timedout","errorMessage":"Task timed out after 3.00 seconds"}`: "raise the function's timeout",
		`{"errorType":"Runtime.ExitError","errorMessage":"exit status 2"}`:                    "out of memory",
		`not json`:                 "not json",
		``:                         "function returned an error",
		strings.Repeat("x", 1<<20): "xxx",
	} {
		f := newFakeAPI(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amz-Function-Error", "Unhandled")
			_, _ = io.WriteString(w, payload)
		})
		_, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), nil).Response()
		wantKind(t, err, transport.FunctionFailed, want)
		if len(err.Error()) > 5000 {
			t.Errorf("error has %d bytes", len(err.Error()))
		}
	}
}

func TestBadAnswers(t *testing.T) {
	for payload, want := range map[string]string{
		``:                                     "no payload",
		`null`:                                 "status 0",
		`"hello"`:                              "no answer of an SDK endpoint",
		`{"statusCode":200`:                    "no answer of an SDK endpoint",
		`{}`:                                   "does it run an SDK endpoint",
		`{"statusCode":102}`:                   "status 102",
		`{"statusCode":200,"headers":{"a":5}}`: "no answer of an SDK endpoint",
		`{"statusCode":200,"body":"a","isBase64Encoded":true}`:                                      "decode the body",
		`{"statusCode":200,"body":"!!!!","isBase64Encoded":true}`:                                   "decode the body",
		`{"statusCode":200,"headers":{"content-encoding":"gzip"},"body":"","isBase64Encoded":true}`: "content-encoding",
		`{"statusCode":200,"body":"` + strings.Repeat("x", 9<<20) + `"}`:                            "larger than Lambda allows",
	} {
		f := newFakeAPI(t, answerWith(payload))
		_, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), nil).Response()
		wantKind(t, err, transport.Protocol, want)
	}
}

func TestAnswersOfManyShapes(t *testing.T) {
	for payload, want := range map[string]string{
		`{"statusCode":200,"headers":null,"body":null}`:                                                                    "",
		`{"statusCode":200,"body":"plain","cookies":[],"more":{"x":1}}`:                                                    "plain",
		`{"statusCode":200,"body":"aGk=","isBase64Encoded":true}`:                                                          "hi",
		`{"statusCode":200,"headers":{"Content-Encoding":" ZSTD "},"body":"` + zipped("big") + `","isBase64Encoded":true}`: "big",
		`{"statusCode":200,"headers":{"content-encoding":["zstd"]},"body":"` + zipped("") + `","isBase64Encoded":true}`:    "",
		`{"statusCode":200,"headers":{"x":null},"body":"ü"}`:                                                               "ü",
	} {
		f := newFakeAPI(t, answerWith(payload))
		st := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", true), nil)
		if body, err := io.ReadAll(st); err != nil || string(body) != want {
			t.Errorf("%s: got %q, %v", payload, body, err)
		}
	}
}

func zipped(s string) string {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer w.Close()
	return base64.StdEncoding.EncodeToString(w.EncodeAll([]byte(s), nil))
}

func TestListOfHeaderValues(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200,"headers":{"Content-Type":["a","b"],"x":"y"}}`))
	resp, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), nil).Response()
	if err != nil || resp.Get("content-type") != "a" || resp.Get("X") != "y" {
		t.Errorf("got %+v, %v", resp, err)
	}
}

// A response that decompresses to very much is cut off, and costs no memory before it is read.
func TestDecompressionIsBounded(t *testing.T) {
	bomb := zipped(strings.Repeat("x", 8<<20))
	f := newFakeAPI(t, answerWith(`{"statusCode":200,"headers":{"content-encoding":"zstd"},"body":"`+bomb+`","isBase64Encoded":true}`))
	cfg := f.config()
	cfg.MaxResponse = 1 << 20
	st := call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, "", true), nil)
	n, err := io.Copy(io.Discard, st)
	wantKind(t, err, transport.Protocol, "longer than 1048576 bytes when decompressed")
	if n > cfg.MaxResponse {
		t.Errorf("read %d bytes", n)
	}
	if st.Buffered() != -1 {
		t.Errorf("buffered is %d", st.Buffered())
	}
}

func TestCorruptCompression(t *testing.T) {
	good, err := base64.StdEncoding.DecodeString(zipped(strings.Repeat("text ", 1000)))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{"garbage": []byte("garbage!"), "truncated": good[:len(good)-5]} {
		f := newFakeAPI(t, answerWith(`{"statusCode":200,"headers":{"content-encoding":"zstd"},"body":"`+base64.StdEncoding.EncodeToString(body)+`","isBase64Encoded":true}`))
		st := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", true), nil)
		_, err := io.Copy(io.Discard, st)
		if transport.KindOf(err) != transport.Protocol {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A request over the limit is refused before it is sent, with advice.
func TestTooLargeRequest(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	cfg := f.config()
	cfg.MaxPayload /= 32
	limit := cfg.MaxPayload
	c := newClient(t, cfg)
	st, err := c.Open(t.Context(), transport.LambdaFunction(testARN, "", false), invocation)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	var failed error
	for range 10 {
		if failed = st.Write(make([]byte, limit/5)); failed != nil {
			break
		}
	}
	wantKind(t, failed, transport.TooLarge, "lazy state")
	wantKind(t, failed, transport.TooLarge, "zstd")
	wantKind(t, st.CloseWrite(), transport.TooLarge, "")
	_, err = st.Response()
	wantKind(t, err, transport.TooLarge, "")

	// Just under the limit of the body, over it with the rest of the payload.
	st, err = c.Open(t.Context(), transport.LambdaFunction(testARN, "", false), invocation)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	if err := st.Write(make([]byte, base64.StdEncoding.DecodedLen(limit))); err != nil {
		t.Fatal(err)
	}
	wantKind(t, st.CloseWrite(), transport.TooLarge, "lazy state")

	// Compression does not help what is random.
	st, err = c.Open(t.Context(), transport.LambdaFunction(testARN, "", true), invocation)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Cancel()
	noise := make([]byte, limit)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(noise) // never fails
	if err := st.Write(noise); err != nil {
		t.Fatal(err)
	}
	wantKind(t, st.CloseWrite(), transport.TooLarge, "lazy state")
	if n := len(f.received()); n != 0 {
		t.Errorf("%d calls were made", n)
	}
}

func TestCompressionAboveTheThreshold(t *testing.T) {
	if d := DefaultConfig(aws.Config{}); d.CompressAbove != 4<<20 || d.MaxPayload != 6<<20 {
		t.Errorf("defaults are %d, %d", d.CompressAbove, d.MaxPayload)
	}
	const threshold = 4 << 10
	for size, want := range map[int]string{0: "", threshold - 1: "", threshold: "zstd", 1 << 20: "zstd"} {
		raw := bytes.Repeat([]byte("journal "), size/8+1)[:size]
		f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
		cfg := f.config()
		cfg.CompressAbove = threshold
		cfg.MaxPayload = threshold * 3 / 2
		st := call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, "", true), raw)
		if _, err := st.Response(); err != nil {
			t.Fatal(err)
		}
		var e event
		if err := json.Unmarshal(f.received()[0].body, &e); err != nil {
			t.Fatal(err)
		}
		if e.Headers["accept-encoding"] != "zstd" || e.Headers["content-encoding"] != want {
			t.Errorf("%d bytes: headers are %v", size, e.Headers)
		}
		got, err := base64.StdEncoding.DecodeString(e.Body)
		if err != nil {
			t.Fatal(err)
		}
		if want != "" {
			got = unzip(t, got)
		}
		if !bytes.Equal(got, raw) {
			t.Errorf("%d bytes: body differs", size)
		}
	}
}

func TestEventEscaping(t *testing.T) {
	req := transport.Request{Method: "POST", Path: "/invoke/S/h", Header: []transport.Field{
		{Name: "a", Value: "quote \" back \\ tab \t nl \n ctl \x01 html <&> sep \u2028 ü bad \xff"}, {Name: "b", Value: "1"}, {Name: "b", Value: "2"}, {Name: "c", Value: ""},
	}}
	got := string(appendEvent(nil, req, nil, []byte{0xfb, 0xff}))
	want := "{\"path\":\"/invoke/S/h\",\"httpMethod\":\"POST\",\"headers\":{\"a\":\"quote \\\" back \\\\ tab \\t nl \\n ctl \\u0001 html <&> sep \u2028 ü bad \ufffd\",\"b\":\"1, 2\",\"c\":\"\"},\"body\":\"+/8=\",\"isBase64Encoded\":true}"
	if got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	var e event
	if err := json.Unmarshal([]byte(got), &e); err != nil {
		t.Error(err)
	}
}

func TestRoleThatMayNotBeAssumed(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	f.sts = func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(403)
		_, _ = io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not authorized</Message></Error></ErrorResponse>`)
	}
	_, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, testRole, false), nil).Response()
	wantKind(t, err, transport.AccessDenied, "sts:AssumeRole on "+testRole)
}

func TestSTSAway(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	f.sts = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }
	cfg := f.config()
	cfg.AWS.Retryer = func() aws.Retryer { return aws.NopRetryer{} }
	_, err := call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, testRole, false), nil).Response()
	wantKind(t, err, transport.Connect, "assume role "+testRole)
	if n := len(f.received()); n != 1 {
		t.Errorf("%d calls", n)
	}
}

func TestNoCredentials(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	cfg := f.config()
	cfg.AWS.Credentials = nil
	_, err := call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, "", false), nil).Response()
	wantKind(t, err, transport.Connect, "none are configured")
}

func TestSessionTags(t *testing.T) {
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	f.sts = loadVector(t, "lambda-01-sts-assume-role").answer
	cfg := f.config()
	cfg.SessionTags = map[string]string{"cluster": "c1", "app": "perdure"}
	cfg.SessionName = "perdure"
	cfg.AWS.Region = "" // the function's is taken
	c := newClient(t, cfg)
	for range 3 { // one session serves all calls
		if _, err := call1(t, c, transport.LambdaFunction(testARN, testRole, false), nil).Response(); err != nil {
			t.Fatal(err)
		}
	}
	calls := f.received()
	if len(calls) != 4 {
		t.Fatalf("%d calls", len(calls))
	}
	body := string(calls[0].body)
	for _, want := range []string{"Tags.member.1.Key=app", "Tags.member.1.Value=perdure", "Tags.member.2.Key=cluster", "RoleSessionName=perdure-"} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is missing in %s", want, body)
		}
	}
	if strings.Contains(body, "ExternalId") || scope(calls[0].header.Get("authorization")) != "AKIABASE eu-west-1/sts/aws4_request" {
		t.Errorf("got %s, %v", body, calls[0].header)
	}
}

func TestUnreachableAPI(t *testing.T) {
	f := newFakeAPI(t, nil)
	conn, err := net.Dial("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cfg := f.config()
	cfg.AWS.BaseEndpoint = aws.String("http://" + conn.LocalAddr().String()) // nobody listens there, nor can while it is in use
	_, err = call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, "", false), nil).Response()
	wantKind(t, err, transport.Connect, "refused")
}

func TestBrokenConnection(t *testing.T) {
	f := newFakeAPI(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := call1(t, newClient(t, f.config()), transport.LambdaFunction(testARN, "", false), nil).Response()
	wantKind(t, err, transport.Reset, "")
}

func TestCallTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := (&fakeAPI{url: "http://lambda"}).config()
		cfg.AWS.HTTPClient = silent{}
		began := time.Now()
		_, err := call1(t, newClient(t, cfg), transport.LambdaFunction(testARN, "", false), nil).Response()
		wantKind(t, err, transport.Timeout, "")
		if d := time.Since(began); d != cfg.CallTimeout {
			t.Errorf("ended after %v, want %v", d, cfg.CallTimeout)
		}
	})
}

// silent is an API that never answers.
type silent struct{}

func (silent) Do(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestCloseEndsCalls(t *testing.T) {
	came := make(chan struct{})
	f := newFakeAPI(t, func(_ http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
	})
	c := newClient(t, f.config())
	ep := transport.LambdaFunction(testARN, "", false)
	running := call1(t, c, ep, nil)
	<-came
	prepared, err := c.Open(t.Context(), ep, invocation)
	if err != nil {
		t.Fatal(err)
	}
	defer prepared.Cancel()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = running.Response()
	wantKind(t, err, transport.Canceled, "closed")
	if err := prepared.CloseWrite(); err != nil {
		wantKind(t, err, transport.Canceled, "closed")
	}
	_, err = prepared.Response()
	wantKind(t, err, transport.Canceled, "closed")
	_, err = c.Open(t.Context(), ep, invocation)
	wantKind(t, err, transport.Canceled, "closed")
}

// A call that still waits for its credentials ends as any other.
func TestCloseEndsRefreshes(t *testing.T) {
	came := make(chan struct{})
	f := newFakeAPI(t, answerWith(`{"statusCode":200}`))
	f.sts = func(_ http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
	}
	c := newClient(t, f.config())
	st := call1(t, c, transport.LambdaFunction(testARN, testRole, false), nil)
	<-came
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := st.Response()
	wantKind(t, err, transport.Canceled, "closed")
}

// While the API refuses calls, attempts end at once instead of waiting, and when it no longer does, calls pass again.
func TestThrottledFunction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no time passes in it, because somebody can always go on
		throttle := make(chan bool, 1)
		throttle <- true
		c := inMemory(t, func(w http.ResponseWriter, _ *http.Request) {
			on := <-throttle
			throttle <- on
			if on {
				apiError(w, 429, "TooManyRequestsException", "Rate Exceeded.")
				return
			}
			_, _ = io.WriteString(w, `{"statusCode":200}`)
		})
		ep := transport.LambdaFunction(testARN, "", false)
		_, err := call1(t, c, ep, nil).Response()
		wantKind(t, err, transport.Throttled, "Rate Exceeded")

		first, err := c.Open(t.Context(), ep, invocation) // one may run
		if err != nil {
			t.Fatal(err)
		}
		defer first.Cancel()
		waiting := make(chan error, 1)
		go func() { // and one may wait for it
			st, err := c.Open(t.Context(), ep, invocation)
			if err == nil {
				st.Cancel()
			}
			waiting <- err
		}()
		synctest.Wait()
		if n := len(c.functions[testARN].limiter.waiters); n != 1 {
			t.Fatalf("%d wait for a permit", n)
		}
		_, err = c.Open(t.Context(), ep, invocation)
		wantKind(t, err, transport.Throttled, "as many calls")
		other := transport.LambdaFunction(strings.Replace(testARN, "myfn", "other", 1), "", false)
		if st, err := c.Open(t.Context(), other, invocation); err != nil {
			t.Errorf("another function: %v", err)
		} else {
			st.Cancel()
		}

		<-throttle
		throttle <- false
		if err := first.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := first.Response(); err != nil {
			t.Fatal(err)
		}
		if err := <-waiting; err != nil {
			t.Error(err)
		}
		for range 20 {
			if _, err := call1(t, c, ep, nil).Response(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestManyVersionsAreForgotten(t *testing.T) {
	f := newFakeAPI(t, nil)
	c := newClient(t, f.config())
	busy, err := c.Open(t.Context(), transport.LambdaFunction(testARN, "", false), invocation)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxFunctions {
		st, err := c.Open(t.Context(), transport.LambdaFunction(fmt.Sprintf("arn:aws:lambda:r:1:function:f%d:%d", i%10, i), "", false), invocation)
		if err != nil {
			t.Fatal(err)
		}
		st.Cancel()
	}
	if len(c.functions) > maxFunctions || len(c.limiters) > 11 {
		t.Errorf("%d functions and %d limiters are remembered", len(c.functions), len(c.limiters))
	}
	if c.functions[testARN] == nil {
		t.Error("a function in use was forgotten")
	}
	busy.Cancel()
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"statusCode":200,"headers":{"a":"b","c":["d"]},"body":"aGk=","isBase64Encoded":true}`))
	f.Add([]byte(`{"statusCode":200,"headers":{"content-encoding":"zstd"},"body":"` + zipped("hello") + `","isBase64Encoded":true}`))
	f.Add([]byte(`null`))
	c, err := New(DefaultConfig(aws.Config{}), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = c.Close() })
	f.Fuzz(func(t *testing.T, payload []byte) {
		resp, body, zip, err := decodeAnswer(payload)
		if err != nil {
			return
		}
		if resp.Status < 200 || resp.Status > 999 {
			t.Fatalf("status %d", resp.Status)
		}
		s := &stream{c: c, fn: &function{}, ctx: context.Background(), readable: make(chan struct{}, 1)}
		if failure := s.serve(resp, body, zip); failure != nil {
			return
		}
		n, err := io.Copy(io.Discard, s)
		if err != nil && transport.KindOf(err) != transport.Protocol || n > c.cfg.MaxResponse {
			t.Fatalf("read %d, %v", n, err)
		}
		if s.Buffered() != -1 {
			t.Fatalf("buffered is %d", s.Buffered())
		}
	})
}

func BenchmarkInvoke(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"statusCode":200,"headers":{"content-type":"x"},"body":"`+base64.StdEncoding.EncodeToString(make([]byte, 100))+`","isBase64Encoded":true}`)
	}))
	defer srv.Close()
	cfg := DefaultConfig(aws.Config{Region: "r", BaseEndpoint: &srv.URL, Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "s"}, nil
	})})
	c, err := New(cfg, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	raw := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		st, err := c.Open(context.Background(), transport.LambdaFunction(testARN, "", false), invocation)
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(st.Write(raw), st.CloseWrite()); err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, st); err != nil {
			b.Fatal(err)
		}
		st.Cancel()
	}
}
