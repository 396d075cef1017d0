package sam

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/lambdaemu"
)

// The server under test is one that the tests start, by the definition PERDURE_E2E_SERVER (default: perdure). The keys that
// it gets may assume roles, and may call functions whose names begin with own- themselves.
const (
	account    = "123456789012"
	nodeRole   = "arn:aws:iam::" + account + ":role/perdure-node"
	invokeRole = "arn:aws:iam::" + account + ":role/invoke-samples"
	externalID = "cluster-1"
	region     = "eu-central-1"
	prefix     = "arn:aws:lambda:" + region + ":" + account + ":function:"
	patience   = 3 * time.Minute // ends what hangs
)

var serverKind = os.Getenv("PERDURE_E2E_SERVER")

var allArchitectures = flag.Bool("sam.all", false, "build the samples for all processors, as make -C sam build does")

// emulator is shared by all tests; each makes functions of its own.
var emulator *lambdaemu.Emulator

// calls are those that the emulator has seen, by function.
var calls = struct {
	sync.Mutex
	by map[string][]lambdaemu.Call
}{by: map[string][]lambdaemu.Call{}}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if serverKind == "" {
		serverKind = "perdure"
	}
	defer harness.Cleanup()
	e, err := lambdaemu.Start(lambdaemu.Config{Observe: func(c lambdaemu.Call) {
		calls.Lock()
		defer calls.Unlock()
		calls.by[c.Function] = append(calls.by[c.Function], c)
	}})
	if err != nil {
		log.Print(err)
		return 1
	}
	defer e.Close()
	emulator = e
	e.AddUser(lambdaemu.User{AccessKeyID: "AKNODE", SecretAccessKey: "secret", ARN: nodeRole, Invoke: []string{prefix + "own-*:*"},
		AssumeRole: []string{"arn:aws:iam::" + account + ":role/invoke-*"}})
	e.AddRole(lambdaemu.Role{ARN: invokeRole, Principals: []string{nodeRole}, ExternalID: externalID,
		Invoke: []string{prefix + "greeter:*", prefix + "counter:*", prefix + "reminder:*", prefix + "own-hour:*"}})
	os.Unsetenv("AWS_PROFILE")
	os.Unsetenv("AWS_SESSION_TOKEN")
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_LAMBDA": e.URL(), "AWS_ENDPOINT_URL_STS": e.URL(), "AWS_ACCESS_KEY_ID": "AKNODE", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_REGION": region, "AWS_EXTERNAL_ID": externalID,
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		if err := os.Setenv(k, v); err != nil {
			log.Print(err)
			return 1
		}
	}
	defer func() {
		if shared.server != nil {
			shared.server.Close()
			os.RemoveAll(shared.dir)
		}
		if built.dir != "" {
			os.RemoveAll(built.dir)
		}
	}()
	return m.Run()
}

// shared is the server that most tests use.
var shared struct {
	once   sync.Once
	dir    string
	server *harness.Server
	err    error
}

func server(t *testing.T) *harness.Server {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = os.MkdirTemp("", "perdure-sam-"); shared.err == nil {
			shared.server, shared.err = harness.Open(serverKind, shared.dir, nil)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	t.Cleanup(func() {
		if crash := shared.server.Crash(); crash != "" {
			t.Errorf("the server found fault with itself:\n%s", crash)
		}
		if t.Failed() {
			t.Logf("end of the server's log:\n%s", shared.server.LogTail(8<<10))
		}
	})
	return shared.server
}

// built are the bootstraps.
var built struct {
	samples, faulty sync.Once
	dir             string
	err             error
}

// sample builds the samples, as their Makefile does, and gives the path of one's bootstrap.
func sample(t *testing.T, name string) string {
	t.Helper()
	built.samples.Do(func() {
		target := runtime.GOARCH
		if *allArchitectures {
			target = "build"
		}
		cmd := exec.Command("make", "-C", "../../sam", target)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=") // not those of a make that runs the tests
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the samples: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	path, err := filepath.Abs("../../sam/build/" + runtime.GOARCH + "/" + name + "/bootstrap")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func faulty(t *testing.T) string {
	t.Helper()
	built.faulty.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "perdure-faulty-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", filepath.Join(built.dir, "bootstrap"), "./faulty")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the faulty function: %w: %s", err, out)
		}
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, "bootstrap")
}

// deploy makes a function with one version and gives the version's ARN.
func deploy(t *testing.T, f lambdaemu.Function, name, bootstrap string) string {
	t.Helper()
	f.ARN = prefix + name
	if f.Timeout == 0 {
		f.Timeout = 60 * time.Second
	}
	if err := emulator.CreateFunction(f); err != nil {
		t.Fatal(err)
	}
	arn, err := emulator.Publish(f.ARN, bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	return arn
}

// invokes are the calls of a function that were attempts of invocations.
func invokes(name string) []lambdaemu.Call {
	calls.Lock()
	defer calls.Unlock()
	return slices.DeleteFunc(slices.Clone(calls.by[prefix+name]), func(c lambdaemu.Call) bool { return !strings.HasPrefix(c.Path, "/invoke/") })
}

var client = &http.Client{Timeout: patience}

// request sends JSON and reads the answer.
func request(ctx context.Context, method, url string, body any) (int, []byte, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, r)
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

func register(t *testing.T, s *harness.Server, body map[string]any) {
	t.Helper()
	status, b, err := request(t.Context(), "POST", s.Admin()+"/deployments", body)
	if err != nil || status/100 != 2 {
		t.Fatalf("register %v: %d %s %v", body, status, b, err)
	}
}

// call calls a handler and decodes what it returns.
func call[T any](t *testing.T, s *harness.Server, path string, body any) T {
	t.Helper()
	var out T
	status, b, err := request(t.Context(), "POST", s.Ingress()+path, body)
	if err != nil || status != 200 {
		t.Errorf("%s: %d %s %v", path, status, b, err)
		return out
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Errorf("%s: %s: %v", path, b, err)
	}
	return out
}

// send calls a handler without waiting and gives the invocation's id.
func send(t *testing.T, s *harness.Server, path string, body any) string {
	t.Helper()
	status, b, err := request(t.Context(), "POST", s.Ingress()+path+"/send", body)
	var out struct {
		ID string `json:"invocationId"`
	}
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil || status != 202 || out.ID == "" {
		t.Fatalf("%s: %d %s %v", path, status, b, err)
	}
	return out.ID
}

// cli runs the operator's tool against a server.
func cli(t *testing.T, s *harness.Server, args ...string) (out, failed string, code int) {
	t.Helper()
	bin, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append(os.Environ(), "PERDURE_ADMIN_URL="+s.Admin(), "PERDURE_INGRESS_URL="+s.Ingress())
	var o, e strings.Builder
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// eventually polls until ok, and fails with what describe says when it takes too long.
func eventually(t *testing.T, ok func() bool, describe func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal(describe())
		}
		<-every.C
	}
}
