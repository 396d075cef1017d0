package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"perdure/integration/chaos"
	"perdure/integration/harness"
)

var (
	duration = flag.Duration("disk.for", 4*time.Second, "how long each load runs")
	seed     = flag.Uint64("disk.seed", 0, "seed of the load and of the damage (0: a new one)")
	only     = flag.String("disk.only", "", "flip bits only in kinds of files that match this expression")
	kinds    = flag.Int("disk.kinds", 3, "how many kinds of files to flip bits in, drawn from the seed (0: all)")
	flips    = flag.Int("disk.flips", 1, "bits to flip in each kind of file")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	code := m.Run()
	harness.Cleanup()
	os.Exit(code)
}

func register(t *testing.T, admin, uri string) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"uri": uri})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(admin+"/deployments", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if msg, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusCreated {
		t.Fatalf("register: %s: %s", resp.Status, msg)
	}
}

// underLoad runs the load while hurt hurts the server again and again, for as long as a load is to run and at least twice, and
// checks the accounts. Operations succeed before each time, however slow the machine is.
func underLoad(t *testing.T, s *harness.Server, hurt func(rnd *rand.Rand) error) {
	t.Helper()
	t.Logf("seed %d (repeat with -disk.seed=%d)", *seed, *seed)
	ledger := chaos.NewLedger()
	ep, err := chaos.StartEndpoint(ledger)
	if err != nil {
		t.Fatal(err)
	}
	defer ep.Close()
	register(t, s.Admin(), ep.URL)
	s.WarmUp(t, http.MethodGet, "/Account/warm-up/get")
	l := &chaos.Load{Ingress: s.Ingress(), Seed: *seed, Workers: 8, Keys: 8, Patience: 60 * time.Second}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	histories := make(chan *chaos.History, 1)
	go func() { histories <- l.Run(ctx, ledger) }()
	rnd := rand.New(rand.NewPCG(*seed, 1))
	times := 0
	for began := time.Now(); times < 2 || time.Since(began) < *duration; times++ {
		enough, deadline := l.Done()+l.Workers, time.Now().Add(l.Patience)
		wait(ctx, 700*time.Millisecond+time.Duration(rnd.Int64N(int64(time.Second))))
		for ; l.Done() < enough; wait(ctx, 5*time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d operations in %s since the server was hurt for the last time", l.Done()-enough+l.Workers, l.Patience)
			}
		}
		if err := hurt(rnd); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	h := <-histories
	l.Settle(h)
	t.Logf("%d operations, the server was hurt %d times", h.Ops(), times)
	for _, bad := range chaos.Check(h) {
		t.Error(bad)
	}
}

// wait lets time pass, or less when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// A server that stands still, longer than any of its timeouts between components, goes on as if nothing was.
func TestPauses(t *testing.T) {
	s := harness.Start(t, "perdure", nil)
	underLoad(t, s, func(rnd *rand.Rand) error {
		pid := s.Pid()
		if pid == 0 { // a signal to process 0 would stop the test
			return errors.New("stop the server: it has ended")
		}
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return fmt.Errorf("stop the server: %w", err)
		}
		wait(t.Context(), time.Duration(rnd.Int64N(int64(1500*time.Millisecond))))
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			return fmt.Errorf("continue the server: %w", err)
		}
		return nil
	})
}

// A server that is killed between any two instructions has everything that it acknowledged.
func TestKills(t *testing.T) {
	s := harness.Start(t, "perdure", nil)
	underLoad(t, s, func(*rand.Rand) error {
		s.Kill()
		return s.Restart()
	})
}

// answers are what clients were told, by idempotency key, and the sums that follow from it.
type answers struct {
	bodies map[string]string
	keys   map[string]string // idempotency key → object
	sums   map[string]int
}

func ask(client *http.Client, ingress, key, idempotency string) (status int, body string, err error) {
	in, err := json.Marshal(chaos.Request{Op: idempotency, Key: key})
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequest(http.MethodPost, ingress+"/Account/"+key+"/add", bytes.NewReader(in))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", idempotency)
	return do(client, req)
}

func do(client *http.Client, req *http.Request) (status int, body string, err error) {
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// fill makes a node with something of everything on its disk, and stops it.
func fill(t *testing.T, dir string) (*answers, *chaos.Endpoint) {
	t.Helper()
	ep, err := chaos.StartEndpoint(chaos.NewLedger())
	if err != nil {
		t.Fatal(err)
	}
	a := &answers{bodies: map[string]string{}, keys: map[string]string{}, sums: map[string]int{}}
	s, err := harness.Open("perdure", dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	register(t, s.Admin(), ep.URL)
	s.WarmUp(t, http.MethodGet, "/Account/warm-up/get")
	client := &http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	for round := range 2 { // the second life has tables and logs of the first one below it
		for i := range 20 {
			key, idempotency := fmt.Sprint("k", i%4), fmt.Sprintf("op-%d-%d", round, i)
			status, body, err := ask(client, s.Ingress(), key, idempotency)
			if err != nil || status != http.StatusOK {
				t.Fatalf("add: status %d, %v: %s\n%s", status, err, body, s.LogTail(4<<10))
			}
			a.bodies[idempotency], a.keys[idempotency] = body, key
			a.sums[key]++
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		s.Stop(ctx)
		cancel()
		if round == 0 {
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return a, ep
}

// plain are words by which an operator understands that data is damaged, and not that the server has a bug.
var plain = regexp.MustCompile(`(?i)damag|corrupt|checksum|mismatch|lost|invalid|malformed|cannot be read|can not be read|not known|unknown|does not|missing|truncated`)

// slow is what errors say that end a wait, as a server has them that is short of processor time. It is about no data on a disk.
var slow = regexp.MustCompile(`(connection lost before the answer came, the )?outcome (of the [a-z ]+)?is (unknown|not known)|node does not run the service`)

// Whatever bit flips in whatever file of a stopped node: it is noticed, told, and never served.
func TestBitFlips(t *testing.T) {
	t.Logf("seed %d (repeat with -disk.seed=%d)", *seed, *seed)
	rnd := rand.New(rand.NewPCG(*seed, 2))
	home := t.TempDir()
	want, ep := fill(t, home)
	defer ep.Close()
	files, err := Files(filepath.Join(home, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	byKind := map[string][]File{}
	var order []string
	for _, f := range files {
		if byKind[f.Kind] == nil {
			order = append(order, f.Kind)
		}
		byKind[f.Kind] = append(byKind[f.Kind], f)
	}
	if len(order) < 5 {
		t.Fatalf("only %d kinds of files: %q", len(order), order)
	}
	if *kinds > 0 && *only == "" {
		rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		order = order[:min(*kinds, len(order))]
	}
	copied := func() string {
		dir := filepath.Join(t.TempDir(), "n1")
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(home, "n1"))); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	// What is sound is served and gives no reason for plain words, or those below would say nothing.
	if outcome, log := live(t, copied(), want); outcome != sound || words(log) != "" {
		t.Fatalf("without damage: %s, and the server complains: %q\n%s", outcome, words(log), tail(log))
	}
	for _, kind := range order {
		if !regexp.MustCompile(*only).MatchString(kind) {
			continue
		}
		for range *flips {
			f := byKind[kind][rnd.IntN(len(byKind[kind]))]
			dir := copied()
			at, bit, err := Flip(filepath.Join(dir, f.Path), rnd.Int64N)
			if err != nil {
				t.Fatal(err)
			}
			outcome, _ := live(t, dir, want)
			t.Logf("%-40s byte %7d of %7d bit %d: %s", f.Path, at, f.Size, bit, outcome)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// sound is the outcome of a directory in which no damage is to be seen.
const sound = "everything right"

// live runs the server on a directory and says how it took it, and what the server said.
func live(t *testing.T, dir string, want *answers) (outcome, said string) {
	t.Helper()
	binary, err := harness.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ports, err := harness.FreePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	var log output
	cmd := exec.Command(binary, "server", "--base-dir", dir, "--node-name", "n1")
	address := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	cmd.Env = append(harness.Environ("PERDURE_"), "PERDURE_BIND_ADDRESS="+address(0), "PERDURE_ADVERTISED_ADDRESS=http://"+address(0),
		"PERDURE_INGRESS__BIND_ADDRESS="+address(1), "PERDURE_ADMIN__BIND_ADDRESS="+address(2))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		<-ended
	}
	client := &http.Client{Timeout: 3 * time.Second}
	defer client.CloseIdleConnections()
	up, dead := healthy(client, "http://"+address(1), ended, &log)
	switch {
	case dead != nil:
		ended <- nil
		if words(log.String()) == "" {
			t.Errorf("the server ended (%v) without plain words:\n%s", dead, tail(log.String()))
		}
		if testing.Verbose() && *only != "" {
			t.Log(tail(log.String()))
		}
		return "refused: " + words(log.String()), log.String()
	case !up:
		stop()
		if words(log.String()) == "" {
			t.Errorf("the server does not get ready and does not say why:\n%s", tail(log.String()))
		}
		return "not ready: " + words(log.String()), log.String()
	}
	right, refused := 0, 0
	for _, idempotency := range sortedKeys(want.bodies) {
		status, body, err := ask(client, "http://"+address(1), want.keys[idempotency], idempotency)
		for hurry := time.Now().Add(patience); (err != nil || status >= 400) && words(log.String()) == "" && time.Now().Before(hurry); {
			wait(t.Context(), 50*time.Millisecond)
			status, body, err = ask(client, "http://"+address(1), want.keys[idempotency], idempotency) // it may just be slow
		}
		switch {
		case err != nil || status >= 400:
			refused++
		case body != want.bodies[idempotency]:
			t.Errorf("%s was answered with %s, the client had been told %s", idempotency, body, want.bodies[idempotency])
		default:
			right++
		}
		if refused > 3 {
			break
		}
	}
	for key, sum := range want.sums {
		req, err := http.NewRequest(http.MethodGet, "http://"+address(1)+"/Account/"+key+"/get", nil)
		if err != nil {
			t.Fatal(err)
		}
		if status, body, err := do(client, req); err == nil && status == http.StatusOK && strings.TrimSpace(body) != fmt.Sprint(sum) {
			t.Errorf("account %s is %s, it was added to %d times", key, body, sum)
		}
		if refused > 3 {
			break
		}
	}
	stop()
	if refused > 0 && words(log.String()) == "" {
		t.Errorf("%d requests were refused without plain words in the log:\n%s", refused, tail(log.String()))
	}
	if refused > 0 {
		return fmt.Sprintf("%d answers right, %d refused: %s", right, refused, words(log.String())), log.String()
	}
	return sound, log.String()
}

// patience is how long a server may take that does not say that anything is wrong.
const patience = time.Minute

// output is what a process says, while it says it.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// healthy waits until the ingress is healthy, or the process has ended, or for 15 s if it has said by then what is wrong.
func healthy(client *http.Client, ingress string, ended chan error, log *output) (up bool, dead error) {
	began := time.Now()
	for time.Since(began) < 15*time.Second || time.Since(began) < patience && words(log.String()) == "" {
		select {
		case err := <-ended:
			if err == nil {
				err = errors.New("exit status 0")
			}
			return false, err
		case <-time.After(30 * time.Millisecond):
		}
		req, err := http.NewRequest(http.MethodGet, ingress+"/restate/health", nil)
		if err != nil {
			return false, nil
		}
		if status, _, err := do(client, req); err == nil && status == http.StatusOK {
			return true, nil
		}
	}
	return false, nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func tail(s string) string { return s[max(0, len(s)-3000):] }

// words is the first line of a log that says in plain words what is wrong: a warning or an error, or the program's last words.
func words(log string) string {
	for line := range strings.Lines(log) {
		grave := strings.Contains(line, " ERROR ") || strings.Contains(line, " WARN ") || strings.HasPrefix(line, "perdure:")
		if grave && plain.MatchString(slow.ReplaceAllString(line, "")) {
			return strings.TrimSpace(line[:min(len(line), 300)])
		}
	}
	return ""
}

func TestWords(t *testing.T) {
	const log = "2026-11-30T11:15:22.922Z INFO  a deployment is unknown\n" +
		"2026-11-30T11:15:22.923Z WARN  the log could not be trimmed  err=\"connection lost before the answer came, the outcome is unknown\"\n" +
		"2026-11-30T11:15:22.924Z ERROR a write failed  err=\"outcome of the metadata write is not known\"\n" +
		"panic: invalid memory address\n"
	if got := words(log); got != "" {
		t.Errorf("a complaint about data: %s", got)
	}
	for _, line := range []string{
		"2026-11-30T11:15:22.925Z ERROR the partition store is damaged",
		"2026-11-30T11:15:22.925Z WARN  the partition stopped  err=\"outcome of the append is unknown: checksum mismatch\"",
		"perdure: open log database: stored bytes are corrupt",
	} {
		if got := words(log + line + "\n"); got != line {
			t.Errorf("%q instead of %q", got, line)
		}
	}
}
