package settings

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"perdure/nodes/node"
)

func load(t *testing.T, file string, env []string, flags ...Flag) (*Loaded, error) {
	t.Helper()
	src := Sources{Env: env, Flags: flags}
	if file != "" {
		src.File = filepath.Join(t.TempDir(), "perdure.toml")
		if err := os.WriteFile(src.File, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(src)
}

func mustLoad(t *testing.T, file string, env []string, flags ...Flag) *Loaded {
	t.Helper()
	l, err := load(t, file, append([]string{"PERDURE_NODE_NAME=n1"}, env...), flags...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDefaultsAreValidOnceNamed(t *testing.T) {
	if err := mustLoad(t, "", nil).Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestPrecedence(t *testing.T) {
	file := "default-num-partitions = 2\ncluster-name = \"file\"\n[worker.invoker]\nabort-timeout = \"1m\"\ninactivity-timeout = \"PT2H\"\n"
	env := []string{"PERDURE_CLUSTER_NAME=env", "PERDURE_WORKER__INVOKER__ABORT_TIMEOUT=2m", "PERDURE_BASE_DIR="}
	l := mustLoad(t, file, env, Flag{Name: "--cluster-name", Key: "cluster-name", Value: "flag"})
	if n := l.Node; n.DefaultNumPartitions != 2 || n.ClusterName != "flag" || n.Worker.Invoker.AbortTimeout != 2*time.Minute ||
		n.Worker.Invoker.InactivityTimeout != 2*time.Hour || n.BaseDir != "perdure-data" || n.ShutdownTimeout != time.Minute {
		t.Errorf("merged to %+v", n)
	}
	if l.origins["cluster-name"] != "--cluster-name" || l.origins["base-dir"] != "" {
		t.Error("the origins are wrong")
	}
}

// Headers have names that users choose: a file has them as a table, the environment as a table or one by one.
func TestTablesOfHeaders(t *testing.T) {
	for _, key := range []string{"tracing-headers", "worker.invoker.additional-request-headers", "additional-request-headers"} {
		env := EnvName(key)
		l := mustLoad(t, "["+key+"]\nx-a = 'file'\nx-b = 'file'\n", []string{env + `={x-b = "env"}`, env + "__X_C=one"})
		got := l.Node.Worker.Invoker.AdditionalRequestHeaders
		if key == "tracing-headers" {
			got = l.Node.Tracing.Headers
		}
		if want := map[string]string{"x-a": "file", "x-b": "env", "x-c": "one"}; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: loaded %v, want %v; notices %v", key, got, want, l.Notices)
		}
	}
}

// What test suites and container set-ups pass in the environment must keep its meaning.
func TestEnvironmentOfExistingSetups(t *testing.T) {
	l := mustLoad(t, "", []string{
		"PERDURE_ROLES=[worker,admin, \"http-ingress\",log-server,metadata-server]",
		"PERDURE_ADVERTISED_ADDRESS=http://127.0.0.1:5122",
		"PERDURE_METADATA_CLIENT__ADDRESSES=[http://127.0.0.1:5122]",
		"PERDURE_AUTO_PROVISION=true",
		"PERDURE_WORKER__INVOKER__INACTIVITY_TIMEOUT=0s",
		"PERDURE_WORKER__INVOKER__DISABLE_EAGER_STATE=true",
		"PERDURE_WORKER__NUM_TIMERS_IN_MEMORY_LIMIT=1",
		"PERDURE_WORKER__CLEANUP_INTERVAL=1s",
		"PERDURE_DEFAULT_RETRY_POLICY__MAX_ATTEMPTS=unlimited",
		"PERDURE_DEFAULT_RETRY_POLICY__ON_MAX_ATTEMPTS=kill",
		"PERDURE_REQUEST_IDENTITY_PRIVATE_KEY_PEM_FILE=/key.pem",
		"PERDURE_WORKER__INVOKER__MEMORY_LIMIT=8MiB",
		"PERDURE_WORKER__INVOKER__ADDITIONAL_REQUEST_HEADERS={x-a = \"b\"}",
		"PERDURE_WORKER__INVOKER__ADDITIONAL_REQUEST_HEADERS__X_C=d",
		"PERDURE_EXPERIMENTAL_ENABLE_PROTOCOL_V7=true",
		"PERDURE_EXPERIMENTAL_ENABLE_VQUEUES=true",
		"PERDURE_DEFAULT_THREAD_POOL_SIZE=3",
		"PERDURE_ADMIN__BIND_ADDRESS=127.0.0.1:19070",
		"PERDURE_CONFIG=x.toml", "PERDURE_TOKEN=secret", "PERDURE_SERVICE_PORT_ADMIN=9070", "PERDURE_PORT=tcp://10.0.0.1:9070", "UNRELATED=1",
	})
	if err := l.Validate(); err != nil {
		t.Fatal(err)
	}
	w := l.Node.Worker
	if w.Invoker.InactivityTimeout != 0 || w.Invoker.EagerState() != 0 || *w.TimersInMemory != 1 || w.CleanupInterval != time.Second ||
		l.Node.RetryPolicy.MaxAttempts != node.Unlimited || l.Node.RetryPolicy.OnMaxAttempts != "kill" || w.Invoker.IdentityKeyFile != "/key.pem" ||
		w.Invoker.MemoryLimit != 8*node.MiB || !l.Node.Features.ProtocolV7 || l.Node.AdminAddress() != "127.0.0.1:19070" {
		t.Errorf("loaded %+v", l.Node)
	}
	if want := map[string]string{"x-a": "b", "x-c": "d"}; !reflect.DeepEqual(w.Invoker.AdditionalRequestHeaders, want) {
		t.Errorf("headers %v, want %v", w.Invoker.AdditionalRequestHeaders, want)
	}
	var warned []string
	for _, n := range l.Notices {
		if n.Warn {
			warned = append(warned, n.Key)
		}
	}
	if want := []string{"experimental-enable-vqueues", "port", "service-port-admin"}; !reflect.DeepEqual(warned, want) {
		t.Errorf("warned of %q, want %q", warned, want)
	}
}

// Every key of an existing file is either a setting or accepted without effect.
func TestEveryExistingKeyIsKnown(t *testing.T) {
	data, err := os.ReadFile("testdata/existing-keys.tsv")
	if err != nil {
		t.Fatal(err)
	}
	l, honoured, n := &Loaded{origins: map[string]string{}}, map[string]field{}, 0
	for _, f := range fields(&l.Settings) {
		honoured[f.path] = f
	}
	for line := range strings.Lines(string(data)) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		n++
		if _, ok := honoured[key]; ok {
			continue
		}
		if _, _, ok := tableEntry(honoured, entry{key: key}); ok {
			continue
		}
		if _, ok := noEffect(entry{key: key}); !ok {
			t.Errorf("%s is not known", key)
		}
	}
	if n < 150 {
		t.Errorf("only %d keys in the list", n)
	}
}

func TestMistakesSayWhereAndWhat(t *testing.T) {
	for _, c := range []struct {
		file string
		env  string
		want string
	}{
		{file: "defautl-num-partitions = 3", want: `there is no setting "defautl-num-partitions"; the nearest is "default-num-partitions"`},
		{file: "inactivity-timeout = '1s'", want: `the nearest is "worker.invoker.inactivity-timeout"`},
		{file: "[worker.invoker]\nabort-timout = '1s'", want: `the nearest is "worker.invoker.abort-timeout"`},
		{file: "[worker]\ncleanup-interval = 5", want: "worker.cleanup-interval is \"5\", which is no duration"},
		{file: "default-num-partitions = 'many'", want: `default-num-partitions is "many": must be a whole number`},
		{file: "node-name = 3", want: "node-name is 3: must be text"},
		{file: "a = = b", want: "perdure.toml:1:5: not valid TOML"},
		{file: "[default-retry-policy]\nmax-attempts = 0", want: `must be between 1 and 2147483647, or "unlimited"`},
		{file: "roles = [1]", want: "must be a list of texts"},
		{file: "auto-provision = 'maybe'", want: "must be true or false"},
		{file: "[ingres]\nbind-address = 'x:1'", want: `there is no setting "ingres.bind-address"; the nearest is "ingress.bind-address"`},
		{file: "foo = 1", want: `there is no setting "foo"; perdure server --dump-config lists all that there are`},
		{env: "PERDURE_NODE_NAM=x", want: "PERDURE_NODE_NAM: there is no such setting; the nearest is PERDURE_NODE_NAME"},
		{env: "PERDURE_WORKER__QUITE_ANOTHER_THING=x", want: "PERDURE_WORKER__QUITE_ANOTHER_THING: there is no such setting"},
	} {
		var env []string
		if c.env != "" {
			env = []string{c.env}
		}
		_, err := load(t, c.file, env)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q %q: got %v, want %q", c.file, c.env, err, c.want)
		}
	}
}

func TestAllMistakesAreReported(t *testing.T) {
	_, err := load(t, "node-nam = 'x'\nbase-dri = 'y'", nil)
	if err == nil || strings.Count(err.Error(), "the nearest is") != 2 {
		t.Errorf("got %v", err)
	}
}

func TestMissingFile(t *testing.T) {
	if _, err := Load(Sources{File: filepath.Join(t.TempDir(), "none.toml")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestValidateNamesTheOrigin(t *testing.T) {
	l := mustLoad(t, "", []string{"PERDURE_DEFAULT_NUM_PARTITIONS=0"}, Flag{"--log-filter", "log-filter", "loud"}, Flag{"--log-format", "log-format", "xml"})
	err := l.Validate()
	for _, want := range []string{"PERDURE_DEFAULT_NUM_PARTITIONS: default-num-partitions is 0: must be between 1 and 65535",
		`--log-filter: log-filter has level "loud"`, "--log-format: log-format is \"xml\""} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestDumpIsReadBackAndHidesSecrets(t *testing.T) {
	const secret = "hunter2"
	l := mustLoad(t, "cluster-name = \"a\\\"b\\\\c\\u0001\"\nmax-journal-retention = '90m'\nroles = [\"x,y\", 'z']\n[admin]\ntoken = '"+secret+
		"'\n[worker.invoker.additional-request-headers]\nauthorization = '"+secret+"'\n'x.dotted' = '"+secret+"'\n[default-retry-policy]\nmax-attempts='unlimited'\n", nil)
	var out bytes.Buffer
	if err := l.Dump(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), secret) {
		t.Errorf("a secret is shown:\n%s", &out)
	}
	back, err := load(t, out.String(), nil)
	if err != nil {
		t.Fatalf("read the dump: %v\n%s", err, &out)
	}
	want := l.Settings
	want.Node.Admin.Token = node.Redacted
	want.Node.Worker.Invoker.AdditionalRequestHeaders = map[string]string{"authorization": node.Redacted, "x.dotted": node.Redacted}
	if !reflect.DeepEqual(back.Settings, want) {
		t.Errorf("got %+v\nwant %+v", back.Settings, want)
	}
}

// Each setting has one name, and the name survives the way through the environment.
func TestKeysMapToEnvironmentAndBack(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range fields(&Settings{}) {
		k := f.path
		if seen[k] {
			t.Errorf("%s is there twice", k)
		}
		seen[k] = true
		got := fromEnv([]string{EnvName(k) + "=v"})
		if len(got) != 1 || got[0].key != k {
			t.Errorf("%s comes back as %+v", k, got)
		}
	}
	for from, to := range aliases {
		if !seen[to] {
			t.Errorf("%s leads to %s, which is no setting", from, to)
		}
	}
}

// The grammar is tested where it is; here only what a configuration adds to it.
func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{"0": 0, "0s": 0, " 10 s ": 10 * time.Second, "1h30m": 90 * time.Minute, "1h 30m": 90 * time.Minute,
		"PT2H": 2 * time.Hour, "1.5s": 1500 * time.Millisecond} {
		if got, err := parseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", " ", "10", "ten s", "-1s", "1x", "300000000000h"} {
		if got, err := parseDuration(s); err == nil || !strings.Contains(err.Error(), durationHelp) {
			t.Errorf("%q became %v, %v", s, got, err)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]node.Bytes{
		"0": 0, "32MiB": 32 << 20, "32.0 MiB": 32 << 20, "1.5GB": 1500000000, "1.5 GiB": 3 << 29, "65536": 65536, "1kb": 1000, "1KiB": 1024, "10 B": 10, "2tib": 2 << 40,
	} {
		if got, err := parseBytes(s); err != nil || got != want {
			t.Errorf("%q: %d %v, want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "MiB", "-1", "1 XB", "1.2.3MB", "9999999999999TiB"} {
		if got, err := parseBytes(s); err == nil {
			t.Errorf("%q became %v", s, got)
		}
	}
}

func TestBytesSurviveFormatting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := node.Bytes(rapid.Int64Min(0).Draw(t, "b"))
		if rapid.Bool().Draw(t, "round") {
			b &^= node.MiB - 1
		}
		got, err := parseBytes(b.String())
		if err != nil || got != b {
			t.Fatalf("%d became %q, then %d, %v", int64(b), b, int64(got), err)
		}
	})
}

func TestParseFilter(t *testing.T) {
	f, err := ParseFilter("warn, restate=info ,invoker=debug,raft=off")
	if err != nil {
		t.Fatal(err)
	}
	if f.Level("") != slog.LevelInfo || f.Level("invoker") != slog.LevelDebug || f.Level("raft") <= slog.LevelError || f.Level("other") != slog.LevelInfo {
		t.Errorf("got %+v", f)
	}
	if _, err := ParseFilter("invoker=shout"); err == nil {
		t.Error("accepted a level that does not exist")
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"abc", "", 3}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"ab", "ba", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance of %q and %q is %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func FuzzFile(f *testing.F) {
	f.Add([]byte("node-name = 'x'\n[worker.invoker]\nabort-timeout = '1s'\nadditional-request-headers = {a = 'b'}"))
	f.Add([]byte("worker = 3\nroles = [[1]]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseFile("f", data)
		if err != nil {
			return
		}
		l := &Loaded{origins: map[string]string{}}
		if l.apply(entries) == nil {
			_ = l.Validate()
			if err := l.Dump(&bytes.Buffer{}); err != nil {
				t.Error(err)
			}
		}
	})
}
