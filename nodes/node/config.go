// Package node composes a server out of its roles: metadata, log server, partition processors, invokers, ingress and
// admin API. It is the only package that sees all of them, and it reads no flag, environment variable or file: what it
// needs arrives in a Config.
package node

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Config is everything that can be set about a node. Make one with DefaultConfig, change it, and let Validate judge it.
//
// The tag key is the field's name in a configuration file; a struct with a key is a table, a struct without is part of
// its parent. Names are those that users of other Restate-compatible servers know, wherever the concept is the same.
// A pointer that is nil means: no such limit.
type Config struct {
	// NodeName names this node for ever within its cluster; the data lies in BaseDir/NodeName. Default: the host name. A
	// node that comes back under another name is another node and does not see the old one's data.
	NodeName string `key:"node-name"`
	// ClusterName keeps nodes of different clusters from talking to each other by mistake, and is sent to services in
	// x-restate-cluster-name. Default: localcluster. It is fixed when the cluster is provisioned.
	ClusterName string `key:"cluster-name"`
	// BaseDir is the directory for all data. Default: perdure-data in the working directory. It must be a local file
	// system with a working fsync; two processes cannot share it.
	BaseDir string `key:"base-dir"`
	// Roles are what the node runs. Default, and at present required: all five.
	Roles []string `key:"roles"`
	// AutoProvision makes a node without data found a new cluster instead of waiting for somebody to provision it.
	// Default: true.
	AutoProvision bool `key:"auto-provision"`
	// ForceNodeID makes the node refuse to start under any other node id; 0 (default) takes what the cluster gives.
	ForceNodeID uint32 `key:"force-node-id"`
	// DefaultNumPartitions is the number of partitions that a new cluster gets, 1 to 65535, default 24. It cannot be
	// changed afterwards. Too few: hot keys share one apply loop and cores stay idle. Too many: each costs memory, a store
	// and a share of every batch.
	DefaultNumPartitions int `key:"default-num-partitions"`
	// DefaultReplication is how many log servers hold each record. Default, and at present required: 1.
	DefaultReplication int `key:"default-replication"`
	// ShutdownTimeout bounds the graceful part of a shutdown. Default: 1m. Too low: callers see broken connections that
	// they need to retry. Too high: a stuck request delays a restart for as long.
	ShutdownTimeout time.Duration `key:"shutdown-timeout"`
	// InitializationTimeout bounds the time from start to readiness. Default: 5m. Too low: a node with a long log to
	// replay never comes up.
	InitializationTimeout time.Duration `key:"initialization-timeout"`
	// DisablePrometheus stops metrics from being gathered and served. Default: false.
	DisablePrometheus bool `key:"disable-prometheus"`
	// DisableAutoIdempotency stops the ingress from giving calls without an idempotency key one of its own. Default: false.
	// With it, the result of such a call is not kept and cannot be attached to later.
	DisableAutoIdempotency bool `key:"disable-controlled-idempotent-sharding"`
	// Insecure allows the admin API and the node port on addresses that other machines can reach, although nothing
	// encrypts or authenticates them. Default: false. For containers and networks that somebody else protects.
	Insecure bool `key:"insecure"`

	// Fabric is where other nodes, metrics and the health check reach this node. Default: 127.0.0.1:5122.
	Fabric Listener

	Tracing Tracing

	Retention Retention
	// RetryPolicy applies to invocations whose service and handler say nothing of their own.
	RetryPolicy RetryPolicy `key:"default-retry-policy"`
	// MaxRetryAttempts caps max-attempts of every service; nil is no cap. Too low: a service that is down for
	// longer than its attempts take leaves paused or failed invocations behind.
	MaxRetryAttempts *int `key:"max-retry-policy-max-attempts"`

	Features Features

	Ingress        Ingress        `key:"ingress"`
	Admin          Admin          `key:"admin"`
	MetadataServer MetadataServer `key:"metadata-server"`
	MetadataClient MetadataClient `key:"metadata-client"`
	Bifrost        Bifrost        `key:"bifrost"`
	Worker         Worker         `key:"worker"`
	TLS            TLS            `key:"tls"`
}

// Tracing exports spans of invocations to an OpenTelemetry collector, over OTLP gRPC.
type Tracing struct {
	// Endpoint is the collector's URL, such as http://localhost:4317; schemes are http, https, grpc and otlp+grpc, and only
	// https encrypts. Default: none, nothing is traced.
	Endpoint string `key:"tracing-endpoint"`
	// ServicesEndpoint is used instead of Endpoint for the spans of invocations, which at present are all that there are.
	ServicesEndpoint string `key:"tracing-services-endpoint"`
	// Headers go with each export, for instance an authorization. Default: none.
	Headers map[string]string `key:"tracing-headers" secret:"true"`
}

// endpoint is where spans go; empty for nowhere.
func (t *Tracing) endpoint() string {
	if t.ServicesEndpoint != "" {
		return t.ServicesEndpoint
	}
	return t.Endpoint
}

// Listener is one TCP address to serve and the URL under which others know it.
type Listener struct {
	// BindAddress is host:port; it wins over BindIP and BindPort.
	BindAddress string `key:"bind-address"`
	// BindIP is the address to listen on. Default: 127.0.0.1. On the root level it is also the default of ingress and admin.
	BindIP string `key:"bind-ip"`
	// BindPort is the port to listen on, 0 for a free one. Default: 8080 ingress, 9070 admin, 5122 node.
	BindPort *int `key:"bind-port"`
	// UseRandomPorts listens on a free port whatever BindPort says. On the root level it holds for all listeners.
	UseRandomPorts bool `key:"use-random-ports"`
	// AdvertisedAddress is the URL to tell others. Default: http, AdvertisedHost or the address that was bound, and its port.
	AdvertisedAddress string `key:"advertised-address"`
	// AdvertisedHost replaces the host in the default of AdvertisedAddress.
	AdvertisedHost string `key:"advertised-host"`
}

// Retention says how long what is known of a finished invocation is kept when its service and handler do not say. Too
// short: a caller that retries late executes twice or finds nothing. Too long: the store grows with everything ever done.
type Retention struct {
	// Journal keeps the steps, for inspection and for starting anew from one of them. Default: 1d.
	Journal time.Duration `key:"default-journal-retention"`
	// MaxJournal caps what services may ask for, and the default; 0 keeps none. Default: no cap.
	MaxJournal *time.Duration `key:"max-journal-retention"`
	// Idempotency keeps the result for repeated calls with the same idempotency key. Default: 1d.
	Idempotency time.Duration `key:"default-idempotency-retention"`
	// MaxIdempotency caps what services may ask for, and the default; 0 keeps none. Default: no cap.
	MaxIdempotency *time.Duration `key:"max-idempotency-retention"`
	// Workflow keeps a finished workflow's result, state and promises. Default: 1d.
	Workflow time.Duration `key:"default-workflow-completion-retention"`
	// MaxWorkflow caps what workflows may ask for, and the default; 0 keeps none. Default: no cap.
	MaxWorkflow *time.Duration `key:"max-workflow-completion-retention"`
}

// What happens to an invocation whose attempts are used up.
const (
	OnMaxAttemptsPause = "pause" // it waits for an operator
	OnMaxAttemptsKill  = "kill"  // its caller gets the last error
)

// RetryPolicy says when a failed attempt is tried again: after InitialInterval, each time Factor longer, at most MaxInterval.
type RetryPolicy struct {
	// InitialInterval is the first delay. Default: 500ms. Too low: a failing service is hammered.
	InitialInterval time.Duration `key:"initial-interval"`
	// ExponentiationFactor is at least 1. Default: 2.
	ExponentiationFactor float64 `key:"exponentiation-factor"`
	// MaxAttempts counts attempts, the first included. Default: 70. Unlimited (0) is written "unlimited".
	MaxAttempts Attempts `key:"max-attempts"`
	// MaxInterval caps the delay. Default: 1m. Too high: work stands still long after the service came back.
	MaxInterval time.Duration `key:"max-interval"`
	// OnMaxAttempts is pause (default) or kill.
	OnMaxAttempts string `key:"on-max-attempts"`
}

// Attempts is a number of attempts; 0 means that they never end.
type Attempts int

// Unlimited attempts.
const Unlimited Attempts = 0

// String is the number, or "unlimited".
func (a Attempts) String() string {
	if a == Unlimited {
		return "unlimited"
	}
	return strconv.Itoa(int(a))
}

// Features are switches for what is not yet on by default.
type Features struct {
	// ProtocolV7 offers version 7 of the service protocol to deployments that speak it. Default: false. A cluster whose
	// invocations were started with it must keep it on until they are finished.
	ProtocolV7 bool `key:"experimental-enable-protocol-v7"`
}

// Ingress is where callers invoke services. Default address: 127.0.0.1:8080.
type Ingress struct {
	Listener
	// RequestSizeLimit bounds a request body; larger ones get 413. Default: 32 MiB, at most the record size limit. Too
	// high: a few large requests take the memory of many small ones.
	RequestSizeLimit Bytes `key:"request-size-limit"`
	// RequestMemoryLimit bounds what the bodies of the requests in progress take together; who would need more gets 429.
	// Default: 1 GiB. Too low: calls with large bodies are refused while others wait. Too high: they take the memory.
	RequestMemoryLimit Bytes `key:"request-memory-limit"`
	// ConcurrentRequests bounds the requests in progress; more get 429. Default: none.
	ConcurrentRequests *int `key:"concurrent-api-requests-limit"`
	// MaxConcurrentStreams bounds the requests in progress on one HTTP/2 connection. Default: 1000. Too low: a client that
	// multiplexes everything over one connection queues.
	MaxConcurrentStreams int `key:"http2-max-concurrent-streams"`
}

// Admin is the API for operators. Default address: 127.0.0.1:9070.
type Admin struct {
	Listener
	// Token, if set, must come with every request to the admin API as a bearer token. Default: none.
	Token Secret `key:"token"`
	// ConcurrentRequests bounds the requests in progress; more get 429. Default: none.
	ConcurrentRequests *int `key:"concurrent-api-requests-limit"`
	// DeploymentRoutingHeaders are headers whose values tell deployments at the same URL apart. Default: none.
	DeploymentRoutingHeaders []string `key:"deployment-routing-headers"`
}

// MetadataServer is this node's part of the replicated metadata. Times are counted in ticks.
type MetadataServer struct {
	// TickInterval is the length of a tick. Default: 100ms.
	TickInterval time.Duration `key:"raft-tick-interval"`
	// ElectionTicks without a heartbeat start an election. Default: 10. Too low: elections for every hiccup of a disk.
	// Too high: metadata cannot be changed for as long after its leader died.
	ElectionTicks int `key:"raft-election-tick"`
	// LogTrimThreshold is the number of entries after which a snapshot replaces them. Default: 1000. Too high: slow
	// restarts. Too low: the whole metadata is written again and again.
	LogTrimThreshold int `key:"log-trim-threshold"`
}

// MetadataClient says where metadata is when it is not here.
type MetadataClient struct {
	// Addresses are URLs of other nodes to ask. Default: none. At present only this node's own is accepted.
	Addresses []string `key:"addresses"`
}

// Bifrost is the replicated log.
type Bifrost struct {
	// RecordCache is the memory for records that were just appended, so that this node's readers need not fetch them.
	// Default: 250 MiB, taken only as needed. Too low: each record is read back from the log server's store.
	RecordCache Bytes `key:"record-cache-memory-size"`
	// RecordSizeLimit bounds the settings that decide how large a record gets: they are refused above it. Default: 32 MiB.
	// Records themselves are not measured again.
	RecordSizeLimit Bytes `key:"record-size-limit"`
}

// Worker runs partitions.
type Worker struct {
	// TimersInMemory bounds the timers of one partition that are held in memory; the others stay in the store until their
	// time is near. Default: 1024.
	TimersInMemory *int `key:"num-timers-in-memory-limit"`
	// CleanupInterval is how often expired results, journals and workflows are removed. Default: 1h, but more than 10s
	// means 10s: looking for them costs little here. Too low: work for nothing.
	CleanupInterval time.Duration `key:"cleanup-interval"`
	// MaxCommandBatchSize bounds the records that are applied as one batch. Default: 32. Too low: the cost of a store
	// commit is paid per record. Too high: the first of a batch waits for the last.
	MaxCommandBatchSize int `key:"max-command-batch-size"`
	// MaxCommandBatchBytes bounds the same in bytes. Default: 1 MiB.
	MaxCommandBatchBytes Bytes `key:"max-command-batch-bytes"`
	// TrimDelay keeps log records for this long after nobody needs them. Default: 10m.
	TrimDelay time.Duration `key:"trim-delay-interval"`
	Storage   Storage       `key:"storage"`
	Invoker   Invoker       `key:"invoker"`
}

// Storage is what all partition stores of a node share.
type Storage struct {
	// BlockCache is memory for blocks read from disk. Default: 64 MiB. Too low: lookups go to the disk.
	BlockCache Bytes `key:"block-cache-size"`
	// Memtable is how much one partition collects in memory before it writes a table. Default: 2 MiB. Too low: many
	// small tables. Too high: memory, and a longer replay of the log after a crash.
	Memtable Bytes `key:"memtable-size"`
}

// Invoker calls the services.
type Invoker struct {
	// InactivityTimeout is how long an attempt may wait for something before it is asked to suspend. Default: 1m. 0
	// suspends at every wait. Too low: invocations are replayed often. Too high: waiting ones hold connections and slots.
	InactivityTimeout time.Duration `key:"inactivity-timeout"`
	// AbortTimeout is how long after that the attempt may go on before it is cut off. Default: 10m. Too low: long steps
	// are never finished.
	AbortTimeout time.Duration `key:"abort-timeout"`
	// MessageSizeWarning logs a warning for larger protocol messages. Default: 10 MiB.
	MessageSizeWarning Bytes `key:"message-size-warning"`
	// MessageSizeLimit bounds one protocol message in both directions; a larger one fails the attempt. Default: 32 MiB.
	MessageSizeLimit Bytes `key:"message-size-limit"`
	// EagerStateSizeLimit bounds the object state that is sent along with the start of an attempt; the rest is fetched
	// when asked for. Default: 32 MiB. 0 sends none.
	EagerStateSizeLimit Bytes `key:"eager-state-size-limit"`
	// DisableEagerState is an older spelling of EagerStateSizeLimit = 0. Default: false.
	DisableEagerState bool `key:"disable-eager-state"`
	// ConcurrentInvocations bounds the attempts running at once on this node; others wait, in order within their
	// deployment. One deployment gets at most 7/8 of them, so that the others run when it hangs. Default: 1000. Too
	// low: fast callers wait for slow services. Too high: services are flooded.
	ConcurrentInvocations *int `key:"concurrent-invocations-limit"`
	// MemoryLimit bounds the memory of all attempts. Default: 1.5 GiB. Attempts that do not fit wait.
	MemoryLimit Bytes `key:"memory-limit"`
	// PerInvocationMemoryLimit bounds one attempt; one that needs more is ended and retried later. Default: 32 MiB.
	// More than MemoryLimit means MemoryLimit.
	PerInvocationMemoryLimit Bytes `key:"per-invocation-memory-limit"`
	// MaxAwaitedFutureDepth bounds the nesting of what an invocation may wait for. Default: 1000.
	MaxAwaitedFutureDepth int `key:"max-awaited-future-depth"`
	// ConnectTimeout bounds connecting to a service. Default: 10s.
	ConnectTimeout time.Duration `key:"connect-timeout"`
	// KeepAliveInterval is how long an HTTP/2 connection may be silent before it is pinged, and KeepAliveTimeout how long
	// the answer may take before the connection is given up. Default: 40s and 20s. Some platforms forbid frequent pings.
	KeepAliveInterval time.Duration `key:"http2-keep-alive-interval"`
	KeepAliveTimeout  time.Duration `key:"http2-keep-alive-timeout"`
	// StreamsPerConnection bounds the attempts on one HTTP/2 connection. Default: 128. Too low: many connections.
	StreamsPerConnection int `key:"http2-streams-per-connection-limit"`
	// IdleConnectionTimeout closes a connection that nobody used for this long. Default: 5m.
	IdleConnectionTimeout time.Duration `key:"http2-idle-connection-timeout"`
	// StreamWindow and ConnectionWindow are how much a service may send ahead, per attempt and per connection. Default:
	// 2 MiB and 5 MiB.
	StreamWindow     Bytes `key:"http2-initial-stream-window-size"`
	ConnectionWindow Bytes `key:"http2-initial-connection-window-size"`
	// IdentityKeyFile is a PEM file with an Ed25519 private key (PKCS 8) that signs each request to a service, so that it
	// can verify its caller. Default: none, requests are not signed.
	IdentityKeyFile string `key:"request-identity-private-key-pem-file"`
	// IdentityKey is the content of IdentityKeyFile; whoever reads configuration files puts it here. Empty: not signed.
	IdentityKey Secret
	// IdentityExpiration is how long a signature is valid. Default: 1m. Too low: clocks that differ break every request.
	IdentityExpiration time.Duration `key:"request-identity-expiration"`
	// AdditionalRequestHeaders go with every request to a service. They may be secrets. Default: none besides
	// x-restate-cluster-name, which is always sent.
	AdditionalRequestHeaders map[string]string `key:"additional-request-headers" secret:"true"`
	// AWSProfile is the profile in the AWS configuration files with which Lambda functions are called and roles assumed.
	// Default: none, the AWS SDK looks at the environment, the default profile and the machine's own role, in this order.
	AWSProfile string `key:"aws-profile"`
	// AWSExternalID is sent with each role that is assumed. Default: AWS_EXTERNAL_ID from the environment, else none. Trust
	// policies that demand it keep other users of the same account or service from calling the functions.
	AWSExternalID string `key:"aws-assume-role-external-id"`
	// RequestCompressionThreshold is the length from which a request to a Lambda function is compressed, if its SDK
	// understands that. Default: 4 MiB. Too high: journals that would fit compressed are refused at 4.5 MiB.
	RequestCompressionThreshold Bytes `key:"request-compression-threshold"`
	// LambdaConcurrency caps the calls of one Lambda function that run at once, all its versions together. Default: 1000.
	// Below it the limit follows what Lambda throttles. Too low: invocations wait although Lambda would take them.
	LambdaConcurrency int `key:"lambda-concurrency-limit"`
	// LambdaAllowLatest allows functions with the qualifier $LATEST. Default: false, because such a function changes with
	// each deploy under the invocations that began on it. For development.
	LambdaAllowLatest bool `key:"lambda-allow-latest"`
	// AWS is the configuration of the AWS SDK; whoever reads configuration files and the environment puts it here. Nil: this
	// node calls no Lambda functions.
	AWS *aws.Config
}

// TLS is reserved: the only accepted mode is off.
type TLS struct {
	Mode string `key:"mode"`
}

// Roles of a node.
const (
	RoleIngress        = "http-ingress"
	RoleAdmin          = "admin"
	RoleWorker         = "worker"
	RoleLogServer      = "log-server"
	RoleMetadataServer = "metadata-server"
)

// Ports that users expect.
const (
	DefaultIngressPort = 8080
	DefaultAdminPort   = 9070
	DefaultNodePort    = 5122
)

const day = 24 * time.Hour

// DefaultConfig is a node on its own that only this machine can reach. The node name is empty: it has no default that
// can be known here.
func DefaultConfig() Config {
	return Config{
		ClusterName:           "localcluster",
		BaseDir:               "perdure-data",
		Roles:                 []string{RoleIngress, RoleAdmin, RoleWorker, RoleLogServer, RoleMetadataServer},
		AutoProvision:         true,
		DefaultNumPartitions:  24,
		DefaultReplication:    1,
		ShutdownTimeout:       time.Minute,
		InitializationTimeout: 5 * time.Minute,
		Retention:             Retention{Journal: day, Idempotency: day, Workflow: day},
		RetryPolicy: RetryPolicy{
			InitialInterval:      500 * time.Millisecond,
			ExponentiationFactor: 2,
			MaxAttempts:          70,
			MaxInterval:          time.Minute,
			OnMaxAttempts:        OnMaxAttemptsPause,
		},
		Ingress:        Ingress{RequestSizeLimit: 32 * MiB, RequestMemoryLimit: GiB, MaxConcurrentStreams: 1000},
		MetadataServer: MetadataServer{TickInterval: 100 * time.Millisecond, ElectionTicks: 10, LogTrimThreshold: 1000},
		Bifrost:        defaultBifrost(),
		Worker:         defaultWorker(),
		TLS:            TLS{Mode: "off"},
	}
}

func defaultBifrost() Bifrost {
	return Bifrost{
		RecordCache:     250 * MiB,
		RecordSizeLimit: 32 * MiB,
	}
}

func defaultWorker() Worker {
	timers := 1024
	return Worker{
		TimersInMemory:       &timers,
		CleanupInterval:      time.Hour,
		MaxCommandBatchSize:  32,
		MaxCommandBatchBytes: MiB,
		TrimDelay:            10 * time.Minute,
		Storage:              Storage{BlockCache: 64 * MiB, Memtable: 2 * MiB},
		Invoker:              defaultInvoker(),
	}
}

func defaultInvoker() Invoker {
	concurrent := 1000
	return Invoker{
		InactivityTimeout:        time.Minute,
		AbortTimeout:             10 * time.Minute,
		MessageSizeWarning:       10 * MiB,
		MessageSizeLimit:         32 * MiB,
		EagerStateSizeLimit:      32 * MiB,
		ConcurrentInvocations:    &concurrent,
		MemoryLimit:              3 * GiB / 2,
		PerInvocationMemoryLimit: 32 * MiB,
		MaxAwaitedFutureDepth:    1000,
		ConnectTimeout:           10 * time.Second,
		KeepAliveInterval:        40 * time.Second,
		KeepAliveTimeout:         20 * time.Second,
		StreamsPerConnection:     128,
		IdleConnectionTimeout:    5 * time.Minute,
		StreamWindow:             2 * MiB,
		ConnectionWindow:         5 * MiB,
		IdentityExpiration:       time.Minute,
		LambdaConcurrency:        1000,

		RequestCompressionThreshold: 4 * MiB,
	}
}

// DataDir is the directory of this node's data.
func (c *Config) DataDir() string { return filepath.Join(c.BaseDir, c.NodeName) }

// EagerState is the effective limit of the state that goes along with the start of an attempt; 0 means none.
func (i *Invoker) EagerState() Bytes {
	if i.DisableEagerState {
		return 0
	}
	return i.EagerStateSizeLimit
}

// FabricAddress is the host:port to listen on for other nodes.
func (c *Config) FabricAddress() string {
	return c.Fabric.address("127.0.0.1", DefaultNodePort, c.Fabric.UseRandomPorts)
}

// IngressAddress is the host:port to listen on for callers.
func (c *Config) IngressAddress() string { return c.inherit(c.Ingress.Listener, DefaultIngressPort) }

// AdminAddress is the host:port to listen on for operators.
func (c *Config) AdminAddress() string { return c.inherit(c.Admin.Listener, DefaultAdminPort) }

func (c *Config) inherit(l Listener, port int) string {
	ip := "127.0.0.1"
	if c.Fabric.BindIP != "" {
		ip = c.Fabric.BindIP
	}
	return l.address(ip, port, l.UseRandomPorts || c.Fabric.UseRandomPorts)
}

func (l Listener) address(ip string, port int, random bool) string {
	if l.BindAddress != "" {
		return l.BindAddress
	}
	if l.BindIP != "" {
		ip = l.BindIP
	}
	if l.BindPort != nil {
		port = *l.BindPort
	}
	if random {
		port = 0
	}
	return net.JoinHostPort(ip, strconv.Itoa(port))
}

// Advertised is the URL, with a slash at its end, under which others reach what listens on bound. A wildcard address
// becomes 127.0.0.1, for lack of a better guess.
func (l Listener) Advertised(bound net.Addr) string {
	if l.AdvertisedAddress != "" {
		return withSlash(l.AdvertisedAddress)
	}
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return withSlash("http://" + bound.String())
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if l.AdvertisedHost != "" {
		host = l.AdvertisedHost
	}
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(host, port), Path: "/"}).String()
}

func withSlash(u string) string {
	if u == "" || u[len(u)-1] != '/' {
		return u + "/"
	}
	return u
}

// Addresses are the URLs, with a slash at their ends, under which a running node is reached.
type Addresses struct {
	Ingress string
	Admin   string
	Fabric  string // node port: metrics and health
}

// Bytes is an amount of memory or data.
type Bytes int64

// Units of Bytes.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
)

// String is the amount with one decimal in the largest fitting binary unit, such as 1.5 GiB, or exactly in bytes when
// that would lose something.
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b >= u.size && b*10%u.size == 0 {
			return strconv.FormatFloat(float64(b)/float64(u.size), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10) + " B"
}

// Redacted stands for a secret in everything that is printed.
const Redacted = "<REDACTED>"

// Secret is a string that shows itself only to those who ask with Reveal.
type Secret string

// Reveal is the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret; empty stays empty, so that one can see whether it is set.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return Redacted
}

// Format hides the secret from every verb of package fmt.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
