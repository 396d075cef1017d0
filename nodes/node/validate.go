package node

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"perdure/control/schema"
	"perdure/invokers/tracing"
)

// An InvalidError says which setting cannot be and what the rule is.
type InvalidError struct {
	Key  string // as in a configuration file, with dots between tables
	Rule string // what is wrong and what would be right
}

func (e *InvalidError) Error() string { return e.Key + " " + e.Rule }

// checks collects what is wrong, so that all of it can be told at once.
type checks struct{ errs []error }

func (c *checks) that(ok bool, key, rule string, args ...any) {
	if !ok {
		c.errs = append(c.errs, &InvalidError{Key: key, Rule: fmt.Sprintf(rule, args...)})
	}
}

func (c *checks) positive(key string, v int) {
	c.that(v >= 1, key, "is %d: must be at least 1", v)
}

func (c *checks) positiveOrNone(key string, v *int) {
	if v != nil {
		c.positive(key, *v)
	}
}

func (c *checks) longer(key string, d, than time.Duration) {
	c.that(d > than, key, "is %s: must be longer than %s", d, than)
}

func (c *checks) notNegative(key string, d *time.Duration) {
	if d != nil {
		c.that(*d >= 0, key, "is %s: must not be negative", *d)
	}
}

func (c *checks) size(key string, v, min, max Bytes) {
	c.that(v >= min && v <= max, key, "is %s: must be between %s and %s", v, min, max)
}

// Validate tells everything that is wrong with the configuration, as InvalidErrors joined, or nil. It looks at the
// values only: not at files, the network, or what a data directory already holds.
func (c *Config) Validate() error {
	var k checks
	c.validateNode(&k)
	c.validateTracing(&k)
	c.validateAddresses(&k)
	c.validateInvocations(&k)
	c.validateLog(&k)
	c.Worker.validate(&k, c.Bifrost.RecordSizeLimit)
	return errors.Join(k.errs...)
}

func (c *Config) validateNode(k *checks) {
	k.that(c.NodeName != "", "node-name", "is empty: give this node a name that it keeps")
	k.that(plainName(c.NodeName), "node-name", "is %q: it names a directory, so it must not contain / or \\, nor be . or ..", c.NodeName)
	k.that(c.ClusterName != "", "cluster-name", "is empty: give the cluster a name")
	k.that(c.BaseDir != "", "base-dir", "is empty: name a directory for the data")
	k.that(c.DefaultNumPartitions >= 1 && c.DefaultNumPartitions <= 65535, "default-num-partitions",
		"is %d: must be between 1 and 65535", c.DefaultNumPartitions)
	k.that(c.DefaultReplication == 1, "default-replication", "is %d: this version runs one node, so it must be 1", c.DefaultReplication)
	k.longer("shutdown-timeout", c.ShutdownTimeout, 0)
	k.longer("initialization-timeout", c.InitializationTimeout, 0)
	known := DefaultConfig().Roles
	for _, r := range c.Roles {
		k.that(slices.Contains(known, r), "roles", "has %q: roles are %s", r, strings.Join(known, ", "))
	}
	for _, r := range known {
		k.that(slices.Contains(c.Roles, r), "roles", "lacks %q: this version runs one node, which needs all of %s", r, strings.Join(known, ", "))
	}
	k.that(c.TLS.Mode == "off", "tls.mode", "is %q: this version has no TLS of its own; set it to off and put a proxy in front", c.TLS.Mode)
}

func plainName(s string) bool {
	return s != "." && s != ".." && !strings.ContainsAny(s, "/\\\x00")
}

func (c *Config) validateAddresses(k *checks) {
	k.that(c.Ingress.MaxConcurrentStreams >= 1, "ingress.http2-max-concurrent-streams", "is %d: must be at least 1", c.Ingress.MaxConcurrentStreams)
	k.positiveOrNone("ingress.concurrent-api-requests-limit", c.Ingress.ConcurrentRequests)
	k.positiveOrNone("admin.concurrent-api-requests-limit", c.Admin.ConcurrentRequests)
	k.size("ingress.request-size-limit", c.Ingress.RequestSizeLimit, 1, c.Bifrost.RecordSizeLimit)
	k.size("ingress.request-memory-limit", c.Ingress.RequestMemoryLimit, c.Ingress.RequestSizeLimit, 1<<20*GiB)
	for _, l := range []struct {
		key, addr string
		listener  Listener
		private   bool
	}{
		{"bind-address", c.FabricAddress(), c.Fabric, true},
		{"admin.bind-address", c.AdminAddress(), c.Admin.Listener, true},
		{"ingress.bind-address", c.IngressAddress(), c.Ingress.Listener, false},
	} {
		k.bind(l.key, l.addr, l.private && !c.Insecure)
		k.url(strings.Replace(l.key, "bind-", "advertised-", 1), l.listener.AdvertisedAddress)
	}
	c.validateDistinct(k)
	for _, a := range c.MetadataClient.Addresses {
		k.that(c.isOwn(a), "metadata-client.addresses", "has %q, which is another node: this version runs one node and cannot join others", a)
	}
}

// bind checks host:port, and that a private listener stays on this machine.
func (k *checks) bind(key, addr string, private bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		k.that(false, key, "is %q: must be host:port, such as 127.0.0.1:5122 or [::1]:5122", addr)
		return
	}
	_, err = strconv.ParseUint(port, 10, 16)
	k.that(err == nil, key, "has port %q: must be a number between 0 and 65535", port)
	k.that(!private || loopback(host), key, "is %s, which other machines can reach without encryption or login: "+
		"use 127.0.0.1, or start with --insecure (insecure = true) where the network is protected, as in a container", addr)
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (k *checks) url(key, s string) {
	if s == "" {
		return
	}
	u, err := url.Parse(s)
	k.that(err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "", key, "is %q: must be a URL such as http://host:port/", s)
}

// validateDistinct refuses two listeners on one address, which would otherwise look like a port that is taken.
func (c *Config) validateDistinct(k *checks) {
	addrs := []struct{ key, addr string }{
		{"bind-address", c.FabricAddress()}, {"admin.bind-address", c.AdminAddress()}, {"ingress.bind-address", c.IngressAddress()}}
	for i, a := range addrs {
		for _, b := range addrs[:i] {
			_, port, _ := net.SplitHostPort(a.addr)
			k.that(a.addr != b.addr || port == "0", a.key, "is %s, like %s: each needs its own", a.addr, b.key)
		}
	}
}

// isOwn reports whether a URL or host:port means this node.
func (c *Config) isOwn(addr string) bool {
	hostport := func(s string) string {
		if u, err := url.Parse(s); err == nil && u.Host != "" {
			return u.Host
		}
		return strings.TrimSuffix(s, "/")
	}
	h := hostport(addr)
	if h == c.FabricAddress() || (c.Fabric.AdvertisedAddress != "" && h == hostport(c.Fabric.AdvertisedAddress)) {
		return true
	}
	host, port, err := net.SplitHostPort(h)
	_, own, _ := net.SplitHostPort(c.FabricAddress())
	return err == nil && port == own && (loopback(host) || host == c.NodeName)
}

func (c *Config) validateInvocations(k *checks) {
	r := &c.Retention
	for _, d := range []struct {
		key string
		d   *time.Duration
	}{
		{"default-journal-retention", &r.Journal}, {"max-journal-retention", r.MaxJournal},
		{"default-idempotency-retention", &r.Idempotency}, {"max-idempotency-retention", r.MaxIdempotency},
		{"default-workflow-completion-retention", &r.Workflow}, {"max-workflow-completion-retention", r.MaxWorkflow},
	} {
		k.notNegative(d.key, d.d)
	}
	p := &c.RetryPolicy
	k.longer("default-retry-policy.initial-interval", p.InitialInterval, 0)
	k.that(p.MaxInterval >= p.InitialInterval, "default-retry-policy.max-interval",
		"is %s: must not be shorter than initial-interval (%s)", p.MaxInterval, p.InitialInterval)
	k.that(p.ExponentiationFactor >= 1, "default-retry-policy.exponentiation-factor", "is %g: must be at least 1", p.ExponentiationFactor)
	k.that(p.MaxAttempts >= 0, "default-retry-policy.max-attempts", `is %d: must be at least 1, or "unlimited"`, int(p.MaxAttempts))
	k.that(p.OnMaxAttempts == OnMaxAttemptsPause || p.OnMaxAttempts == OnMaxAttemptsKill,
		"default-retry-policy.on-max-attempts", "is %q: must be pause or kill", p.OnMaxAttempts)
	k.positiveOrNone("max-retry-policy-max-attempts", c.MaxRetryAttempts)
}

func (c *Config) validateLog(k *checks) {
	m := &c.MetadataServer
	k.longer("metadata-server.raft-tick-interval", m.TickInterval, 0)
	k.positive("metadata-server.raft-election-tick", m.ElectionTicks)
	k.positive("metadata-server.log-trim-threshold", m.LogTrimThreshold)
	b := &c.Bifrost
	k.that(b.RecordCache >= 0, "bifrost.record-cache-memory-size", "is %d: must not be negative", int64(b.RecordCache))
	k.size("bifrost.record-size-limit", b.RecordSizeLimit, 64*KiB, GiB)
}

func (w *Worker) validate(k *checks, record Bytes) {
	k.positiveOrNone("worker.num-timers-in-memory-limit", w.TimersInMemory)
	k.longer("worker.cleanup-interval", w.CleanupInterval, 0)
	k.positive("worker.max-command-batch-size", w.MaxCommandBatchSize)
	k.size("worker.max-command-batch-bytes", w.MaxCommandBatchBytes, KiB, GiB)
	k.that(w.TrimDelay >= 0, "worker.trim-delay-interval", "is %s: must not be negative", w.TrimDelay)
	k.size("worker.storage.block-cache-size", w.Storage.BlockCache, MiB, 1024*GiB)
	k.size("worker.storage.memtable-size", w.Storage.Memtable, MiB, GiB)
	w.Invoker.validate(k, record)
}

var externalID = regexp.MustCompile(`^[\w+=,.@:/-]+$`)

func (i *Invoker) validate(k *checks, record Bytes) {
	const p = "worker.invoker."
	k.that(i.InactivityTimeout >= 0, p+"inactivity-timeout", "is %s: must not be negative", i.InactivityTimeout)
	k.longer(p+"abort-timeout", i.AbortTimeout, 0)
	k.size(p+"message-size-limit", i.MessageSizeLimit, KiB, record)
	k.that(i.MessageSizeWarning >= 0, p+"message-size-warning", "is %d: must not be negative", int64(i.MessageSizeWarning))
	k.that(i.EagerStateSizeLimit >= 0, p+"eager-state-size-limit", "is %d: must not be negative", int64(i.EagerStateSizeLimit))
	k.positiveOrNone(p+"concurrent-invocations-limit", i.ConcurrentInvocations)
	k.size(p+"memory-limit", i.MemoryLimit, 64*KiB, 1024*GiB)
	k.size(p+"per-invocation-memory-limit", i.PerInvocationMemoryLimit, KiB, 1024*GiB)
	k.positive(p+"max-awaited-future-depth", i.MaxAwaitedFutureDepth)
	k.longer(p+"connect-timeout", i.ConnectTimeout, 0)
	k.longer(p+"http2-keep-alive-interval", i.KeepAliveInterval, 0)
	k.longer(p+"http2-keep-alive-timeout", i.KeepAliveTimeout, 0)
	k.positive(p+"http2-streams-per-connection-limit", i.StreamsPerConnection)
	k.longer(p+"http2-idle-connection-timeout", i.IdleConnectionTimeout, 0)
	k.size(p+"http2-initial-stream-window-size", i.StreamWindow, 65535, 2*GiB-1)
	k.size(p+"http2-initial-connection-window-size", i.ConnectionWindow, 65535, 2*GiB-1)
	k.longer(p+"request-identity-expiration", i.IdentityExpiration, 0)
	k.size(p+"request-compression-threshold", i.RequestCompressionThreshold, 0, 64*MiB)
	k.positive(p+"lambda-concurrency-limit", i.LambdaConcurrency)
	names := map[string]string{}
	for _, name := range sortedKeys(i.AdditionalRequestHeaders) {
		lower := strings.ToLower(name)
		k.that(names[lower] == "", p+"additional-request-headers", "has both %q and %q, which are one header", names[lower], name)
		names[lower] = name
		err := schema.CheckHeader(name, i.AdditionalRequestHeaders[name])
		k.that(err == nil, p+"additional-request-headers", "cannot be sent: %v", err)
	}
	k.that(i.AWSExternalID == "" || len(i.AWSExternalID) >= 2 && len(i.AWSExternalID) <= 1224 && externalID.MatchString(i.AWSExternalID), p+"aws-assume-role-external-id",
		"is %q: STS takes 2 to 1224 letters, digits and +=,.@:/-_", i.AWSExternalID)
}

func (c *Config) validateTracing(k *checks) {
	for _, e := range []struct{ key, endpoint string }{
		{"tracing-endpoint", c.Tracing.Endpoint}, {"tracing-services-endpoint", c.Tracing.ServicesEndpoint},
	} {
		if e.endpoint == "" {
			continue
		}
		if err := (tracing.Config{Endpoint: e.endpoint}).Validate(); err != nil {
			k.that(false, e.key, "cannot be used: %v", err)
		}
	}
}
