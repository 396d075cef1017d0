package settings

import (
	"cmp"
	"fmt"
	"math"
	"path"
	"reflect"
	"strings"
)

// tableValues has the keys, aliases included, of the settings whose value is a table with names that users choose.
var tableValues = func() map[string]bool {
	m := map[string]bool{}
	for _, f := range fields(&Settings{}) {
		m[f.path] = f.value.Kind() == reflect.Map
	}
	for from, to := range aliases {
		m[from] = m[to]
	}
	return m
}()

// aliases are older places of settings that still work.
var aliases = func() map[string]string {
	m := map[string]string{}
	for _, k := range []string{
		"request-identity-private-key-pem-file", "request-identity-expiration", "additional-request-headers",
		"connect-timeout", "aws-profile", "aws-assume-role-external-id", "request-compression-threshold",
		"http2-keep-alive-interval", "http2-keep-alive-timeout", "http2-streams-per-connection-limit",
		"http2-idle-connection-timeout", "http2-initial-stream-window-size", "http2-initial-connection-window-size",
	} {
		m[k] = "worker.invoker." + k
	}
	m["ingress.advertised-ingress-endpoint"] = "ingress.advertised-address"
	return m
}()

// foreign are settings that other servers of this kind have and this one has not. They are accepted so that an existing
// file works. Patterns are those of path.Match on the key, where * also crosses dots (keys have no slash).
var foreign = []struct {
	pattern  string
	harmless string // "*": ignoring it changes nothing that a user would notice; else the value for which that holds
	why      string
}{
	{"listen-mode", "tcp", "only TCP is served"},
	{"*.listen-mode", "tcp", "only TCP is served"},
	{"bifrost.default-provider", "replicated", "the log is always the replicated one"},
	{"worker.snapshots.*", "", "this version takes no snapshots to an object store"},
	{"ingress.kafka-clusters", "[]", "this version reads from no Kafka cluster"},
	{"ingress.experimental-kafka-*", "", "this version reads from no Kafka cluster"},
	{"tracing-filter", "*", ""},
	{"tracing-*", "", "this version exports the spans of invocations over OTLP gRPC only"},
	{"experimental-enable-*", "false", "this version does not have that feature"},
	{"worker.invoker.http-proxy", "", "services are always called directly"},
	{"worker.invoker.no-proxy", "*", ""},
	{"http-proxy", "", "services are always called directly"},
	{"no-proxy", "*", ""},
	{"worker.invoker.*-throttling*", "", "this version limits by number (concurrent-invocations-limit), not by rate"},
	{"admin.query-engine.rate-limiting*", "", "this version does not limit the rate of queries"},
	{"invocation-yield-threshold", "", "attempts are not made to yield"},
	{"metadata-client.type", "replicated", "metadata is always kept by the nodes themselves"},
	{"metadata-client.path", "", "metadata is always kept by the nodes themselves"},
	{"tls.*", "", "this version has no TLS of its own"},
	{"location", "", "this version runs one node"},
	{"worker.durability-mode", "", "durability follows from the log"},

	{"*rocksdb-*", "*", ""},
	{"tokio*", "*", ""},
	{"gossip-*", "*", ""},
	{"storage-*-priority-bg-threads", "*", ""},
	{"default-thread-*", "*", ""},
	{"networking.*", "*", ""},
	{"network-error-retry-policy.*", "*", ""},
	{"metadata-client.connect-timeout", "*", ""},
	{"metadata-client.keep-alive-*", "*", ""},
	{"metadata-client.message-size-limit", "*", ""},
	{"metadata-client.backoff-policy.*", "*", ""},
	{"metadata-client.object-store-retry-policy.*", "*", ""},
	{"metadata-server.raft-heartbeat-tick", "*", ""},
	{"metadata-server.request-queue-length", "*", ""},
	{"metadata-server.auto-join", "*", ""},
	{"metadata-server.status-update-interval", "*", ""},
	{"metadata-update-interval", "*", ""},
	{"metadata-fetch-from-peer-timeout", "*", ""},
	{"disable-telemetry", "*", ""},
	{"disable-config-sql-table", "*", ""},
	{"hlc-max-drift", "*", ""},
	{"admin.heartbeat-interval", "*", ""},
	{"admin.disable-web-ui", "*", ""},
	{"admin.query-engine.*", "*", ""},
	{"admin.storage-accounting-update-interval", "*", ""},
	{"ingress.ingestion.*", "*", ""},
	{"bifrost.local.*", "*", ""},
	{"bifrost.read-retry-policy.*", "*", ""},
	{"bifrost.seal-retry-interval", "*", ""},
	{"bifrost.append-retry-*", "*", ""},
	{"bifrost.replicated-loglet.read-batch-size", "*", ""},
	{"bifrost.replicated-loglet.maximum-inflight-records", "*", ""},
	{"bifrost.auto-recovery-interval", "*", ""},
	{"bifrost.disable-auto-improvement", "*", ""},
	{"bifrost.replicated-loglet.rpc-timeout", "*", ""},
	{"bifrost.replicated-loglet.store-timeout", "*", ""},
	{"bifrost.replicated-loglet.sequencer-*", "*", ""},
	{"bifrost.replicated-loglet.readahead-*", "*", ""},
	{"bifrost.replicated-loglet.default-nodeset-size", "*", ""},
	{"log-server.*", "*", ""},
	{"worker.shuffle.*", "*", ""},
	{"worker.data-service-memory-limit", "*", ""},
	{"worker.rule-book-poll-interval", "*", ""},
	{"worker.self-proposal-queue-memory-limit", "*", ""},
	{"worker.internal-queue-length", "*", ""},
	{"worker.disable-scheduler", "*", ""},
	{"worker.use-multi-db-layout", "*", ""},
	{"worker.invoker.in-memory-queue-length-limit", "*", ""},
	{"worker.invoker.per-invocation-initial-memory", "*", ""},
	{"worker.invoker.http2-max-frame-size", "*", ""},
	{"http2-max-frame-size", "*", ""},
	{"worker.invoker.tmp-dir", "*", ""},
	{"worker.invoker.http2-keep-alive-jitter", "*", ""},
	{"worker.invoker.http2-initial-max-send-streams", "*", ""},
	{"worker.invoker.http2-data-frame-budget", "*", ""},
	{"http2-keep-alive-jitter", "*", ""},
	{"http2-initial-max-send-streams", "*", ""},
}

// noEffect finds out whether a setting is one that is accepted and ignored.
func noEffect(e entry) (Notice, bool) {
	flat := strings.ReplaceAll(e.key, "/", "-")
	for _, f := range foreign {
		if ok, err := path.Match(f.pattern, flat); err != nil || !ok {
			continue
		}
		n := Notice{Key: e.key, Origin: e.origin, Message: "accepted, has no effect here"}
		if f.harmless != "*" && fmt.Sprint(e.raw) != f.harmless {
			n.Warn, n.Message = true, "has no effect: "+f.why
		}
		return n, true
	}
	return Notice{}, false
}

// nearest is the known key that takes the fewest edits from key, and their number. A key whose last part is right but
// which stands in the wrong table counts as one edit; among equals the one with the fewest real edits is nearest.
func nearest(key string, known map[string]field) (string, int) {
	type rank struct {
		edits, real int
		key         string
	}
	best := rank{edits: math.MaxInt}
	for k := range known {
		r := rank{key: k, real: distance(key, k)}
		r.edits = r.real
		if last(key) == last(k) {
			r.edits = min(r.real, 1)
		}
		if cmp.Or(cmp.Compare(r.edits, best.edits), cmp.Compare(r.real, best.real), cmp.Compare(r.key, best.key)) < 0 {
			best = r
		}
	}
	return best.key, best.edits
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// distance counts the insertions, deletions and replacements of bytes that turn a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
