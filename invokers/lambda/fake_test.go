package lambda

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.uber.org/goleak"

	"perdure/invokers/transport"
	"perdure/invokers/transport/transporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testARN  = "arn:aws:lambda:eu-west-1:123456789012:function:myfn:8"
	testRole = "arn:aws:iam::123456789012:role/restate"
)

// call is what the fake API received.
type call struct {
	method, uri string
	header      http.Header
	body        []byte
}

// fakeAPI serves the Lambda and STS APIs: STS at "/", everything else at invoke.
type fakeAPI struct {
	t      *testing.T
	url    string
	invoke http.HandlerFunc // gets the payload as body
	sts    http.HandlerFunc

	mu    sync.Mutex
	calls []call
}

func newFakeAPI(t *testing.T, invoke http.HandlerFunc) *fakeAPI {
	f := &fakeAPI{t: t, invoke: invoke}
	srv := httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(srv.Close)
	f.url = srv.URL
	return f
}

// inMemory starts a fake API on pipes, for a test in a bubble, and returns a client that reaches it.
func inMemory(t *testing.T, invoke http.HandlerFunc) *Client {
	f := &fakeAPI{t: t, url: "http://lambda", invoke: invoke}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	_ = srv.Listener.Close() // nothing was done with it
	pipes := transporttest.NewPipes()
	srv.Listener = pipes
	srv.Start()
	t.Cleanup(srv.Close)
	c := newClient(t, f.config())
	c.clients.own.Transport.(*http.Transport).DialContext = pipes.Dial
	return c
}

func (f *fakeAPI) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the caller gave up
	}
	f.mu.Lock()
	f.calls = append(f.calls, call{r.Method, r.RequestURI, r.Header.Clone(), body})
	f.mu.Unlock()
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	if r.RequestURI == "/" {
		f.sts(w, r)
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=") {
		apiError(w, 403, "MissingAuthenticationTokenException", "Missing Authentication Token")
		return
	}
	f.invoke(w, r)
}

// received returns the calls so far.
func (f *fakeAPI) received() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]call(nil), f.calls...)
}

func apiError(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-ErrorType", code)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, `{"Type":"User","message":"`+message+`"}`) // the client's error tells
}

// config points the SDK at the fake.
func (f *fakeAPI) config() Config {
	return DefaultConfig(aws.Config{
		Region:       "us-east-1",
		BaseEndpoint: aws.String(f.url),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIABASE", SecretAccessKey: "secret"}, nil
		}),
	})
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		for arn, fn := range c.functions {
			if !fn.limiter.idle() {
				t.Errorf("permits of %s are held after Close", arn)
			}
		}
	})
	return c
}

// event is a payload as a function sees it.
type event struct {
	Path            string            `json:"path"`
	Method          string            `json:"httpMethod"`
	Headers         map[string]string `json:"headers"`
	Body            string            `json:"body"`
	IsBase64Encoded bool              `json:"isBase64Encoded"`
}

// function runs an http.Handler as a Lambda function with an SDK would.
func handlerFunction(t *testing.T, h http.Handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var e event
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Errorf("decode event: %v", err)
		}
		body, err := base64.StdEncoding.DecodeString(e.Body)
		if err != nil || !e.IsBase64Encoded {
			t.Errorf("decode body: %v", err)
		}
		inner := httptest.NewRequestWithContext(r.Context(), e.Method, (&url.URL{Path: e.Path}).String(), strings.NewReader(string(body)))
		for name, value := range e.Headers {
			inner.Header.Set(name, value)
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, inner)
		out := map[string]any{
			"statusCode": rec.Code, "isBase64Encoded": true, "body": base64.StdEncoding.EncodeToString(rec.Body.Bytes()),
		}
		headers := map[string]string{}
		for name := range rec.Header() {
			headers[name] = rec.Header().Get(name)
		}
		out["headers"] = headers
		if err := json.NewEncoder(w).Encode(out); err != nil {
			t.Logf("answer: %v", err) // the caller gave up
		}
	}
}

func TestConformance(t *testing.T) {
	can := transporttest.Abilities{MaxBody: 1 << 20, Parallel: 50}
	transporttest.Run(t, can, func(t *testing.T, h http.Handler) (transport.Transport, transport.Endpoint) {
		return inMemory(t, handlerFunction(t, h)), transport.LambdaFunction(testARN, "", false)
	})
}
