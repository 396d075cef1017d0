package lambdaemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	awslambda "github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	api "github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	"go.uber.org/goleak"
)

// The test binary is also the bootstrap of the functions: this variable tells them apart.
const asFunction = "LAMBDAEMU_TEST_FUNCTION"

func TestMain(m *testing.M) {
	if os.Getenv(asFunction) != "" {
		runFunction(os.Getenv(asFunction))
		return
	}
	goleak.VerifyTestMain(m)
}

// order is what a test asks of the function.
type order struct {
	Do    string
	Bytes int
	For   time.Duration
	URL   string // of what answers when the function may go on
}

// reply is what the function says of itself.
type reply struct {
	Pid, Calls int
	Version    string
	Filler     string
}

func runFunction(mode string) {
	switch mode {
	case "exit-at-start":
		os.Exit(3)
	case "init-error":
		resp, err := http.Post("http://"+os.Getenv("AWS_LAMBDA_RUNTIME_API")+"/2018-06-01/runtime/init/error", "application/json", strings.NewReader(`{"errorType":"Runtime.BadConfig","errorMessage":"no table"}`))
		if err == nil {
			resp.Body.Close()
		}
		os.Exit(1)
	}
	go func() { // the background work
		for range time.Tick(time.Millisecond) {
		}
	}()
	calls := 0
	awslambda.Start(func(ctx context.Context, o order) (reply, error) {
		calls++
		switch o.Do {
		case "exit":
			os.Exit(7)
		case "fail":
			return reply{}, errors.New("it failed")
		case "panic":
			panic("it panicked")
		case "wait":
			<-time.After(o.For)
		case "ask":
			resp, err := http.Get(o.URL)
			if err != nil {
				return reply{}, err
			}
			resp.Body.Close()
		}
		return reply{Pid: os.Getpid(), Calls: calls, Version: os.Getenv("AWS_LAMBDA_FUNCTION_VERSION"), Filler: strings.Repeat("x", o.Bytes)}, nil
	})
}

const (
	testARN  = "arn:aws:lambda:eu-west-1:123456789012:function:f"
	testRole = "arn:aws:iam::123456789012:role/invoke"
)

func newEmulator(t *testing.T, cfg Config, f Function) *Emulator {
	t.Helper()
	e, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	e.AddUser(User{AccessKeyID: "AKTEST", SecretAccessKey: "secret", Invoke: []string{testARN + ":*"}, AssumeRole: []string{testRole}})
	f.ARN = testARN
	if f.Env == nil {
		f.Env = []string{asFunction + "=normal"}
	}
	if f.Timeout == 0 {
		f.Timeout = 20 * time.Second
	}
	if err := e.CreateFunction(f); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if arn, err := e.Publish(testARN, self); err != nil || arn != testARN+":1" {
		t.Fatal(arn, err)
	}
	return e
}

func keys(id, secret, token string) aws.CredentialsProvider {
	return aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: id, SecretAccessKey: secret, SessionToken: token}, nil
	})
}

func client(t *testing.T, e *Emulator, creds aws.CredentialsProvider, change ...func(*api.Options)) *api.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return api.New(api.Options{Region: "eu-west-1", BaseEndpoint: aws.String(e.URL()), Credentials: creds, Retryer: aws.NopRetryer{},
		HTTPClient: &http.Client{Transport: tr}}, change...)
}

var good = keys("AKTEST", "secret", "")

type outcome struct {
	reply
	payload, functionError string
	err                    error
}

func call(t *testing.T, c *api.Client, arn string, o order) outcome {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.Invoke(t.Context(), &api.InvokeInput{FunctionName: &arn, Payload: b})
	if err != nil {
		return outcome{err: err}
	}
	r := outcome{payload: string(out.Payload), functionError: aws.ToString(out.FunctionError)}
	if r.functionError == "" {
		if err := json.Unmarshal(out.Payload, &r.reply); err != nil {
			t.Error(err)
		}
	}
	return r
}

func code(err error) string {
	var a smithy.APIError
	if errors.As(err, &a) {
		return a.ErrorCode()
	}
	return fmt.Sprint(err)
}

// TestWarmAndFrozen: the next call finds the same process, which did nothing in between, unless it is not frozen.
func TestWarmAndFrozen(t *testing.T) {
	for _, thawed := range []bool{false, true} {
		e := newEmulator(t, Config{}, Function{NoFreeze: thawed})
		c := client(t, e, good)
		first := call(t, c, testARN+":1", order{})
		if first.err != nil || first.Calls != 1 || first.Version != "1" {
			t.Fatalf("got %+v", first)
		}
		if thawed {
			if frozen(t, first.Pid) {
				t.Error("the process is stopped in spite of NoFreeze")
			}
		} else {
			awaitFrozen(t, first.Pid)
		}
		second := call(t, c, testARN+":1", order{})
		if second.Pid != first.Pid || second.Calls != 2 {
			t.Errorf("got %+v after %+v", second, first)
		}
		if n := e.Recycle(testARN); n != 1 {
			t.Errorf("%d processes were recycled", n)
		}
		third := call(t, c, testARN+":1", order{})
		if third.Pid == first.Pid || third.Calls != 1 {
			t.Errorf("got %+v after %+v", third, first)
		}
		if s := e.Stats(testARN); s.Calls != 3 || s.ColdStarts != 2 || s.Failures != 0 || s.Running != 0 || s.Peak != 1 {
			t.Errorf("stats %+v", s)
		}
	}
}

// threads gives what the kernel says about each thread of a process in one of its files.
func threads(t *testing.T, pid int, file string) (all []string) {
	t.Helper()
	names, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", pid, file))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(b))
	}
	return all
}

// frozen says whether all threads of a process are stopped.
func frozen(t *testing.T, pid int) bool {
	t.Helper()
	for _, stat := range threads(t, pid, "stat") {
		if !strings.HasPrefix(stat[strings.LastIndexByte(stat, ')')+1:], " T") {
			return false
		}
	}
	return true
}

// awaitFrozen waits until a process is stopped: the signal takes effect a moment after it was sent.
func awaitFrozen(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !frozen(t, pid); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process is not stopped within a minute")
		}
	}
}

// switches counts how often the threads of a process gave a processor back.
func switches(t *testing.T, pid int) (n int) {
	t.Helper()
	for _, status := range threads(t, pid, "status") {
		for line := range strings.Lines(status) {
			if what, count, _ := strings.Cut(line, ":"); strings.HasSuffix(what, "ctxt_switches") {
				c, err := strconv.Atoi(strings.TrimSpace(count))
				if err != nil {
					t.Fatal(err)
				}
				n += c
			}
		}
	}
	return n
}

// TestNoTimePassesFrozen: a frozen process's background work stands still however long the pause is; that of another goes on.
func TestNoTimePassesFrozen(t *testing.T) {
	for _, thawed := range []bool{false, true} {
		e := newEmulator(t, Config{}, Function{NoFreeze: thawed})
		c := client(t, e, good)
		first := call(t, c, testARN+":1", order{})
		if !thawed {
			awaitFrozen(t, first.Pid)
		}
		// A thread that is said to be stopped may still have to give its processor back, and one that works may get none for a
		// while; but each has its pause in the end.
		for deadline := time.Now().Add(time.Minute); ; {
			before := switches(t, first.Pid)
			<-time.After(300 * time.Millisecond)
			n := switches(t, first.Pid) - before
			if thawed == (n > 0) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("threads of the process ran %d times during a pause of 300 ms, frozen: %v", n, !thawed)
			}
		}
		if second := call(t, c, testARN+":1", order{}); second.Pid != first.Pid {
			t.Errorf("got %+v after %+v, want the same process", second, first)
		}
	}
}

// TestFailures: what goes wrong in a function arrives as a function error, and the process that is lost is replaced.
func TestFailures(t *testing.T) {
	e := newEmulator(t, Config{}, Function{Timeout: time.Minute})
	c := client(t, e, good)
	for _, x := range []struct {
		order  order
		says   string
		closes bool
	}{
		{order{Do: "fail"}, `"errorMessage":"it failed"`, false},
		{order{Do: "panic"}, `it panicked`, true},
		{order{Do: "exit"}, `Runtime exited with error: exit status 7`, true},
		{order{Do: "wait", For: time.Hour}, `Task timed out after 0.50 seconds`, true},
		{order{Bytes: MaxResponse}, `Function.ResponseSizeTooLarge`, true},
	} {
		before := call(t, c, testARN+":1", order{})
		if x.order.Do == "wait" { // what is good must not be late on a slow machine
			if err := e.SetTimeout(testARN, 500*time.Millisecond); err != nil {
				t.Fatal(err)
			}
		}
		got := call(t, c, testARN+":1", x.order)
		if err := e.SetTimeout(testARN, time.Minute); err != nil {
			t.Fatal(err)
		}
		if got.err != nil || got.functionError != "Unhandled" || !strings.Contains(got.payload, x.says) {
			t.Errorf("%+v: got %q %.300s %v, want %s", x.order, got.functionError, got.payload, got.err, x.says)
		}
		after := call(t, c, testARN+":1", order{})
		if after.err != nil || (after.Pid != before.Pid) != x.closes {
			t.Errorf("%+v: process %d before, %d after, %v", x.order, before.Pid, after.Pid, after.err)
		}
	}
	if s := e.Stats(testARN); s.Failures != 5 || s.Running != 0 {
		t.Errorf("stats %+v", s)
	}
}

func TestFailedStarts(t *testing.T) {
	for mode, says := range map[string]string{"exit-at-start": "exit status 3", "init-error": "no table"} {
		e := newEmulator(t, Config{}, Function{Env: []string{asFunction + "=" + mode}})
		if got := call(t, client(t, e, good), testARN+":1", order{}); got.functionError == "" || !strings.Contains(got.payload, says) {
			t.Errorf("%s: got %+v", mode, got)
		}
	}
	e := newEmulator(t, Config{}, Function{})
	if _, err := e.Publish(testARN, "/nonexistent/bootstrap"); err != nil {
		t.Fatal(err)
	}
	if got := call(t, client(t, e, good), testARN+":2", order{}); code(got.err) != "InvalidRuntimeException" {
		t.Errorf("got %+v", got)
	}
}

// TestThrottling: above the limit calls are refused at once, and other processes do not start.
func TestThrottling(t *testing.T) {
	began, over := make(chan struct{}, 10), make(chan struct{})
	gate := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-over }))
	defer gate.Close()
	e := newEmulator(t, Config{}, Function{Concurrency: 2, Timeout: time.Minute})
	e.SetFault(func(Call) Fault { began <- struct{}{}; return Fault{} })
	c := client(t, e, good)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if got := call(t, c, testARN+":1", order{Do: "ask", URL: gate.URL}); got.err != nil || got.functionError != "" {
				t.Error(got.err, got.payload)
			}
		})
	}
	<-began
	<-began
	deadline := time.Now().Add(time.Minute)
	for e.Stats(testARN).Running < 2 && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	got := call(t, c, testARN+":1", order{})
	close(over)
	var throttled *types.TooManyRequestsException
	if !errors.As(got.err, &throttled) {
		t.Errorf("got %+v", got)
	}
	wg.Wait()
	if s := e.Stats(testARN); s.Throttles != 1 || s.Peak != 2 || s.ColdStarts != 2 {
		t.Errorf("stats %+v", s)
	}
	if err := e.SetConcurrency(testARN, 0); err != nil {
		t.Fatal(err)
	}
	if got := call(t, c, testARN+":1", order{}); code(got.err) != "TooManyRequestsException" {
		t.Errorf("at a limit of 0: got %+v", got)
	}
}

func TestVersionsAndAliases(t *testing.T) {
	e := newEmulator(t, Config{}, Function{})
	c := client(t, e, good)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if arn, err := e.Publish(testARN, self); err != nil || arn != testARN+":2" {
		t.Fatal(arn, err)
	}
	for _, to := range []int{1, 2} {
		if _, err := e.SetAlias(testARN, "live", to); err != nil {
			t.Fatal(err)
		}
		if got := call(t, c, testARN+":live", order{}); got.Version != fmt.Sprint(to) {
			t.Errorf("alias to %d: got %+v", to, got)
		}
	}
	if got := call(t, c, testARN+":$LATEST", order{}); got.Version != "2" {
		t.Errorf("got %+v", got)
	}
	for _, arn := range []string{testARN + ":3", testARN + ":0", testARN + ":other"} {
		if got := call(t, c, arn, order{}); code(got.err) != "ResourceNotFoundException" {
			t.Errorf("%s: got %+v", arn, got)
		}
	}
	if _, err := e.SetAlias(testARN, "live", 3); err == nil {
		t.Error("an alias can point at a version that does not exist")
	}
}

// TestAccess: every way to be refused has its own code.
func TestAccess(t *testing.T) {
	e := newEmulator(t, Config{}, Function{})
	for _, x := range []struct {
		name  string
		creds aws.CredentialsProvider
		arn   string
		opt   func(*api.Options)
		code  string
	}{
		{"unknown key", keys("AKOTHER", "secret", ""), testARN + ":1", nil, "UnrecognizedClientException"},
		{"wrong secret", keys("AKTEST", "other", ""), testARN + ":1", nil, "InvalidSignatureException"},
		{"token not ours", keys("AKTEST", "secret", "token"), testARN + ":1", nil, "UnrecognizedClientException"},
		{"other function", good, testARN + "2:1", nil, "AccessDeniedException"},
		{"no qualifier", good, testARN, nil, "AccessDeniedException"},
		{"other region", good, testARN + ":1", func(o *api.Options) { o.Region = "eu-west-2" }, "InvalidSignatureException"},
	} {
		var opts []func(*api.Options)
		if x.opt != nil {
			opts = append(opts, x.opt)
		}
		if got := call(t, client(t, e, x.creds, opts...), x.arn, order{}); code(got.err) != x.code {
			t.Errorf("%s: got %+v, want %s", x.name, got, x.code)
		}
	}
	resp, err := http.Post(e.URL()+"/2015-03-31/functions/f/invocations", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 || resp.Header.Get("X-Amzn-Errortype") != "MissingAuthenticationTokenException" {
		t.Errorf("unsigned: got %v", resp)
	}
	if got := e.Stats(testARN); got.Calls != 0 {
		t.Errorf("refused calls ran: %+v", got)
	}
}

// TestTampered: a signed request of which anything is changed afterwards is refused.
func TestTampered(t *testing.T) {
	now := time.Now()
	e := newEmulator(t, Config{Now: func() time.Time { return now }}, Function{})
	for name, change := range map[string]func(*http.Request){
		"":     func(*http.Request) {},
		"body": func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("[]")), 2 },
		"path": func(r *http.Request) {
			r.URL.RawPath = strings.Replace(r.URL.RawPath, "%3A1/", "%3A2/", 1)
			r.URL.Path = strings.Replace(r.URL.Path, ":1/", ":2/", 1)
		},
		"query":          func(r *http.Request) { r.URL.RawQuery = "Qualifier=1" },
		"type":           func(r *http.Request) { r.Header.Set("X-Amz-Invocation-Type", "DryRun") },
		"date":           func(r *http.Request) { r.Header.Set("X-Amz-Date", now.Add(time.Second).UTC().Format(timeFormat)) },
		"unsigned token": func(r *http.Request) { r.Header.Set("X-Amz-Extra", "x") },
	} {
		arn := strings.ReplaceAll(testARN+":1", ":", "%3A")
		r, err := http.NewRequestWithContext(t.Context(), "POST", e.URL()+"/2015-03-31/functions/"+arn+"/invocations", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		creds, err := good.Retrieve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		const emptyObject = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
		if err := v4.NewSigner().SignHTTP(t.Context(), creds, r, emptyObject, "lambda", "eu-west-1", now); err != nil {
			t.Fatal(err)
		}
		change(r)
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if want := map[bool]int{true: 200, false: 403}[name == ""]; resp.StatusCode != want {
			t.Errorf("changed %q: got %d %s, want %d", name, resp.StatusCode, resp.Header.Get("X-Amzn-Errortype"), want)
		}
	}
}

func TestClock(t *testing.T) {
	var ahead atomic.Int64
	e := newEmulator(t, Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }}, Function{})
	c := client(t, e, good)
	for d, want := range map[time.Duration]string{0: "<nil>", 4 * time.Minute: "<nil>", 6 * time.Minute: "InvalidSignatureException", -6 * time.Minute: "InvalidSignatureException"} {
		ahead.Store(int64(d))
		if got := call(t, c, testARN+":1", order{}); code(got.err) != want {
			t.Errorf("clock off by %s: got %v, want %s", d, got.err, want)
		}
	}
}

func assume(t *testing.T, e *Emulator, creds aws.CredentialsProvider, in sts.AssumeRoleInput) (aws.CredentialsProvider, error) {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	c := sts.New(sts.Options{Region: "us-east-1", BaseEndpoint: aws.String(e.URL()), Credentials: creds, Retryer: aws.NopRetryer{}, HTTPClient: &http.Client{Transport: tr}})
	if in.RoleArn == nil {
		in.RoleArn = aws.String(testRole)
	}
	in.RoleSessionName = aws.String("restate-1")
	out, err := c.AssumeRole(t.Context(), &in)
	if err != nil {
		return nil, err
	}
	return keys(*out.Credentials.AccessKeyId, *out.Credentials.SecretAccessKey, *out.Credentials.SessionToken), nil
}

// TestRoles: who may assume a role, what the session may do, and that it ends.
func TestRoles(t *testing.T) {
	var ahead atomic.Int64
	e := newEmulator(t, Config{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }, SessionLifetime: time.Minute}, Function{})
	e.AddUser(User{AccessKeyID: "AKNODE", SecretAccessKey: "s", ARN: "arn:aws:iam::123456789012:role/node", AssumeRole: []string{"arn:aws:iam::*:role/*"}})
	e.AddRole(Role{ARN: testRole, Principals: []string{"arn:aws:iam::123456789012:role/node"}, ExternalID: "cluster-1", Invoke: []string{testARN + ":*"}})
	node := keys("AKNODE", "s", "")
	if got := call(t, client(t, e, node), testARN+":1", order{}); code(got.err) != "AccessDeniedException" {
		t.Errorf("the node's own role may call: %+v", got)
	}
	for name, x := range map[string]struct {
		creds aws.CredentialsProvider
		in    sts.AssumeRoleInput
		code  string
	}{
		"no external id":    {node, sts.AssumeRoleInput{}, "AccessDenied"},
		"other external id": {node, sts.AssumeRoleInput{ExternalId: aws.String("cluster-2")}, "AccessDenied"},
		"not trusted":       {good, sts.AssumeRoleInput{ExternalId: aws.String("cluster-1")}, "AccessDenied"},
		"no such role":      {node, sts.AssumeRoleInput{RoleArn: aws.String(testRole + "x"), ExternalId: aws.String("cluster-1")}, "AccessDenied"},
		"too long":          {node, sts.AssumeRoleInput{DurationSeconds: aws.Int32(50000)}, "ValidationError"},
		"wrong key":         {keys("AKNODE", "x", ""), sts.AssumeRoleInput{}, "SignatureDoesNotMatch"},
	} {
		if _, err := assume(t, e, x.creds, x.in); code(err) != x.code {
			t.Errorf("%s: got %v, want %s", name, err, x.code)
		}
	}
	session, err := assume(t, e, node, sts.AssumeRoleInput{ExternalId: aws.String("cluster-1")})
	if err != nil || e.Sessions() != 1 {
		t.Fatal(err, e.Sessions())
	}
	if got := call(t, client(t, e, session), testARN+":1", order{}); got.err != nil {
		t.Error(got.err)
	}
	if got := call(t, client(t, e, session), testARN+"2:1", order{}); code(got.err) != "AccessDeniedException" || !strings.Contains(got.err.Error(), "assumed-role/invoke/restate-1") {
		t.Errorf("got %v", got.err)
	}
	ahead.Store(int64(2 * time.Minute))
	if got := call(t, client(t, e, session), testARN+":1", order{}); code(got.err) != "ExpiredTokenException" {
		t.Errorf("got %v", got.err)
	}
}

func TestPayloadLimit(t *testing.T) {
	e := newEmulator(t, Config{}, Function{})
	c := client(t, e, good)
	for size, want := range map[int]string{MaxRequest: "<nil>", MaxRequest + 1: "RequestTooLargeException"} {
		_, err := c.Invoke(t.Context(), &api.InvokeInput{FunctionName: aws.String(testARN + ":1"), Payload: []byte("{" + strings.Repeat(" ", size-2) + "}")})
		if code(err) != want {
			t.Errorf("%d bytes: got %v, want %s", size, err, want)
		}
	}
}

// TestFaults: each fault shows as what it is, and the function ran or not accordingly.
func TestFaults(t *testing.T) {
	var fault Fault
	var mu sync.Mutex
	var seen []Call
	e := newEmulator(t, Config{Observe: func(c Call) { mu.Lock(); defer mu.Unlock(); seen = append(seen, c) }}, Function{})
	e.SetFault(func(Call) Fault { return fault })
	c := client(t, e, good)
	for _, x := range []struct {
		fault  Fault
		says   string
		status int
		ran    bool
	}{
		{Fault{Throttle: true, RetryAfter: 1500 * time.Millisecond}, "TooManyRequestsException", 429, false},
		{Fault{Internal: true}, "ServiceException", 500, false},
		{Fault{DropBefore: true}, "EOF", 0, false},
		{Fault{DropAfter: true}, "EOF", 0, true},
		{Fault{Crash: true}, "Runtime exited with error: signal: killed", 200, true},
		{Fault{Delay: 20 * time.Millisecond}, "<nil>", 200, true},
	} {
		before := e.Stats(testARN).Calls
		fault = x.fault
		got := call(t, c, testARN+":1", order{})
		if text := fmt.Sprint(got.err) + got.payload; !strings.Contains(text, x.says) {
			t.Errorf("%+v: got %s, want %s", x.fault, text, x.says)
		}
		var throttled *types.TooManyRequestsException
		if errors.As(got.err, &throttled) && aws.ToString(throttled.RetryAfterSeconds) != "2" {
			t.Errorf("retry after %v", throttled.RetryAfterSeconds)
		}
		if ran := e.Stats(testARN).Calls > before; ran != x.ran {
			t.Errorf("%+v: the function ran: %v", x.fault, ran)
		}
		mu.Lock()
		if n := len(seen); n == 0 || seen[n-1].Status != x.status || x.fault.Delay > seen[n-1].Took {
			t.Errorf("%+v: observed %+v", x.fault, seen)
		}
		mu.Unlock()
	}
}

// TestClose: nothing that was started is left, not even frozen or busy processes.
func TestClose(t *testing.T) {
	e := newEmulator(t, Config{}, Function{})
	c := client(t, e, good)
	frozen := call(t, c, testARN+":1", order{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if got := call(t, c, testARN+":1", order{Do: "wait", For: time.Minute}); got.err == nil && got.functionError == "" {
			t.Errorf("got %+v", got)
		}
	})
	deadline := time.Now().Add(time.Minute)
	for e.Stats(testARN).Calls < 2 && time.Now().Before(deadline) {
		<-time.After(time.Millisecond)
	}
	if len(e.Pids(testARN)) != 1 || e.Pids(testARN)[0] != frozen.Pid {
		t.Errorf("processes %v", e.Pids(testARN))
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := syscall.Kill(frozen.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d is still there: %v", frozen.Pid, err)
	}
}

func TestOnlyLoopback(t *testing.T) {
	if e, err := Start(Config{Address: "0.0.0.0:0"}); err == nil {
		e.Close()
		t.Error("the emulator listens on all addresses")
	}
}

func FuzzAuthorization(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AK/20261123/eu-west-1/lambda/aws4_request, SignedHeaders=content-length;host;x-amz-date, Signature=ab")
	f.Add("AWS4-HMAC-SHA256 ")
	f.Add("Bearer x")
	f.Fuzz(func(t *testing.T, header string) {
		s, err := parseAuthorization(header)
		if err == nil && (s.accessKey == "" || s.value == "" || len(s.headers) < 2) {
			t.Errorf("accepted %q as %+v", header, s)
		}
	})
}
