package e2e

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/services"
)

// The target: an external server by PERDURE_E2E_INGRESS and PERDURE_E2E_ADMIN, or one that the suite starts by the
// definition PERDURE_E2E_SERVER (default: perdure).
var (
	envIngress = os.Getenv("PERDURE_E2E_INGRESS")
	envAdmin   = os.Getenv("PERDURE_E2E_ADMIN")
	envServer  = os.Getenv("PERDURE_E2E_SERVER")
)

// target is the server that all tests of this process share.
var target struct {
	ingress, admin string
	kind           string          // the definition's name; decides which differences apply
	server         *harness.Server // nil for an external server
}

// sharedConfig are the options of the shared server. Retention is checked every second so that expiry can be tested.
var sharedConfig = map[string]string{"WORKER__CLEANUP_INTERVAL": "1s"}

// runID makes names unique to this run, so that the suite can be repeated on one server.
var runID = func() string {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err)
	}
	return hex.EncodeToString(b[:])
}()

// parallelism is how many tests run at once unless -parallel says otherwise. Most of their time is waiting.
const parallelism = "12"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		if err := flag.Set("test.parallel", parallelism); err != nil {
			log.Fatal(err)
		}
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if envServer == "" {
		envServer = "perdure"
	}
	target.kind, target.ingress, target.admin = envServer, envIngress, envAdmin
	defer harness.Cleanup()
	if envIngress == "" || envAdmin == "" {
		dir, err := os.MkdirTemp("", "perdure-e2e-")
		if err != nil {
			log.Print(err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := startEmulator(); err != nil {
			log.Print(err)
			return 1
		}
		defer emulator.Close()
		config, err := inMode(sharedConfig)
		if err != nil {
			log.Print(err)
			return 1
		}
		s, err := harness.Open(envServer, dir, config)
		if err != nil {
			log.Print(err)
			return 1
		}
		defer s.Close()
		target.server, target.ingress, target.admin = s, s.Ingress(), s.Admin()
	}
	if err := settle(shared()); err != nil {
		log.Print(err)
		return 1
	}
	defer closeVariants()
	code := m.Run()
	if target.server != nil {
		if crash := target.server.Crash(); crash != "" {
			fmt.Fprintf(os.Stderr, "the server found fault with itself:\n%s\n", crash)
			code = 1
		}
	}
	if code != 0 && target.server != nil && target.kind == "perdure" {
		fmt.Fprintf(os.Stderr, "end of the server's log:\n%s\n", target.server.LogTail(16<<10))
	}
	return code
}

// settle waits until every partition answers: a server may be healthy a moment before it leads all of them. Made-up
// invocation ids spread over the key space, and the answer to an operation on one comes from its partition's leader.
func settle(c *client) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	const digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for i := 0; i < 256; {
		// The first eleven digits are the byte-reversed partition key: the least number is its most significant byte.
		id := fmt.Sprintf("inv_1000000000%c%c0000000000000000000001", digits[i/62], digits[i%62])
		a, err := c.try(ctx, c.admin, request{method: "PATCH", path: "/invocations/" + id + "/cancel"})
		if err == nil && a.status == 404 {
			i++
			continue
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for all partitions: %s: %v %v", id, a, err)
		}
	}
	return nil
}

// variant is one deployment of the services, registered with the shared server when a test first asks for it.
type variant struct {
	name    string
	prefix  string
	options services.Options
	node    string // mode of the TypeScript endpoint, "" for Go
	lambda  bool   // a Lambda function instead of a URL

	once sync.Once
	err  error
	id   string
	url  string
	end  func()
}

// variants are the rows of the matrix. Prefixes keep their service names apart.
var variants = []*variant{
	{name: "go-bidi", prefix: "Go"},
	{name: "go-rr", prefix: "Rr", options: services.Options{RequestResponse: true}},
	{name: "go-rr-http1", prefix: "H1", options: services.Options{RequestResponse: true, HTTP1: true}},
	{name: "go-lazy", prefix: "Lazy", options: services.Options{LazyState: true}},
	{name: "go-suspend", prefix: "Susp", options: services.Options{Suspend: true}},
	{name: "go-suspend-lazy", prefix: "Susl", options: services.Options{Suspend: true, LazyState: true}},
	{name: "go-lambda", prefix: "Lam", lambda: true},
	{name: "ts-bidi", prefix: "Ts", node: "bidi"},
	{name: "ts-rr", prefix: "Tsrr", node: "rr"},
}

// endpoint is what a test sees of a variant.
type endpoint struct {
	*client
	prefix string
	id     string
	memory *services.Memory // nil for TypeScript
}

// on starts and registers v if that has not happened yet.
func (v *variant) on(t testing.TB) *endpoint {
	t.Helper()
	v.once.Do(func() { v.err = v.start() })
	if v.err != nil {
		t.Fatalf("variant %s: %v", v.name, v.err)
	}
	return &endpoint{client: shared(), prefix: v.prefix, id: v.id, memory: v.options.Memory}
}

func (v *variant) start() error {
	if v.lambda {
		return v.startLambda()
	}
	if v.node != "" {
		e, err := services.StartTypeScript(context.Background(), v.prefix, v.node == "rr")
		if err != nil {
			return err
		}
		v.url, v.end = e.URL, func() { e.Close() }
	} else {
		v.options.Prefix, v.options.Memory = v.prefix, services.NewMemory()
		s, err := services.Start("127.0.0.1:0", v.options)
		if err != nil {
			return err
		}
		v.url, v.end = s.URL, func() { s.Close() }
	}
	var err error
	v.id, err = shared().register(map[string]any{"uri": v.url, "use_http_11": v.options.HTTP1, "force": true, "breaking": true})
	return err
}

func closeVariants() {
	for _, v := range variants {
		if v.end != nil {
			v.end()
		}
	}
}

// eachVariant runs f for every variant, in parallel.
func eachVariant(t *testing.T, f func(t *testing.T, e *endpoint)) {
	t.Helper()
	eachOf(t, func(*variant) bool { return true }, f)
}

// eachOf is eachVariant for those that are chosen.
func eachOf(t *testing.T, chosen func(*variant) bool, f func(t *testing.T, e *endpoint)) {
	t.Helper()
	t.Parallel()
	for _, v := range variants {
		if !chosen(v) {
			continue
		}
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			if v.node != "" {
				needNode(t)
			}
			if v.lambda {
				needLambda(t)
			}
			f(t, v.on(t))
		})
	}
}

// needNode ends a TypeScript case where node or npm is missing: there the case cannot be run at all. Continuous
// integration has both.
func needNode(t *testing.T) {
	t.Helper()
	if why := services.TypeScriptMissing(); why != "" {
		t.Skipf("the TypeScript services need node and npm: %s", why)
	}
}

// address is a loopback address for an endpoint that is registered with the shared server and closed before the tests end: no
// endpoint gets it afterwards, whose registration would find that deployment.
func address(t testing.TB) string {
	t.Helper()
	ports, err := harness.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0])
}

// goBidi is the variant that tests of the HTTP interfaces use, where the SDK plays no role.
func goBidi(t testing.TB) *endpoint { t.Helper(); return variants[0].on(t) }
